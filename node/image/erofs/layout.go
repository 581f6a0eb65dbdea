package erofs

import (
	"bufio"
	"cmp"
	"io"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// rootSlot is where the first inode goes. Not 0: that would be its number, and a
// directory's entry of number 0 counts as none.
const rootSlot = 2

// layout is what is decided about an image before its tree is written.
type layout struct {
	w     *Writer
	order []ID   // inodes as they lie
	meta  uint32 // the block where inodes begin
	slots uint64 // their size
	dirs  uint32 // blocks of directories behind them
}

// dirStart is the block where directories begin.
func (l *layout) dirStart() uint32 {
	return l.meta + uint32((l.slots*slot+uint64(l.w.blockSize())-1)>>l.w.bits)
}

// end is the number of blocks in all.
func (l *layout) end() uint32 { return l.dirStart() + l.dirs }

// lay gives everything its place.
func (w *Writer) lay() (*layout, error) {
	l := &layout{w: w, meta: uint32(w.at >> w.bits), slots: rootSlot}
	if err := l.place(Root); err != nil {
		return nil, err
	}
	for i := 0; i < len(l.order); i++ { // grows meanwhile
		n := w.node(l.order[i])
		if n.dir == nil {
			continue
		}
		n.dir.index = nil // positions change, and nothing is looked up any more
		for _, e := range n.dir.list {
			if !w.node(e.id).placed {
				if err := l.place(e.id); err != nil {
					return nil, err
				}
			}
		}
	}
	if l.slots*slot>>w.bits+uint64(l.meta)+uint64(l.dirs) >= 1<<32-1 {
		return nil, ErrTooLarge
	}
	return l, nil
}

// place gives an inode its slot and says how its contents lie.
func (l *layout) place(id ID) error {
	n := l.w.node(id)
	l.order = append(l.order, id)
	n.placed = true
	n.layout = layoutPlain
	if n.dir != nil {
		l.measure(n)
	}
	blockSize := uint64(l.w.blockSize())
	size := uint64(l.w.inodeSize(n) + len(n.xattrs))
	if n.inTar {
		n.layout = layoutChunks
		size = (size+chunkIndex-1)/chunkIndex*chunkIndex + chunkIndex
	}
	tail := uint64(0)
	if kind := n.mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFLNK {
		tail = uint64(n.size) % blockSize
	}
	if tail > 0 && size+tail <= blockSize {
		left := blockSize - l.slots*slot%blockSize
		switch {
		case size+tail <= left:
			n.layout = layoutInline
		case tail <= blockSize/2: // what it doesn't fill is less than a block of its own
			n.layout = layoutInline
			l.slots += left / slot
		}
	}
	if l.slots > 1<<32-1 {
		return ErrTooLarge
	}
	n.slot = uint32(l.slots)
	l.reserve(n, tail)
	if n.layout == layoutInline {
		size += tail
	}
	l.slots += (size + slot - 1) / slot
	return nil
}

// reserve takes blocks behind the inodes for what does not lie beside one. Until
// write, block counts from the first of them.
func (l *layout) reserve(n *inode, tail uint64) {
	if kind := n.mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFLNK {
		return
	}
	blocks := uint32(n.size >> l.w.bits)
	if tail > 0 && n.layout == layoutPlain {
		blocks++
	}
	n.block = l.dirs
	l.dirs += blocks
}

// measure sorts a directory, "." and ".." among its entries, and finds its size.
func (l *layout) measure(n *inode) {
	d := n.dir
	slices.SortFunc(d.list, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	n.nlink = 2
	for _, e := range d.list {
		if l.w.node(e.id).dir != nil {
			n.nlink++
		}
	}
	blockSize := l.w.blockSize()
	full, used := int64(0), 0
	for name := range d.names(0) {
		if need := direntSize + len(name); used+need > blockSize {
			full, used = full+int64(blockSize), need
		} else {
			used += need
		}
	}
	n.size = full + int64(used)
}

// names are a directory's entries with "." and "..", which sort among them.
func (d *directory) names(self ID) func(yield func(string, ID) bool) {
	return func(yield func(string, ID) bool) {
		dots := []entry{{".", self}, {"..", d.parent}}
		for _, e := range d.list {
			for len(dots) > 0 && dots[0].name < e.name {
				if !yield(dots[0].name, dots[0].id) {
					return
				}
				dots = dots[1:]
			}
			if !yield(e.name, e.id) {
				return
			}
		}
		for _, e := range dots {
			if !yield(e.name, e.id) {
				return
			}
		}
	}
}

// inodeSize is compactInode where that says all there is to say: such inodes have the
// superblock's time.
func (w *Writer) inodeSize(n *inode) int {
	root := w.node(Root)
	if n.uid < 1<<16 && n.gid < 1<<16 && n.nlink < 1<<16 && n.size < 1<<32 && n.sec == root.sec && n.nsec == root.nsec {
		return compactInode
	}
	return extendedInode
}

// write writes inodes, and directories' blocks behind them.
func (l *layout) write() error {
	meta := bufio.NewWriterSize(io.NewOffsetWriter(l.w.f, int64(l.meta)<<l.w.bits), 256<<10)
	dirs := bufio.NewWriterSize(io.NewOffsetWriter(l.w.f, int64(l.dirStart())<<l.w.bits), 64<<10)
	blockSize := l.w.blockSize()
	var at uint64 // slots written
	var b []byte
	for i, id := range l.order {
		n := l.w.node(id)
		for ; at < uint64(n.slot); at++ {
			if _, err := meta.Write(zeros[:slot]); err != nil {
				return err
			}
		}
		b = append(l.inode(b[:0], n, uint32(i+1)), n.xattrs...)
		body := l.body(id, n)
		switch over := len(body) % blockSize; {
		case n.layout == layoutInline:
			b = append(b, body[len(body)-over:]...)
			body = body[:len(body)-over]
		case n.layout == layoutChunks:
			b = appendChunk(b, n)
		case over > 0:
			body = append(body, zeros[:blockSize-over]...)
		}
		if _, err := dirs.Write(body); err != nil {
			return err
		}
		for len(b)%slot != 0 {
			b = append(b, 0)
		}
		at += uint64(len(b) / slot)
		if _, err := meta.Write(b); err != nil {
			return err
		}
	}
	if err := meta.Flush(); err != nil {
		return err
	}
	return dirs.Flush()
}

// inode appends an inode. number is the one for stat(2) where 64 bits are too many.
func (l *layout) inode(b []byte, n *inode, number uint32) []byte {
	words := uint16(0)
	if len(n.xattrs) > 0 {
		words = uint16((len(n.xattrs)-xattrHeader)/4 + 1)
	}
	where := n.block
	switch kind := n.mode & unix.S_IFMT; kind {
	case unix.S_IFDIR, unix.S_IFLNK:
		where += l.dirStart()
	case unix.S_IFREG:
		if n.inTar {
			where = chunkIndexes | chunkBits(n.size)
		}
	default:
		where = n.device
	}
	if l.w.inodeSize(n) == compactInode {
		b = le.AppendUint16(b, uint16(n.layout)<<1)
		b = le.AppendUint16(b, words)
		b = le.AppendUint16(b, n.mode)
		b = le.AppendUint16(b, uint16(n.nlink))
		b = le.AppendUint32(b, uint32(n.size))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, where)
		b = le.AppendUint32(b, number)
		b = le.AppendUint16(b, uint16(n.uid))
		b = le.AppendUint16(b, uint16(n.gid))
		return append(b, zeros[:4]...)
	}
	b = le.AppendUint16(b, 1|uint16(n.layout)<<1)
	b = le.AppendUint16(b, words)
	b = le.AppendUint16(b, n.mode)
	b = append(b, 0, 0)
	b = le.AppendUint64(b, uint64(n.size))
	b = le.AppendUint32(b, where)
	b = le.AppendUint32(b, number)
	b = le.AppendUint32(b, n.uid)
	b = le.AppendUint32(b, n.gid)
	b = le.AppendUint64(b, uint64(n.sec))
	b = le.AppendUint32(b, n.nsec)
	b = le.AppendUint32(b, n.nlink)
	return append(b, zeros[:16]...)
}

// chunkBits is the size of a chunk that has all of a file, as a power of two of blocks.
func chunkBits(size int64) uint32 {
	return uint32(bits.Len64(uint64(size-1) >> tarBits))
}

// appendChunk appends the list of a file's chunks, of which there is one, to its inode.
func appendChunk(b []byte, n *inode) []byte {
	for len(b)%chunkIndex != 0 {
		b = append(b, 0)
	}
	b = append(b, 0, 0)
	b = le.AppendUint16(b, 1) // the first device besides the image
	return le.AppendUint32(b, n.block)
}

// body is what a directory or a symbolic link consists of.
func (l *layout) body(id ID, n *inode) []byte {
	switch {
	case n.dir != nil:
		return l.dirents(id, n)
	case n.mode&unix.S_IFMT == unix.S_IFLNK:
		return []byte(n.link)
	default:
		return nil
	}
}

// dirents is a directory: in each block first its entries, then their names.
func (l *layout) dirents(id ID, n *inode) []byte {
	blockSize := l.w.blockSize()
	out := make([]byte, 0, int(n.size)+blockSize)
	var block []entry
	used := 0
	flush := func() {
		at := len(block) * direntSize
		for _, e := range block {
			child := l.w.node(e.id)
			out = le.AppendUint64(out, uint64(child.slot))
			out = le.AppendUint16(out, uint16(at))
			out = append(out, fileType(child.mode), 0)
			at += len(e.name)
		}
		for _, e := range block {
			out = append(out, e.name...)
		}
		block, used = block[:0], 0
	}
	for name, child := range n.dir.names(id) {
		if used+direntSize+len(name) > blockSize {
			pad := blockSize - used
			flush()
			out = append(out, zeros[:pad]...)
		}
		block = append(block, entry{name, child})
		used += direntSize + len(name)
	}
	flush()
	return out
}
