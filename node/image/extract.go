package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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

// extracted is what is known of a layer after it was unpacked.
type extracted struct {
	bytes     int64 // of regular files
	entries   int
	whiteouts []string        // paths that the layer removes
	opaques   []string        // directories of which nothing below shows
	implicit  []string        // directories the archive has files in but doesn't have itself
	skipped   map[string]bool // extended attributes that the file system would not take
}

// extractor unpacks one layer's tar into a directory as overlayfs wants a lower
// one: removed paths as character devices 0/0, opaque directories by attribute.
//
// Every path is resolved with the directory as the root (openat2's
// RESOLVE_IN_ROOT), so neither "..", absolute links nor symbolic links lead out of
// it. Names that try are refused all the same.
type extractor struct {
	root    *os.File
	limits  Limits
	overlay bool // mark whiteouts for overlayfs; otherwise they are only listed
	out     extracted
	dirs    dirCache
	made    map[string]struct{} // directories that were made for want of an entry
	gone    map[string]struct{} // paths that whiteouts removed
	late    []dirTime
	buf     []byte
}

// dirTime is set last, because making what is inside a directory changes it.
type dirTime struct {
	name string
	ts   []unix.Timespec
}

func newExtractor(dir string, limits Limits, overlay bool) (*extractor, error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &extractor{
		root: root, limits: limits, overlay: overlay,
		dirs: dirCache{root: int(root.Fd())},
		made: map[string]struct{}{".": {}}, gone: map[string]struct{}{},
		buf: make([]byte, 256<<10), out: extracted{skipped: map[string]bool{}},
	}, nil
}

func (x *extractor) Close() error {
	x.dirs.drop()
	return x.root.Close()
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
			return x.out, x.finish()
		}
		if err != nil {
			return x.out, badTar(err)
		}
		if x.out.entries++; x.out.entries > x.limits.LayerEntries {
			return x.out, api.InvalidArgument("layer has more than %d entries", x.limits.LayerEntries)
		}
		if err := x.entry(h, tr); err != nil {
			return x.out, fmt.Errorf("unpack %q: %w", clip(h.Name), err)
		}
	}
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
		delete(x.made, ".")
		x.late = append(x.late, dirTime{".", times(h)})
		return x.attributes(x.dirs.root, ".", h)
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
	x.dirs.trim()
	dir, base := path.Split(name)
	fd, err := x.parent(path.Clean(dir))
	if err != nil {
		return err
	}
	return x.create(fd, base, name, h, r)
}

// parent opens a directory, made where the archive lacks it.
func (x *extractor) parent(dir string) (int, error) {
	fd, err := x.dirs.open(dir)
	_, gone := x.gone[dir]
	if err == nil || !errors.Is(err, unix.ENOENT) && !gone {
		return fd, err
	}
	up, base := path.Split(dir)
	upFD, err := x.parent(path.Clean(up))
	if err != nil {
		return -1, err
	}
	if gone && x.overlay {
		if err := x.clear(upFD, base); err != nil { // the mark of its removal
			return -1, err
		}
		if upFD, err = x.parent(path.Clean(up)); err != nil {
			return -1, err
		}
	}
	if err := unix.Mkdirat(upFD, base, 0o755); err != nil {
		return -1, fmt.Errorf("make directory %q: %w", clip(dir), err)
	}
	x.made[dir] = struct{}{}
	if gone {
		if err := x.opaque(dir); err != nil {
			return -1, err
		}
	}
	return x.dirs.open(dir)
}

// create makes an entry in place of what is there.
func (x *extractor) create(fd int, base, name string, h *tar.Header, r io.Reader) error {
	err := x.make(fd, base, name, h, r)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := x.clear(fd, base); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if fd, err = x.parent(path.Clean(path.Dir(name))); err != nil { // clear closed it
		return err
	}
	return x.make(fd, base, name, h, r)
}

func (x *extractor) make(fd int, base, name string, h *tar.Header, r io.Reader) error {
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(fd, base, name, h)
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPath || h.Linkname == "" {
			return api.InvalidArgument("symbolic link has no possible target")
		}
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return err
		}
		return x.attributes(fd, base, h)
	case tar.TypeLink:
		return x.link(fd, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		if h.Devmajor < 0 || h.Devmajor > 0xfffff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return api.InvalidArgument("device number %d:%d", h.Devmajor, h.Devminor)
		}
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			return x.whiteout(name) // that is what overlayfs takes it for
		}
		if err := unix.Mknodat(fd, base, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
		return x.attributes(fd, base, h)
	default:
		return x.file(fd, base, h, r)
	}
}

func (x *extractor) directory(fd int, base, name string, h *tar.Header) error {
	err := unix.Mkdirat(fd, base, uint32(h.Mode&0o7777))
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if e := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); e != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return err
		}
		delete(x.made, name)
	} else if err != nil {
		return err
	}
	if _, ok := x.gone[name]; ok {
		if err := x.opaque(name); err != nil { // it replaces what the whiteout removed
			return err
		}
	}
	x.late = append(x.late, dirTime{name, times(h)})
	return x.attributes(fd, base, h)
}

func (x *extractor) file(fd int, base string, h *tar.Header, r io.Reader) error {
	if h.Size < 0 || h.Size > x.limits.LayerBytes-x.out.bytes {
		return api.InvalidArgument("layer has more than %d bytes", x.limits.LayerBytes)
	}
	f, err := unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(f), base)
	defer file.Close()
	// onlyWriter hides ReadFrom, which would copy with a small buffer.
	n, err := io.CopyBuffer(onlyWriter{file}, r, x.buf)
	x.out.bytes += n
	if err != nil {
		return err
	}
	if n != h.Size {
		return api.InvalidArgument("read archive: %w", io.ErrUnexpectedEOF)
	}
	return x.fileAttributes(f, fd, base, h)
}

type onlyWriter struct{ io.Writer }

func (x *extractor) link(fd int, base string, h *tar.Header) error {
	target, err := cleanName(strings.TrimLeft(h.Linkname, "/"))
	if err != nil || target == "." {
		return api.InvalidArgument("hard link to %q", clip(h.Linkname))
	}
	dir, tbase := path.Split(target)
	tfd, err := x.dirs.open(path.Clean(dir))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(h.Linkname), err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(tfd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return api.InvalidArgument("hard link to %q: %w", clip(h.Linkname), err)
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFCHR && st.Rdev == 0 {
		return api.InvalidArgument("hard link to %q: is no file", clip(h.Linkname))
	}
	return unix.Linkat(tfd, tbase, fd, base, 0)
}

// clear removes what is in the place of a new entry.
func (x *extractor) clear(fd int, base string) error {
	err := unix.Unlinkat(fd, base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = os.RemoveAll(procPath(fd, base))
	}
	x.dirs.drop() // what was opened by name may be gone, fd included
	return err
}

// finish sets the times of directories, children first.
func (x *extractor) finish() error {
	for i := len(x.late) - 1; i >= 0; i-- {
		d := x.late[i]
		x.dirs.trim()
		dir, base := path.Split(d.name)
		fd, err := x.dirs.open(path.Clean(dir))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced later
		}
		if err != nil {
			return err
		}
		if err := unix.UtimesNanoAt(fd, base, d.ts, unix.AT_SYMLINK_NOFOLLOW); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("set time of %q: %w", clip(d.name), err)
		}
	}
	for dir := range x.made {
		x.out.implicit = append(x.out.implicit, dir)
	}
	return nil
}
