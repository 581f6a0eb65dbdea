package node

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// fillVolume copies what an image has at a volume's place into the volume, if the
// volume is empty: files, owners, modes, times and extended attributes. dir is a
// path inside the image; links in it are followed within the image only.
func fillVolume(rootfs, dir, volume string) error {
	old, err := os.ReadDir(volume)
	if err != nil || len(old) > 0 {
		return err
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	src, err := root.OpenRoot(filepath.Clean("." + dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(volume)
	if err != nil {
		return err
	}
	defer dst.Close()
	return copyTree(src, dst)
}

// copyTree copies everything below one directory to another. Both ends stay
// inside their roots whatever the links say.
func copyTree(src, dst *os.Root) error {
	var dirs []string // their times and modes are set last, deepest first
	err := fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := src.Lstat(name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, name)
			if name == "." {
				return nil
			}
			return dst.Mkdir(name, 0o700)
		}
		if err := copyEntry(src, dst, name, info); err != nil {
			return err
		}
		return copyAttributes(dst, name, info)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		info, err := src.Lstat(dirs[i])
		if err != nil {
			return err
		}
		if err := copyAttributes(dst, dirs[i], info); err != nil {
			return err
		}
	}
	return nil
}

func copyEntry(src, dst *os.Root, name string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case 0:
		return copyFile(src, dst, name)
	case fs.ModeSymlink:
		target, err := src.Readlink(name)
		if err != nil {
			return err
		}
		return dst.Symlink(target, name)
	default: // a device, a pipe or a socket
		st := info.Sys().(*syscall.Stat_t)
		dir, err := dst.Open(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer dir.Close()
		return unix.Mknodat(int(dir.Fd()), filepath.Base(name), st.Mode, int(st.Rdev))
	}
}

func copyFile(src, dst *os.Root, name string) error {
	in, err := src.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dst.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	copyXattrs(in, out)
	return out.Close()
}

// copyXattrs copies what can be copied: a file system that lacks attributes is
// no reason to fail.
func copyXattrs(in, out *os.File) {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(in.Fd()), buf)
	if err != nil {
		return
	}
	value := make([]byte, 64<<10)
	for names := buf[:n]; len(names) > 0; {
		name := unix.ByteSliceToString(names)
		names = names[min(len(name)+1, len(names)):]
		if m, err := unix.Fgetxattr(int(in.Fd()), name, value); err == nil {
			_ = unix.Fsetxattr(int(out.Fd()), name, value[:m], 0)
		}
	}
}

func copyAttributes(dst *os.Root, name string, info fs.FileInfo) error {
	st := info.Sys().(*syscall.Stat_t)
	if err := dst.Lchown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err := dst.Chmod(name, info.Mode()); err != nil {
		return err
	}
	return dst.Chtimes(name, info.ModTime(), info.ModTime())
}
