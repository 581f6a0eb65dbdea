package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyLayers makes dst a root file system of copies, for hosts without overlayfs,
// and returns the size of its files.
func (s *Store) copyLayers(ctx context.Context, dst string, refs []layerRef) (int64, error) {
	if err := copyTree(ctx, s.path("layers", initLayer, "fs"), dst); err != nil {
		return 0, err
	}
	for _, ref := range refs {
		s.mu.Lock()
		rec := s.layers[ref.Chain]
		s.mu.Unlock()
		if err := applyWhiteouts(dst, rec); err != nil {
			return 0, fmt.Errorf("copy layer %s: %w", ref.Diff, err)
		}
		if err := copyTree(ctx, s.layerFS(ref.Chain), dst); err != nil {
			return 0, fmt.Errorf("copy layer %s: %w", ref.Diff, err)
		}
	}
	if err := fillInit(dst); err != nil {
		return 0, err
	}
	return TreeSize(ctx, dst)
}

// applyWhiteouts removes from dst what a layer removes of those below.
func applyWhiteouts(dst string, rec layerRecord) error {
	for _, name := range rec.Whiteouts {
		dir, base := path.Split(name)
		err := within(dst, path.Clean(dir), func(d string) error { return os.RemoveAll(filepath.Join(d, base)) })
		if err != nil {
			return err
		}
	}
	for _, name := range rec.Opaques {
		err := within(dst, name, func(d string) error {
			entries, err := os.ReadDir(d)
			for _, e := range entries {
				err = errors.Join(err, os.RemoveAll(filepath.Join(d, e.Name())))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// within calls f with a path to a directory of dst. One that is not there, or only
// through a symbolic link, has nothing to be removed from.
func within(dst, name string, f func(dir string) error) error {
	d, err := openBelow(dst, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return f(procPath(int(d.Fd()), ""))
}

// treeCopy copies one tree over another.
type treeCopy struct {
	src, dst string
	links    map[uint64]string // of files with several names: where the first was copied
	dirs     []string          // their times are set last
}

func copyTree(ctx context.Context, src, dst string) error {
	c := &treeCopy{src: src, dst: dst, links: map[uint64]string{}}
	err := filepath.WalkDir(src, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return c.entry(rel)
	})
	for i := len(c.dirs) - 1; err == nil && i >= 0; i-- {
		err = copyMeta(filepath.Join(src, c.dirs[i]), filepath.Join(dst, c.dirs[i]))
	}
	return err
}

// entry copies one file. Its directory was copied before, so nothing on the way is a
// symbolic link.
func (c *treeCopy) entry(rel string) error {
	from, to := filepath.Join(c.src, rel), filepath.Join(c.dst, rel)
	var st, have unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if err := unix.Lstat(to, &have); err == nil {
		if isDir && have.Mode&unix.S_IFMT == unix.S_IFDIR {
			c.dirs = append(c.dirs, rel)
			return nil
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	if first, ok := c.links[st.Ino]; ok && !isDir && st.Nlink > 1 {
		return os.Link(first, to)
	}
	c.links[st.Ino] = to
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		c.dirs = append(c.dirs, rel)
		return os.Mkdir(to, 0o700)
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFREG:
		return copyFile(from, to)
	default:
		if err := unix.Mknod(to, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if err := os.Chmod(to, fs.FileMode(st.Mode&0o777)); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return copyAttributes(int(in.Fd()), int(out.Fd()))
}

func copyMeta(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Open(to)
	if err != nil {
		return err
	}
	defer out.Close()
	return copyAttributes(int(in.Fd()), int(out.Fd()))
}
