package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// Limits bound what an archive may make the host do. Zero fields mean the default.
type Limits struct {
	LayerBytes   int64 // of one layer, unpacked; default 256 GiB
	LayerEntries int   // files, directories, … of one layer; default 4 million
	Members      int   // files of an image archive; default 100,000
	ArchiveBytes int64 // of an image archive, decompressed; default 1 TiB
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.LayerBytes, 256<<30)
	def(&l.ArchiveBytes, 1<<40)
	if l.LayerEntries == 0 {
		l.LayerEntries = 4_000_000
	}
	if l.Members == 0 {
		l.Members = 100_000
	}
	return l
}

// tarBytes is how large a layer's tar may be. One of many small files is larger than
// they are: 512 bytes of header and up to 511 of padding each, more with long names.
func (l Limits) tarBytes() int64 { return l.LayerBytes + int64(l.LayerEntries)*4096 }

// extracted is what is known of a layer after its archive was read.
type extracted struct {
	bytes     int64 // of regular files
	entries   int
	whiteouts []string // paths that the layer removes
	opaques   []string // directories of which nothing below shows
	implicit  []string // directories the archive has files in but doesn't have itself
}

// extractor reads one layer's tar, refuses what no layer should have, and puts the
// rest in a place. Names that try to lead out of it are refused although no place
// would let them.
type extractor struct {
	to     place
	limits Limits
	mark   bool // mark whiteouts for overlayfs; otherwise they are only listed
	out    extracted
	made   map[string]struct{} // directories that were made for want of an entry
	gone   map[string]struct{} // paths that whiteouts removed
	now    []unix.Timespec     // the entry's: what is made for want of one gets it
	raw    *rawTar             // what is read, if contents can stay in it; else nil
}

func newExtractor(to place, limits Limits, mark bool) *extractor {
	return &extractor{to: to, limits: limits, mark: mark, made: map[string]struct{}{}, gone: map[string]struct{}{}}
}

// run unpacks the tar to its end mark. Errors name the entry.
func (x *extractor) run(ctx context.Context, r io.Reader) (extracted, error) {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return x.out, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return x.out, x.end()
		}
		if err != nil {
			return x.out, badTar(err)
		}
		if x.out.entries++; x.out.entries > x.limits.LayerEntries {
			return x.out, api.InvalidArgument("layer has more than %d entries", x.limits.LayerEntries)
		}
		if x.now = times(h); x.out.entries == 1 {
			if err := x.root(); err != nil {
				return x.out, err
			}
		}
		if err := x.entry(h, tr); err != nil {
			return x.out, blame(fmt.Errorf("unpack %q: %w", clip(h.Name), err), err)
		}
	}
}

// root gives the root directory what it has until there is an entry for it.
func (x *extractor) root() error {
	x.made["."] = struct{}{}
	fd, err := x.to.dir(".")
	if err != nil {
		return err
	}
	return x.to.set(".", fd, ".", x.implied())
}

// implied are the attributes of a directory that has no entry.
func (x *extractor) implied() attributes {
	return attributes{kind: unix.S_IFDIR, perm: 0o755, times: x.now}
}

func (x *extractor) end() error {
	if x.out.entries == 0 {
		x.now = []unix.Timespec{{}, {}}
		if err := x.root(); err != nil {
			return err
		}
	}
	for dir := range x.made {
		x.out.implicit = append(x.out.implicit, dir)
	}
	return x.to.seal()
}

// badTar gives what archive/tar says of a damaged archive its class. Errors of the
// stream below stay what they are.
func badTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return api.InvalidArgument("read archive: %w", err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// clip shortens a name for an error.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

const (
	maxPath = 4095 // bytes, as the kernel's PATH_MAX
	maxName = 255  // bytes, as its NAME_MAX
)

// cleanName makes a tar's name a path below the root: "." is the root itself.
func cleanName(name string) (string, error) {
	switch {
	case len(name) > maxPath:
		return "", api.InvalidArgument("name is longer than %d bytes", maxPath)
	case strings.ContainsRune(name, 0):
		return "", api.InvalidArgument("name has a NUL byte")
	case path.IsAbs(name) && path.Clean(name) != "/":
		return "", api.InvalidArgument("name is absolute")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", api.InvalidArgument("name leads out of the archive")
		}
		if len(part) > maxName {
			return "", api.InvalidArgument("name has a part longer than %d bytes", maxName)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir, tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo: //nolint:staticcheck // TypeRegA is what old archives have
	default:
		return api.InvalidArgument("unknown kind of entry %q", h.Typeflag)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return api.InvalidArgument("the root is not a directory")
		}
		return x.rootEntry(h)
	}
	kind, target := whiteout(name)
	switch kind {
	case ignored:
		return nil
	case opaque:
		return x.opaque(target)
	case removed:
		return x.whiteout(target)
	case invalid:
		return api.InvalidArgument("whiteout names nothing")
	}
	x.to.trim()
	dir, base := path.Split(name)
	fd, err := x.parent(path.Clean(dir))
	if err != nil {
		return err
	}
	return x.create(fd, base, name, h, r)
}

