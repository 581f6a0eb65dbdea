package image

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// place is where a layer's entries go: a directory, or an image file. The extractor
// decides what an entry means and whether it is allowed, a place only does it.
//
// Directories are named by handles, which are good until the next trim or clear.
// Errors are the kernel's numbers wherever the extractor looks at them.
type place interface {
	// dir finds a directory by its path. Symbolic links on the way are followed, but
	// neither they nor ".." lead out.
	dir(path string) (handle int, err error)
	trim()
	// stat is what a name in a directory is: the mode, and whether it marks a whiteout.
	stat(dir int, base string) (mode uint32, mark bool, err error)
	mkdir(dir int, base string) error
	symlink(target string, dir int, base string) error
	link(from int, name string, dir int, base string) error
	mknod(kind uint32, major, minor uint32, dir int, base string) error
	// file makes a regular one of size bytes, with its attributes.
	file(dir int, base string, r io.Reader, size int64, a attributes) (int64, error)
	// clear removes what has a name.
	clear(dir int, base string) error
	// set sets attributes of what is called base in dir, and name in the layer; base
	// "." is the directory itself.
	set(name string, dir int, base string, a attributes) error
	// hide marks a directory as showing nothing of the layers below.
	hide(dir int) error
	// veil marks a directory as having whiteouts among its files.
	veil(dir int) error
	// seal ends the archive: no more entries come.
	seal() error

	// What follows is used once the layers below are known. Names are paths without
	// symbolic links; what was replaced by something else is passed over.

	inherit(name string, from *os.File) error

	// finish makes the layer whole. Close alone leaves it unusable.
	finish() error
	Close() error
	// lost are extended attributes that could not be kept.
	lost() []string
}

// attributes are what an entry's header says, checked.
type attributes struct {
	kind     uint32 // as in a mode
	perm     uint32
	uid, gid int
	times    []unix.Timespec // access, modification
	xattrs   []xattr         // sorted by name
}

type xattr struct{ name, value string }

// xattrPrefix is how tars carry extended attributes, in PAX records.
const xattrPrefix = "SCHILY.xattr."

// maxXattr is how long an attribute's value may be, in bytes; Linux's own limit.
const maxXattr = 64 << 10

func attributesOf(h *tar.Header) (attributes, error) {
	a := attributes{perm: uint32(h.Mode & 0o7777), uid: h.Uid, gid: h.Gid, times: times(h)}
	switch h.Typeflag {
	case tar.TypeDir:
		a.kind = unix.S_IFDIR
	case tar.TypeSymlink:
		a.kind = unix.S_IFLNK
	case tar.TypeChar:
		a.kind = unix.S_IFCHR
	case tar.TypeBlock:
		a.kind = unix.S_IFBLK
	case tar.TypeFifo:
		a.kind = unix.S_IFIFO
	default:
		a.kind = unix.S_IFREG
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return a, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		// Overlayfs's own would redirect look-ups to files that the archive has no
		// business with.
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if name == capabilityXattr && !validCapability(value) {
			return a, fmt.Errorf("attribute %q is no set of capabilities", name)
		}
		if len(value) > maxXattr {
			return a, api.InvalidArgument("attribute %q is longer than %d bytes", clip(name), maxXattr)
		}
		a.xattrs = append(a.xattrs, xattr{name, value})
	}
	slices.SortFunc(a.xattrs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return a, nil
}

// capabilityXattr is never skipped: without it a program would behave otherwise than
// its image says.
const capabilityXattr = "security.capability"

// validCapability knows versions 2 and 3 of struct vfs_cap_data, as the kernel does
// when it is asked to keep one.
func validCapability(v string) bool {
	if len(v) < 4 {
		return false
	}
	switch v[3] { // of a little-endian number, the highest byte is the version
	case 2:
		return len(v) == 20
	case 3:
		return len(v) == 24
	default:
		return false
	}
}

// times of an entry. Those the kernel can't say are cut to what it can.
func times(h *tar.Header) []unix.Timespec {
	at, mt := h.AccessTime, h.ModTime
	if at.IsZero() || at.Before(mt) {
		at = mt
	}
	ts := make([]unix.Timespec, 2)
	for i, t := range []time.Time{at, mt} {
		ts[i] = unix.Timespec{
			Sec:  max(math.MinInt32, min(t.Unix(), 1<<34-1)), // ext4's range, the narrowest in use
			Nsec: int64(t.Nanosecond()),
		}
	}
	return ts
}
