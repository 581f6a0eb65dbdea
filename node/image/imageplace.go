package image

import (
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image/erofs"
)

// imagePlace is an EROFS image file. Contents are written as they come; the tree is
// kept until the layers below are known. Its handles are the writer's IDs.
type imagePlace struct {
	f       *reopened
	w       *erofs.Writer
	room    *share
	hidden  map[erofs.ID]struct{} // opaque directories
	veiled  map[erofs.ID]struct{} // directories with whiteouts
	skipped map[string]struct{}
	// needsTar says, once it is finished, that the tar has contents that the image
	// refers to.
	needsTar bool
}

// newImagePlace makes an image file whose tree takes its memory from room. With tar,
// contents may lie in one.
func newImagePlace(path string, room *share, tar bool) (*imagePlace, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	p := &imagePlace{f: &reopened{path: path, f: f}, room: room, hidden: map[erofs.ID]struct{}{}, veiled: map[erofs.ID]struct{}{}, skipped: map[string]struct{}{}}
	p.w = erofs.New(p.f, erofs.Options{Reserve: room.take, Tar: tar})
	return p, nil
}

func (p *imagePlace) Close() error {
	p.w = nil
	p.room.release()
	return p.f.Close()
}

// reopened is a file that is open only between a write and the next Close: layers
// that wait for those below them hold none.
type reopened struct {
	path string
	f    *os.File
}

func (r *reopened) open() (err error) {
	if r.f == nil {
		r.f, err = os.OpenFile(r.path, os.O_WRONLY, 0)
	}
	return err
}

func (r *reopened) WriteAt(b []byte, off int64) (int, error) {
	if err := r.open(); err != nil {
		return 0, err
	}
	return r.f.WriteAt(b, off)
}

func (r *reopened) Truncate(size int64) error {
	if err := r.open(); err != nil {
		return err
	}
	return r.f.Truncate(size)
}

func (r *reopened) Close() error {
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}

func (p *imagePlace) lost() []string { return slices.Sorted(maps.Keys(p.skipped)) }

// maxLinks is how many symbolic links are followed on one way, as the kernel does.
const maxLinks = 40

func (p *imagePlace) dir(name string) (int, error) {
	at := erofs.Root
	todo := []string{name} // what is to be walked, last first
	for links := 0; len(todo) > 0; {
		var part string
		last := len(todo) - 1
		part, todo[last], _ = strings.Cut(todo[last], "/")
		if todo[last] == "" {
			todo = todo[:last]
		}
		if p.w.Mode(at)&unix.S_IFMT != unix.S_IFDIR {
			return 0, unix.ENOTDIR
		}
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			at = p.w.Parent(at) // the root's is itself
			continue
		case len(part) > maxName:
			return 0, unix.ENAMETOOLONG
		}
		next, err := p.w.Lookup(at, part)
		if err != nil {
			return 0, err
		}
		switch p.w.Mode(next) & unix.S_IFMT {
		case unix.S_IFLNK:
			if links++; links > maxLinks {
				return 0, unix.ELOOP
			}
			target := p.w.Target(next)
			if path.IsAbs(target) {
				at = erofs.Root
			}
			todo = append(todo, target)
		default:
			at = next
		}
	}
	if p.w.Mode(at)&unix.S_IFMT != unix.S_IFDIR {
		return 0, unix.ENOTDIR
	}
	return int(at), nil
}

func (p *imagePlace) trim() {}

// find is Lookup, but for "." too.
func (p *imagePlace) find(dir int, base string) (erofs.ID, error) {
	if base == "." {
		return erofs.ID(dir), nil
	}
	return p.w.Lookup(erofs.ID(dir), base)
}

func (p *imagePlace) stat(dir int, base string) (uint32, bool, error) {
	id, err := p.find(dir, base)
	if err != nil {
		return 0, false, err
	}
	return p.w.Mode(id), p.w.Whiteout(id), nil
}

func (p *imagePlace) mkdir(dir int, base string) error {
	_, err := p.w.Mkdir(erofs.ID(dir), base)
	return tooLarge(err)
}

func (p *imagePlace) symlink(target string, dir int, base string) error {
	_, err := p.w.Symlink(erofs.ID(dir), base, target)
	return tooLarge(err)
}

func (p *imagePlace) link(from int, name string, dir int, base string) error {
	id, err := p.w.Lookup(erofs.ID(from), name)
	if err != nil {
		return err
	}
	return tooLarge(p.w.Link(erofs.ID(dir), base, id))
}

