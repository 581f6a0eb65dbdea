package image

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// inheritDirs gives the directories that a layer's archive left out what the layers
// below, the nearest first, say of them: an overlay shows the topmost layer's owner,
// mode and times.
func inheritDirs(dir string, lower, implicit []string) error {
	for _, name := range implicit {
		for _, l := range lower {
			from, err := openBelow(l, name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				break // it is something else there, or gone
			}
			if err != nil {
				return fmt.Errorf("look up %q: %w", clip(name), err)
			}
			err = inheritDir(from, dir, name)
			from.Close()
			if err != nil {
				return fmt.Errorf("take over %q: %w", clip(name), err)
			}
			break
		}
	}
	return nil
}

// openBelow opens a directory without following any symbolic link.
func openBelow(dir, name string) (*os.File, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func inheritDir(from *os.File, dir, name string) error {
	to, err := openBelow(dir, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced later in the archive
	}
	if err != nil {
		return err
	}
	defer to.Close()
	return copyAttributes(int(from.Fd()), int(to.Fd()))
}

// copyAttributes copies owner, mode, extended attributes but overlayfs's, and times
// between open files.
func copyAttributes(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(to, ""), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func copyXattrs(from, to int) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // as large as an attribute can be
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(to, name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}
