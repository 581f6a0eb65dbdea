package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// initLayer is the directory of the lowest layer, among those of real ones.
const initLayer = "init"

// mountPoint is something that a container needs whatever its image has: Docker puts
// the same into a layer of each container's own.
type mountPoint struct {
	path string
	kind fs.FileMode // of the file; 0 is a regular one
	link string
	// real says that a symbolic link in its place is replaced: the engine mounts a
	// file of its own there, which must not land where the image points.
	real bool
}

var mountPoints = []mountPoint{
	{path: "dev", kind: fs.ModeDir},
	{path: "dev/pts", kind: fs.ModeDir},
	{path: "dev/shm", kind: fs.ModeDir},
	{path: "dev/console"},
	{path: "proc", kind: fs.ModeDir},
	{path: "sys", kind: fs.ModeDir},
	{path: "etc", kind: fs.ModeDir},
	{path: "etc/hosts", real: true},
	{path: "etc/hostname", real: true},
	{path: "etc/resolv.conf", real: true},
	{path: "etc/mtab", kind: fs.ModeSymlink, link: "/proc/mounts"},
	{path: ".dockerenv"},
}

// makeInit makes the lowest layer.
func (s *Store) makeInit() error {
	dir := s.path("layers", initLayer, "fs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return fillInit(dir)
}

// fillInit makes those mount points that dir, a root file system, lacks. Nothing is
// written where nothing is lacking.
func fillInit(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, m := range mountPoints {
		fi, err := root.Lstat(m.path)
		switch {
		case err == nil && (!m.real || fi.Mode().Type() != fs.ModeSymlink):
			continue
		case err == nil:
			if err := root.Remove(m.path); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOTDIR) || !errors.Is(err, fs.ErrNotExist):
			continue // its directory is something else, or leads elsewhere: the image knows best
		}
		if err := m.make(root); err != nil {
			return err
		}
	}
	return nil
}

func (m mountPoint) make(root *os.Root) error {
	switch m.kind {
	case fs.ModeDir:
		return root.Mkdir(m.path, 0o755)
	case fs.ModeSymlink:
		return root.Symlink(m.link, filepath.FromSlash(m.path))
	default:
		f, err := root.OpenFile(m.path, os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		return f.Close()
	}
}