func (p *imagePlace) mknod(kind, major, minor uint32, dir int, base string) error {
	_, err := p.w.Mknod(erofs.ID(dir), base, uint16(kind), major, minor)
	return tooLarge(err)
}

func (p *imagePlace) file(dir int, base string, r io.Reader, size int64, a attributes) (int64, error) {
	if in, ok := r.(inTar); ok {
		id, err := p.w.CreateAt(erofs.ID(dir), base, size, in.at)
		if err != nil {
			return 0, tooLarge(err)
		}
		return size, p.attr(id, a)
	}
	id, n, err := p.w.Create(erofs.ID(dir), base, size, r)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, api.InvalidArgument("read archive: %w", err)
	}
	if err != nil {
		return n, tooLarge(err)
	}
	return n, p.attr(id, a)
}

// clear removes what has a name.
func (p *imagePlace) clear(dir int, base string) error { return p.w.Remove(erofs.ID(dir), base) }

func (p *imagePlace) set(_ string, dir int, base string, a attributes) error {
	id, err := p.find(dir, base)
	if err != nil {
		return err
	}
	return p.attr(id, a)
}

func (p *imagePlace) attr(id erofs.ID, a attributes) error {
	attr := erofs.Attr{
		Perm: uint16(a.perm), UID: uint32(a.uid), GID: uint32(a.gid),
		Mtime: time.Unix(a.times[1].Sec, a.times[1].Nsec),
	}
	for _, x := range a.xattrs {
		if e := (erofs.Xattr{Name: x.name, Value: x.value}); erofs.TakesXattr(e) && suits(x, a.kind) {
			attr.Xattrs = append(attr.Xattrs, e)
		} else {
			p.skipped[x.name] = struct{}{}
		}
	}
	return tooLarge(p.w.SetAttr(id, attr))
}

// suits says whether Linux would let a kind of file have an attribute.
func suits(x xattr, kind uint32) bool {
	switch {
	case strings.HasPrefix(x.name, "user."):
		return len(x.name) > len("user.") && (kind == unix.S_IFREG || kind == unix.S_IFDIR)
	case strings.HasPrefix(x.name, "system."):
		// A list of access rights: a version, and entries of eight bytes.
		fits := len(x.value) >= 4 && (len(x.value)-4)%8 == 0 && x.value[:4] == "\x02\x00\x00\x00"
		return fits && kind != unix.S_IFLNK && (kind == unix.S_IFDIR || x.name != "system.posix_acl_default")
	default:
		return !strings.HasSuffix(x.name, ".")
	}
}

// tooLarge gives what exceeds the format or the memory allowed its class.
func tooLarge(err error) error {
	if errors.Is(err, erofs.ErrTooLarge) {
		return api.InvalidArgument("layer does not fit into an image: %w", err)
	}
	return err
}

func (p *imagePlace) hide(dir int) error {
	p.hidden[erofs.ID(dir)] = struct{}{}
	return nil
}

func (p *imagePlace) veil(dir int) error {
	p.veiled[erofs.ID(dir)] = struct{}{}
	return nil
}

func (p *imagePlace) seal() error { return errors.Join(p.w.Flush(), p.f.Close()) }

// walk finds what has a path, without following any symbolic link.
func (p *imagePlace) walk(name string) (id erofs.ID, ok bool) {
	for part := range strings.SplitSeq(name, "/") {
		if part == "." {
			continue
		}
		next, err := p.w.Lookup(id, part)
		if err != nil {
			return 0, false
		}
		id = next
	}
	return id, true
}

func (p *imagePlace) inherit(name string, from *os.File) error {
	id, ok := p.walk(name)
	if !ok || p.w.Mode(id)&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	a := attributes{
		kind: unix.S_IFDIR, perm: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid),
		times: []unix.Timespec{st.Atim, st.Mtim},
	}
	err := eachXattr(int(from.Fd()), func(name string, value []byte) error {
		a.xattrs = append(a.xattrs, xattr{name, string(value)})
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(a.xattrs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return p.attr(id, a)
}

// finish writes the tree. What Close then closes is a whole image.
func (p *imagePlace) finish() error {
	for id := range p.hidden {
		if err := p.w.AddXattr(id, erofs.Xattr{Name: opaqueXattr, Value: "y"}); err != nil {
			return tooLarge(err)
		}
	}
	for id := range p.veiled {
		if err := p.w.AddXattr(id, erofs.Xattr{Name: originXattr}); err != nil {
			return tooLarge(err)
		}
	}
	_, err := p.w.Finish()
	p.needsTar = p.w.NeedsTar()
	return tooLarge(err)
}
