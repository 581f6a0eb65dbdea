package erofs

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// ID names an inode of one Writer.
type ID uint32

// Root is the root directory, which is there from the beginning.
const Root ID = 0

// Errors of a tree's operations are the kernel's own, so that who builds a tree here
// or on a file system need not care which.
const (
	errExist    = unix.EEXIST
	errNotExist = unix.ENOENT
	errNotDir   = unix.ENOTDIR
)

// ErrTooLarge means that something exceeds what the format can take.
var ErrTooLarge = errors.New("erofs: too large")

// Attr are an inode's attributes.
type Attr struct {
	Perm     uint16 // the lower twelve bits of the mode
	UID, GID uint32
	Mtime    time.Time
	Xattrs   []Xattr
}

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// TakesXattr says whether an attribute can be kept at all.
func TakesXattr(x Xattr) bool {
	_, _, ok := xattrName(x.Name)
	return ok && len(x.Value) <= maxXattr
}

const (
	maxXattr = 64 << 10 // bytes of a value; the kernel's own limit
	// maxXattrs is what the inode's count of words can say, header included.
	maxXattrs = xattrHeader + (1<<16-2)*4
)

type inode struct {
	mode     uint16
	nsec     uint32
	uid, gid uint32
	nlink    uint32 // names; a directory's are counted at the end
	device   uint32
	block    uint32 // where a file's contents begin, or in Finish a directory's
	slot     uint32 // where the inode goes, from the inodes' beginning; set by Finish
	layout   uint8  // set by Finish
	placed   bool   // Finish has given it its slot
	inTar    bool   // block is one of the tar's
	sec      int64
	size     int64
	xattrs   string // encoded
	link     string // a symbolic link's target
	dir      *directory
}

type entry struct {
	name string
	id   ID
}

// directory keeps its entries in a list, and once they are many an index to it.
type directory struct {
	parent ID
	list   []entry
	index  map[string]int32
}

const indexFrom = 16 // entries

func (d *directory) find(name string) int {
	if d.index != nil {
		if i, ok := d.index[name]; ok {
			return int(i)
		}
		return -1
	}
	for i := range d.list {
		if d.list[i].name == name {
			return i
		}
	}
	return -1
}

func (d *directory) add(name string, id ID) {
	d.list = append(d.list, entry{name, id})
	switch {
	case d.index != nil:
		d.index[name] = int32(len(d.list) - 1)
	case len(d.list) == indexFrom:
		d.index = make(map[string]int32, 2*indexFrom)
		for i, e := range d.list {
			d.index[e.name] = int32(i)
		}
	}
}

func (d *directory) remove(i int) {
	last := len(d.list) - 1
	if d.index != nil {
		delete(d.index, d.list[i].name)
		if i != last {
			d.index[d.list[last].name] = int32(i)
		}
	}
	d.list[i] = d.list[last]
	d.list[last] = entry{}
	d.list = d.list[:last]
}

// chunk is how many inodes lie together: growing never copies all of them.
const chunk = 1 << 10

func (w *Writer) node(id ID) *inode { return &w.inodes[id/chunk][id%chunk] }

// newInode returns an inode without a name. Numbers are never used twice.
func (w *Writer) newInode(mode uint16) (ID, error) {
	if w.count == 1<<32-1 {
		return 0, ErrTooLarge
	}
	if err := w.charge(inodeCost); err != nil {
		return 0, err
	}
	if w.count%chunk == 0 {
		w.inodes = append(w.inodes, make([]inode, chunk))
	}
	id := ID(w.count)
	w.count++
	n := w.node(id)
	n.mode = mode
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n.dir = &directory{}
	}
	return id, nil
}

// inodeCost is what an entry takes of memory beside its strings, in bytes.
const inodeCost = 200

// step is how much memory is reserved at once.
const step = 256 << 10

// charge counts memory, which is not given back until the writer is done.
func (w *Writer) charge(n int) error {
	w.memory += int64(n)
	if w.o.Reserve == nil || w.memory <= w.reserved {
		return nil
	}
	more := (w.memory - w.reserved + step - 1) / step * step
	if err := w.o.Reserve(more); err != nil {
		return err
	}
	w.reserved += more
	return nil
}

// directory is a directory to look things up in.
func (w *Writer) directory(id ID) (*directory, error) {
	if d := w.node(id).dir; d != nil {
		return d, nil
	}
	return nil, errNotDir
}

// Lookup finds an entry of a directory. "." and ".." are none.
func (w *Writer) Lookup(dir ID, name string) (ID, error) {
	d, err := w.directory(dir)
	if err != nil {
		return 0, err
	}
	if i := d.find(name); i >= 0 {
		return d.list[i].id, nil
	}
	return 0, errNotExist
}

