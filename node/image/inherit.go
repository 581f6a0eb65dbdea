package image

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// inheritDirs gives the directories that a layer's archive left out what the layers
// below, the nearest first, say of them: an overlay shows the topmost layer's owner,
// mode and times.
func inheritDirs(dir string, lower, implicit []string) error {
	for _, name := range implicit {
		from, err := mergedWith(lower, name)
		if err != nil {
			return fmt.Errorf("look up %q: %w", clip(name), err)
		}
		if from == nil {
			continue
		}
		err = inheritDir(from, dir, name)
		from.Close()
		if err != nil {
			return fmt.Errorf("take over %q: %w", clip(name), err)
		}
	}
	return nil
}

// pruneWhiteouts removes the marks of whiteouts that hide nothing, because no layer
// below has their directory: overlayfs lists the files of such a directory as they
// are, marks included.
func pruneWhiteouts(dir string, lower, whiteouts []string) error {
	merged := map[string]bool{}
	for _, name := range whiteouts {
		d, base := path.Dir(name), path.Base(name)
		if _, known := merged[d]; !known {
			own, hidden, err := descend(dir, d)
			if err != nil || own == nil {
				continue // replaced later in the archive
			}
			own.Close()
			if hidden {
				merged[d] = false
			} else if from, err := mergedWith(lower, d); err != nil {
				return fmt.Errorf("look up %q: %w", clip(d), err)
			} else if from != nil {
				from.Close()
				merged[d] = true
			}
		}
		if merged[d] {
			continue
		}
		err := within(dir, d, func(d string) error { return removeMark(filepath.Join(d, base)) })
		if err != nil {
			return fmt.Errorf("prune whiteout of %q: %w", clip(name), err)
		}
	}
	return nil
}

// removeMark removes a whiteout's mark; what replaced it later in the archive stays.
func removeMark(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return nil
	}
	return unix.Unlink(path)
}

// mergedWith finds the nearest directory below that an overlay merges with a layer's
// of the same name; nil if there is none.
func mergedWith(lower []string, name string) (*os.File, error) {
	for _, l := range lower {
		f, last, err := descend(l, name)
		if f != nil || last || err != nil {
			return f, err
		}
	}
	return nil, nil
}

// descend opens a directory of one layer, nil if it has none. last says that layers
// below this one don't show there: something on the way is opaque, a whiteout, or no
// directory.
func descend(layer, name string) (f *os.File, last bool, err error) {
	f, err = os.Open(layer)
	if err != nil {
		return nil, false, err
	}
	last = isOpaque(f)
	for part := range strings.SplitSeq(name, "/") {
		if part == "." {
			continue
		}
		fd, err := unix.Openat(int(f.Fd()), part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		f.Close()
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, last, nil
		case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP):
			return nil, true, nil
		case err != nil:
			return nil, false, err
		}
		f = os.NewFile(uintptr(fd), part)
		last = last || isOpaque(f)
	}
	return f, last, nil
}

func isOpaque(f *os.File) bool {
	var v [1]byte
	n, err := unix.Fgetxattr(int(f.Fd()), opaqueXattr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
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
