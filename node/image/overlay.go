package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// overlayDirs are what an overlay mount is made of, lower ones topmost first.
type overlayDirs struct {
	lower               []string
	upper, work, target string
}

// mountOverlay mounts. Layers are given one by one, so their number is bounded by
// overlayfs (500) and not by the page that mount(2) has for options; kernels before
// 6.5 don't take them so, and get short names of open directories in that page.
func mountOverlay(d overlayDirs) error {
	err := mountNew(d)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		if old := mountOld(d); old != nil {
			return errors.Join(err, old)
		}
		return nil
	}
	return err
}

// mountNew uses the calls of kernel 5.2 and overlayfs's options of 6.5.
func mountNew(d overlayDirs) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	options := [][2]string{{"source", "overlay"}}
	for _, l := range d.lower {
		options = append(options, [2]string{"lowerdir+", l})
	}
	options = append(options, [2]string{"upperdir", d.upper}, [2]string{"workdir", d.work}, [2]string{"index", "off"})
	for _, o := range options {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return fmt.Errorf("overlay option %s=%s: %w%s", o[0], o[1], err, fsMessages(fsfd))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("create overlay: %w%s", err, fsMessages(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, d.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", d.target, err)
	}
	return nil
}

// fsMessages is what the kernel has to say about the last failure.
func fsMessages(fsfd int) string {
	buf := make([]byte, 4096)
	var all strings.Builder
	for range 16 {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		all.WriteString("; " + strings.TrimSpace(string(buf[:n])))
	}
	return all.String()
}

func mountOld(d overlayDirs) error {
	var fds []*os.File
	defer func() {
		for _, f := range fds {
			f.Close()
		}
	}()
	short := func(dir string) (string, error) {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return "", err
		}
		fds = append(fds, f)
		return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
	}
	var names []string
	for _, dir := range append([]string{d.upper, d.work}, d.lower...) {
		n, err := short(dir)
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	data := fmt.Sprintf("index=off,upperdir=%s,workdir=%s,lowerdir=%s", names[0], names[1], strings.Join(names[2:], ":"))
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount overlay: %d layers are more than this kernel takes", len(d.lower))
	}
	if err := unix.Mount("overlay", d.target, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", d.target, err)
	}
	return nil
}

// probe tries what can be mounted below the root. An answer for want of space would be
// none: layers that are there would be dropped by it.
func (s *Store) probe() error {
	overlay := s.probeOverlay()
	images, tars := Probe(s.path("staging"))
	for _, err := range []error{overlay, images, tars} {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("try what can be mounted: %w", err)
		}
	}
	s.overlay, s.mountable, s.tars = overlay == nil, images == nil, tars == nil
	switch {
	case overlay != nil:
		s.log.Warn("overlayfs can't be used here: every container gets a copy of its image, which is slow and takes its size in disk space", "root", s.cfg.Root, "reason", overlay)
	case s.cfg.Directories || s.tars:
	case s.mountable:
		s.log.Info("layers without compression are copied: an EROFS image can't refer to a tar here", "root", s.cfg.Root, "reason", tars)
	default:
		s.log.Info("layers are unpacked into directories: an EROFS image can't be mounted from a file here", "root", s.cfg.Root, "reason", images)
	}
	return nil
}

// probeOverlay tries whether overlay mounts work below the root, marks included.
func (s *Store) probeOverlay() error {
	if s.cfg.Copy {
		return errors.New("Config.Copy is set")
	}
	dir, err := os.MkdirTemp(s.path("staging"), "probe-")
	if err != nil {
		return err
	}
	return errors.Join(tryOverlay(dir), os.RemoveAll(dir))
}

// tryOverlay mounts an overlay in dir, in which a file and what a directory has
// below are removed, and looks.
func tryOverlay(dir string) error {
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, d := range []string{"low/d", "top/d", "top/alone", "upper", "work", "merged"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"low/f", "low/d/f"} {
		if err := os.WriteFile(at(f), nil, 0o600); err != nil {
			return err
		}
	}
	for _, f := range []string{"top/f", "top/alone/f"} {
		if err := unix.Mknod(at(f), unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("make a whiteout: %w", err)
		}
	}
	if err := unix.Setxattr(at("top/alone"), originXattr, nil, 0); err != nil {
		return fmt.Errorf("mark a directory with whiteouts: %w", err)
	}
	if err := unix.Setxattr(at("top/d"), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark a directory opaque: %w", err)
	}
	err := mountOverlay(overlayDirs{lower: []string{at("top"), at("low")}, upper: at("upper"), work: at("work"), target: at("merged")})
	if err != nil {
		return err
	}
	defer unix.Unmount(at("merged"), unix.MNT_DETACH) //nolint:errcheck // the caller's RemoveAll would fail
	for _, f := range []string{"merged/f", "merged/d/f"} {
		if _, err := os.Lstat(at(f)); err == nil {
			return fmt.Errorf("overlayfs shows what a whiteout removed")
		}
	}
	listed, err := os.ReadDir(at("merged/alone"))
	if err != nil {
		return err
	}
	if len(listed) > 0 {
		return errors.New("overlayfs lists a whiteout")
	}
	return os.WriteFile(at("merged/d/new"), nil, 0o600)
}