// Parent is the directory that a directory is in; the root's is itself.
func (w *Writer) Parent(dir ID) ID { return w.node(dir).dir.parent }

// Mode is an inode's type and permissions, as in stat(2).
func (w *Writer) Mode(id ID) uint32 { return uint32(w.node(id).mode) }

// Whiteout says whether an inode is the mark by which overlayfs hides a name.
func (w *Writer) Whiteout(id ID) bool {
	n := w.node(id)
	return n.mode&unix.S_IFMT == unix.S_IFCHR && n.device == 0
}

// Target is where a symbolic link leads.
func (w *Writer) Target(id ID) string { return w.node(id).link }

// put gives an inode a name.
func (w *Writer) put(dir ID, name string, id ID) error {
	d, err := w.directory(dir)
	switch {
	case err != nil:
		return err
	case name == "" || name == "." || name == "..":
		return errExist
	case len(name) > 255:
		return unix.ENAMETOOLONG
	case d.find(name) >= 0:
		return errExist
	}
	if err := w.charge(len(name)); err != nil {
		return err
	}
	d.add(name, id)
	n := w.node(id)
	n.nlink++
	if n.dir != nil {
		n.dir.parent = dir
	}
	return nil
}

func (w *Writer) make(dir ID, name string, mode uint16) (ID, error) {
	if d, err := w.directory(dir); err != nil {
		return 0, err
	} else if d.find(name) >= 0 {
		return 0, errExist
	}
	id, err := w.newInode(mode)
	if err != nil {
		return 0, err
	}
	return id, w.put(dir, name, id)
}

// Mkdir makes an empty directory.
func (w *Writer) Mkdir(dir ID, name string) (ID, error) {
	return w.make(dir, name, unix.S_IFDIR|0o755)
}

// Symlink makes a symbolic link.
func (w *Writer) Symlink(dir ID, name, target string) (ID, error) {
	if len(target) >= pageSize {
		return 0, unix.ENAMETOOLONG
	}
	id, err := w.make(dir, name, unix.S_IFLNK|0o777)
	if err != nil {
		return 0, err
	}
	n := w.node(id)
	n.link, n.size = target, int64(len(target))
	return id, w.charge(len(target))
}

// Mknod makes a device, a FIFO or a socket; kind is that of a mode.
func (w *Writer) Mknod(dir ID, name string, kind uint16, major, minor uint32) (ID, error) {
	switch kind {
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return 0, unix.EINVAL
	}
	id, err := w.make(dir, name, kind)
	if err != nil {
		return 0, err
	}
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		w.node(id).device = device(major, minor)
	}
	return id, nil
}

// Link gives what is no directory another name.
func (w *Writer) Link(dir ID, name string, id ID) error {
	if w.node(id).dir != nil {
		return unix.EPERM
	}
	return w.put(dir, name, id)
}

// Remove removes a name, of a directory with all that is in it. Contents that were
// written already stay in the image, where nothing leads to them.
func (w *Writer) Remove(dir ID, name string) error {
	d, err := w.directory(dir)
	if err != nil {
		return err
	}
	i := d.find(name)
	if i < 0 {
		return errNotExist
	}
	id := d.list[i].id
	d.remove(i)
	for gone := []ID{id}; len(gone) > 0; {
		n := w.node(gone[len(gone)-1])
		gone = gone[:len(gone)-1]
		if n.nlink--; n.dir != nil {
			for _, e := range n.dir.list {
				gone = append(gone, e.id)
			}
		}
	}
	return nil
}

// SetAttr sets all attributes. Those for which TakesXattr is false must not be among
// them.
func (w *Writer) SetAttr(id ID, a Attr) error {
	n := w.node(id)
	n.mode = n.mode&unix.S_IFMT | a.Perm&0o7777
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		n.mode = unix.S_IFLNK | 0o777 // as on every Linux file system
	}
	n.uid, n.gid = a.UID, a.GID
	n.sec, n.nsec = a.Mtime.Unix(), uint32(a.Mtime.Nanosecond())
	n.xattrs = encodeXattrs(a.Xattrs)
	if len(n.xattrs) > maxXattrs {
		return unix.ENOSPC
	}
	return w.charge(len(n.xattrs))
}

// AddXattr adds an attribute to those that SetAttr set.
func (w *Writer) AddXattr(id ID, x Xattr) error {
	n := w.node(id)
	more := encodeXattrs([]Xattr{x})
	if n.xattrs != "" {
		more = more[xattrHeader:]
	}
	if len(n.xattrs)+len(more) > maxXattrs {
		return unix.ENOSPC
	}
	n.xattrs += more
	return w.charge(len(more))
}
