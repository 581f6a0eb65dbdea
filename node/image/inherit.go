package image

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lowers are the layers below one, the nearest first, as directories. They are made
// ready when they are asked for: most layers need one.
type lowers struct {
	n  int
	at func(i int) (string, error)
}

// settle makes a layer fit what is below it: directories that its archive left out
// are what the layers below say of them, because an overlay shows the topmost layer's
// owner, mode and times.
func settle(p place, below lowers, out extracted) error {
	for _, name := range out.implicit {
		from, err := mergedWith(below, name)
		if err != nil {
			return fmt.Errorf("look up %q: %w", clip(name), err)
		}
		if from == nil {
			continue
		}
		err = p.inherit(name, from)
		from.Close()
		if err != nil {
			return fmt.Errorf("take over %q: %w", clip(name), err)
		}
	}
	return nil
}

// mergedWith finds the nearest directory below that an overlay merges with a layer's
// of the same name; nil if there is none.
func mergedWith(below lowers, name string) (*os.File, error) {
	for i := range below.n {
		l, err := below.at(i)
		if err != nil {
			return nil, err
		}
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
	return eachXattr(from, func(name string, value []byte) error {
		if err := unix.Fsetxattr(to, name, value, 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
		return nil
	})
}

// eachXattr calls f with the extended attributes of an open file, but overlayfs's.
func eachXattr(fd int, f func(name string, value []byte) error) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, maxXattr)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return err
		}
		if err := f(name, value[:n]); err != nil {
			return err
		}
	}
	return nil
}
