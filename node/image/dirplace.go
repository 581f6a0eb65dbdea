package image

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// dirPlace is a directory as overlayfs wants a lower one: removed paths as character
// devices 0/0, opaque directories by attribute.
//
// Every path is resolved with the directory as the root (openat2's RESOLVE_IN_ROOT).
type dirPlace struct {
	path    string
	root    *os.File
	dirs    dirCache
	late    []dirTime
	skipped map[string]struct{}
	buf     []byte
}

// dirTime is set last, because making what is inside a directory changes it.
type dirTime struct {
	name string
	ts   []unix.Timespec
}

// newDirPlace makes a directory.
func newDirPlace(dir string) (*dirPlace, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &dirPlace{
		path: dir, root: root, dirs: dirCache{root: int(root.Fd())},
		skipped: map[string]struct{}{}, buf: make([]byte, 256<<10),
	}, nil
}

func (p *dirPlace) Close() error {
	p.dirs.drop()
	if err := p.root.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (p *dirPlace) lost() []string { return slices.Sorted(maps.Keys(p.skipped)) }

func (p *dirPlace) dir(name string) (int, error) { return p.dirs.open(name) }

func (p *dirPlace) trim() { p.dirs.trim() }

func (p *dirPlace) stat(dir int, base string) (uint32, bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, false, err
	}
	return st.Mode, st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0, nil
}

func (p *dirPlace) mkdir(dir int, base string) error { return unix.Mkdirat(dir, base, 0o755) }

func (p *dirPlace) symlink(target string, dir int, base string) error {
	return unix.Symlinkat(target, dir, base)
}

func (p *dirPlace) link(from int, name string, dir int, base string) error {
	return unix.Linkat(from, name, dir, base, 0)
}

func (p *dirPlace) mknod(kind, major, minor uint32, dir int, base string) error {
	return unix.Mknodat(dir, base, kind, int(unix.Mkdev(major, minor)))
}

func (p *dirPlace) file(dir int, base string, r io.Reader, size int64, a attributes) (int64, error) {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, err
	}
	file := os.NewFile(uintptr(fd), base)
	defer file.Close()
	// onlyWriter hides ReadFrom, which would copy with a small buffer.
	n, err := io.CopyBuffer(onlyWriter{file}, r, p.buf)
	if err != nil {
		return n, err
	}
	if n != size {
		return n, api.InvalidArgument("read archive: %w", io.ErrUnexpectedEOF)
	}
	// Owner first: changing it drops set-user-ID bits and capabilities.
	if a.uid != 0 || a.gid != 0 {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return n, fmt.Errorf("set owner: %w", err)
		}
	}
	if err := unix.Fchmod(fd, a.perm); err != nil {
		return n, fmt.Errorf("set mode: %w", err)
	}
	err = p.xattrs(a.xattrs, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
	if err != nil {
		return n, err
	}
	if err := unix.UtimesNanoAt(dir, base, a.times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return n, fmt.Errorf("set time: %w", err)
	}
	return n, nil
}

type onlyWriter struct{ io.Writer }

func (p *dirPlace) clear(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = os.RemoveAll(procPath(dir, base))
	}
	p.dirs.drop() // what was opened by name may be gone, dir included
	return err
}

func (p *dirPlace) set(name string, dir int, base string, a attributes) error {
	if err := unix.Fchownat(dir, base, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if a.kind != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, base, a.perm, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	err := p.xattrs(a.xattrs, func(name string, value []byte) error {
		return unix.Lsetxattr(procPath(dir, base), name, value, 0)
	})
	if err != nil {
		return err
	}
	if a.kind == unix.S_IFDIR {
		p.late = append(p.late, dirTime{p.real(name, dir, base), a.times})
		return nil
	}
	if err := unix.UtimesNanoAt(dir, base, a.times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// real is a directory's path without symbolic links, which later entries may replace.
func (p *dirPlace) real(name string, dir int, base string) string {
	root, err := os.Readlink(procPath(int(p.root.Fd()), ""))
	if err != nil {
		return name
	}
	at, err := os.Readlink(procPath(dir, ""))
	if err != nil { // longer than the kernel says
		return name
	}
	rel, inside := strings.CutPrefix(at, root)
	if !inside {
		return name
	}
	return path.Join(".", rel, base)
}

// xattrs sets extended attributes. Those the file system doesn't take are skipped,
// but for file capabilities.
func (p *dirPlace) xattrs(xs []xattr, set func(string, []byte) error) error {
	for _, x := range xs {
		err := set(x.name, []byte(x.value))
		if err == nil {
			continue
		}
		refused := []error{unix.ENOTSUP, unix.EPERM, unix.EINVAL}
		if x.name == capabilityXattr || !slices.ContainsFunc(refused, func(e error) bool { return errors.Is(err, e) }) {
			return fmt.Errorf("set attribute %q: %w", clip(x.name), err)
		}
		p.skipped[x.name] = struct{}{}
	}
	return nil
}

func (p *dirPlace) hide(dir int) error {
	return unix.Setxattr(procPath(dir, "."), opaqueXattr, []byte("y"), 0)
}

func (p *dirPlace) veil(dir int) error {
	return unix.Setxattr(procPath(dir, "."), originXattr, nil, 0)
}

// replaced says whether an error means that a directory is none any more: a later
// entry took its place, or that of one above it, perhaps a link to anywhere.
func replaced(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG)
}

// seal sets the times of directories, which the files made in them have changed.
func (p *dirPlace) seal() error {
	for _, d := range p.late {
		p.trim()
		dir, base := path.Split(d.name)
		fd, err := p.dirs.open(path.Clean(dir))
		if replaced(err) {
			continue
		}
		if err != nil {
			return err
		}
		if mode, _, err := p.stat(fd, base); err != nil || mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if err := unix.UtimesNanoAt(fd, base, d.ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set time of %q: %w", clip(d.name), err)
		}
	}
	p.late = nil
	return nil
}

func (p *dirPlace) inherit(name string, from *os.File) error {
	to, err := openBelow(p.path, name)
	if replaced(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer to.Close()
	return copyAttributes(int(from.Fd()), int(to.Fd()))
}

func (p *dirPlace) finish() error { return nil }