// blame gives errors their class that only an archive can cause, by names that lead
// nowhere or through what is no directory.
func blame(err, cause error) error {
	for _, e := range []error{unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EISDIR} {
		if errors.Is(cause, e) {
			return api.InvalidArgument("%w", err)
		}
	}
	return err
}

func (x *extractor) rootEntry(h *tar.Header) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	fd, err := x.to.dir(".")
	if err != nil {
		return err
	}
	delete(x.made, ".")
	return x.to.set(".", fd, ".", a)
}

// parent opens a directory, made where the archive lacks it.
func (x *extractor) parent(dir string) (int, error) {
	fd, err := x.to.dir(dir)
	_, gone := x.gone[dir]
	if err == nil || !errors.Is(err, unix.ENOENT) && !gone {
		return fd, err
	}
	up, base := path.Split(dir)
	upFD, err := x.parent(path.Clean(up))
	if err != nil {
		return -1, err
	}
	if gone && x.mark {
		if err := x.to.clear(upFD, base); err != nil { // the mark of its removal
			return -1, err
		}
		if upFD, err = x.parent(path.Clean(up)); err != nil {
			return -1, err
		}
	}
	if err := x.to.mkdir(upFD, base); err != nil {
		return -1, fmt.Errorf("make directory %q: %w", clip(dir), err)
	}
	if err := x.to.set(dir, upFD, base, x.implied()); err != nil {
		return -1, err
	}
	x.made[dir] = struct{}{}
	if gone {
		if err := x.opaque(dir); err != nil {
			return -1, err
		}
	}
	return x.to.dir(dir)
}

// create makes an entry in place of what is there.
func (x *extractor) create(fd int, base, name string, h *tar.Header, r io.Reader) error {
	a, err := attributesOf(h)
	if err != nil {
		return err
	}
	err = x.make(fd, base, name, h, a, r)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := x.to.clear(fd, base); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if fd, err = x.parent(path.Clean(path.Dir(name))); err != nil { // clear closed it
		return err
	}
	return x.make(fd, base, name, h, a, r)
}

func (x *extractor) make(fd int, base, name string, h *tar.Header, a attributes, r io.Reader) error {
	switch a.kind {
	case unix.S_IFDIR:
		return x.directory(fd, base, name, a)
	case unix.S_IFLNK:
		if len(h.Linkname) > maxPath || h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
			return api.InvalidArgument("symbolic link has no possible target")
		}
		if err := x.to.symlink(h.Linkname, fd, base); err != nil {
			return err
		}
		return x.to.set(name, fd, base, a)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
		if h.Devmajor < 0 || h.Devmajor > 0xfffff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return api.InvalidArgument("device number %d:%d", h.Devmajor, h.Devminor)
		}
		if a.kind == unix.S_IFCHR && h.Devmajor == 0 && h.Devminor == 0 {
			return x.whiteout(name) // that is what overlayfs takes it for
		}
		if err := x.to.mknod(a.kind, uint32(h.Devmajor), uint32(h.Devminor), fd, base); err != nil {
			return err
		}
		return x.to.set(name, fd, base, a)
	}
	if h.Typeflag == tar.TypeLink {
		return x.link(fd, base, h)
	}
	if h.Size < 0 || h.Size > x.limits.LayerBytes-x.out.bytes {
		return api.InvalidArgument("layer has more than %d bytes", x.limits.LayerBytes)
	}
	if x.raw != nil {
		r = x.raw.contents(h, r)
	}
	n, err := x.to.file(fd, base, r, h.Size, a)
	x.out.bytes += n
	return err
}

func (x *extractor) directory(fd int, base, name string, a attributes) error {
	err := x.to.mkdir(fd, base)
	if errors.Is(err, unix.EEXIST) {
		if mode, _, e := x.to.stat(fd, base); e != nil || mode&unix.S_IFMT != unix.S_IFDIR {
			return err
		}
	} else if err != nil {
		return err
	}
	delete(x.made, name)
	if _, ok := x.gone[name]; ok {
		if err := x.opaque(name); err != nil { // it replaces what the whiteout removed
			return err
		}
	}
	return x.to.set(name, fd, base, a)
}

func (x *extractor) link(fd int, base string, h *tar.Header) error {
	target, err := cleanName(strings.TrimLeft(h.Linkname, "/"))
	if err != nil || target == "." {
		return api.InvalidArgument("hard link to %q", clip(h.Linkname))
	}
	dir, name := path.Split(target)
	from, err := x.to.dir(path.Clean(dir))
	if errors.Is(err, unix.ENOENT) {
		return api.InvalidArgument("hard link to %q: %w", clip(h.Linkname), err)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(h.Linkname), err)
	}
	mode, mark, err := x.to.stat(from, name)
	if err != nil {
		return api.InvalidArgument("hard link to %q: %w", clip(h.Linkname), err)
	}
	if mode&unix.S_IFMT == unix.S_IFDIR || mark {
		return api.InvalidArgument("hard link to %q: is no file", clip(h.Linkname))
	}
	return x.to.link(from, name, fd, base)
}
