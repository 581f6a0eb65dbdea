package image

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// In an image's layers, a file .wh.NAME says that NAME of the layers below is gone,
// and .wh..wh..opq that everything in its directory is.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// opaqueXattr marks a directory for overlayfs as hiding those below.
const opaqueXattr = "trusted.overlay.opaque"

// originXattr, even empty, tells overlayfs that a directory may hold whiteouts. Without
// it a directory that no other layer has is listed as it is, its whiteouts as names
// that can't be opened (Linux 4.15: "no direct iteration for dir with origin xattr").
const originXattr = "trusted.overlay.origin"

// whiteoutKind says what a name in a layer means.
type whiteoutKind int

const (
	none    whiteoutKind = iota
	removed              // the target is gone
	opaque               // all of the target, a directory, is gone
	ignored              // AUFS's own bookkeeping
	invalid
)

// whiteout reads a clean path.
func whiteout(name string) (kind whiteoutKind, target string) {
	dir, base := path.Split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutMeta) {
			return ignored, ""
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return invalid, ""
		}
	}
	switch {
	case base == whiteoutOpaque:
		return opaque, path.Clean(dir)
	case strings.HasPrefix(base, whiteoutMeta):
		return ignored, ""
	case !strings.HasPrefix(base, whiteoutPrefix):
		return none, ""
	}
	switch rest := base[len(whiteoutPrefix):]; rest {
	case "", ".", "..":
		return invalid, ""
	default:
		return removed, path.Join(dir, rest)
	}
}

// opaque hides what the layers below have in a directory.
func (x *extractor) opaque(dir string) error {
	x.out.opaques = append(x.out.opaques, dir)
	fd, err := x.parent(dir)
	if err != nil || !x.mark {
		return err
	}
	if err := x.to.hide(fd); err != nil {
		return fmt.Errorf("mark opaque: %w", err)
	}
	return nil
}

// whiteout hides what the layers below have by a name. What this layer itself has by
// that name stays, wherever in the archive it comes.
func (x *extractor) whiteout(name string) error {
	dir, base := path.Split(name)
	fd, err := x.parent(path.Clean(dir))
	if err != nil {
		return err
	}
	x.gone[name] = struct{}{}
	x.out.whiteouts = append(x.out.whiteouts, name)
	if !x.mark {
		return nil
	}
	if err := x.to.veil(fd); err != nil {
		return fmt.Errorf("mark whiteouts: %w", err)
	}
	err = x.to.mknod(unix.S_IFCHR, 0, 0, fd, base)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	mode, _, err := x.to.stat(fd, base)
	if err != nil {
		return err
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return x.opaque(name)
	}
	return nil
}
