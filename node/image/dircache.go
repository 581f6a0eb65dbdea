package image

import (
	"golang.org/x/sys/unix"
)

// maxOpenDirs bounds the directories that one extractor keeps open.
const maxOpenDirs = 64

// dirCache opens directories below a root, which symbolic links and ".." can't
// leave, and keeps some open: neighbours in an archive are neighbours in the tree.
type dirCache struct {
	root int
	fds  map[string]int
}

func (c *dirCache) open(dir string) (int, error) {
	if dir == "." {
		return c.root, nil
	}
	if fd, ok := c.fds[dir]; ok {
		return fd, nil
	}
	fd, err := unix.Openat2(c.root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, err
	}
	if c.fds == nil {
		c.fds = make(map[string]int, maxOpenDirs)
	}
	c.fds[dir] = fd
	return fd, nil
}

// trim closes directories where there are too many. Between trims no descriptor that
// open returned is closed, but by drop.
func (c *dirCache) trim() {
	if len(c.fds) > maxOpenDirs {
		c.drop()
	}
}

// drop forgets all: it must be called when anything that was there is removed.
func (c *dirCache) drop() {
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
	clear(c.fds)
}
