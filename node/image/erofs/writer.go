package erofs

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// File is where an image goes. Nothing is written twice, and nothing is read.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Options of an image.
type Options struct {
	UUID [16]byte
	// Reserve is asked before the tree takes more memory, in steps of some hundred
	// kilobytes; its error ends the image. nil allows all.
	Reserve func(bytes int64) error
	// Tar says that contents may lie in a tar, as CreateAt is told. Whoever mounts the
	// image then gives the tar as its one other device, but if the image NeedsTar.
	Tar bool
}

// Writer makes one image. It is used by one goroutine at a time. After an error from
// Create or Finish the image is of no use.
type Writer struct {
	f      File
	o      Options
	bits   uint8  // of the block size
	tar    uint32 // how many blocks of the tar are referred to
	inodes [][]inode
	count  uint32
	// What the tree takes of memory, and what of it Reserve was asked for.
	memory, reserved int64

	buf []byte // contents that were not written yet, blocks but for the last
	at  int64  // where buf goes
}

const bufSize = 1 << 20

// New begins an image in f, which is empty.
func New(f File, o Options) *Writer {
	w := &Writer{f: f, o: o, bits: pageBits, at: headSize}
	if o.Tar {
		w.bits = tarBits
	}
	w.inodes = [][]inode{make([]inode, chunk)}
	w.count = 1
	*w.node(Root) = inode{mode: unix.S_IFDIR | 0o755, nlink: 1, dir: &directory{}}
	return w
}

// blockSize in bytes.
func (w *Writer) blockSize() int { return 1 << w.bits }

// CreateAt makes a regular file whose contents are size bytes of the tar, from off on,
// which is a multiple of 512. What is behind them up to the next one shows to those who
// map the file into memory: it must be zeros, and must be there.
func (w *Writer) CreateAt(dir ID, name string, size, off int64) (ID, error) {
	block, over := off>>tarBits, off%(1<<tarBits)
	blocks := (size + 1<<tarBits - 1) >> tarBits
	switch {
	case !w.o.Tar || size < 0 || off < 0 || over != 0:
		return 0, unix.EINVAL
	case block+blocks >= 1<<32-1 || blocks > 1<<maxChunkBits:
		return 0, ErrTooLarge
	}
	id, err := w.make(dir, name, unix.S_IFREG|0o600)
	if err != nil {
		return 0, err
	}
	if n := w.node(id); size > 0 {
		n.size, n.block, n.inTar = size, uint32(block), true
		w.tar = max(w.tar, uint32(block+blocks))
	}
	return id, nil
}

// Create makes a regular file of what r has, size bytes at most, and returns how many
// there were. Fewer than size are an error.
func (w *Writer) Create(dir ID, name string, size int64, r io.Reader) (ID, int64, error) {
	id, err := w.make(dir, name, unix.S_IFREG|0o600)
	if err != nil {
		return 0, 0, err
	}
	begin := w.at + int64(len(w.buf))
	if (begin+size)>>w.bits >= 1<<32-1<<20 { // some left for what comes after
		return 0, 0, ErrTooLarge
	}
	n, err := w.contents(r, size)
	if err != nil {
		return 0, n, err
	}
	node := w.node(id)
	if node.size = n; n > 0 {
		node.block = uint32(begin >> w.bits)
	}
	return id, n, nil
}

func (w *Writer) contents(r io.Reader, size int64) (int64, error) {
	var done int64
	if w.buf == nil {
		w.buf = make([]byte, 0, bufSize)
	}
	for done < size {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return done, err
			}
		}
		free := w.buf[len(w.buf):cap(w.buf)]
		free = free[:min(int64(len(free)), size-done)]
		n, err := r.Read(free)
		w.buf = w.buf[:len(w.buf)+n]
		done += int64(n)
		if err == io.EOF && done < size {
			return done, io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return done, err
		}
	}
	if over := len(w.buf) % w.blockSize(); over > 0 { // cap is a multiple: there is room
		w.buf = append(w.buf, zeros[:w.blockSize()-over]...)
	}
	return done, nil
}

var zeros [pageSize]byte

// hole is how many zeros must follow each other to be left out, in bytes: a hole
// costs the file system below an extent.
const hole = 16 * pageSize

// flush writes buf, which ends with a whole block, but for long runs of zeros.
func (w *Writer) flush() error {
	b := w.buf
	for len(b) > 0 {
		skip, n := nextRun(b, w.blockSize())
		if n > 0 {
			if _, err := w.f.WriteAt(b[skip:skip+n], w.at+int64(skip)); err != nil {
				return err
			}
		}
		w.at += int64(skip + n)
		b = b[skip+n:]
	}
	w.buf = w.buf[:0]
	return nil
}

// nextRun says how many bytes to leave out, and how many then to write.
func nextRun(b []byte, blockSize int) (skip, n int) {
	for skip < len(b) && allZero(b[skip:skip+blockSize]) {
		skip += blockSize
	}
	if skip < hole && skip < len(b) {
		skip = 0
	}
	run := 0
	for n = 0; skip+n < len(b); n += blockSize {
		if !allZero(b[skip+n : skip+n+blockSize]) {
			run = 0
		} else if run += blockSize; run >= hole && n+blockSize > run {
			return skip, n + blockSize - run
		}
	}
	return skip, n
}

// allZero takes a block at most.
func allZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b, zeros[:len(b)]) }

// Flush writes what is held back of files' contents. It is for the time between the
// last file and Finish, if that is long: no memory is kept for contents.
func (w *Writer) Flush() error {
	err := w.flush()
	w.buf = nil
	return err
}

// Finish writes the tree and the superblock, and returns the image's size in bytes.
func (w *Writer) Finish() (int64, error) {
	if err := w.Flush(); err != nil {
		return 0, err
	}
	l, err := w.lay()
	if err != nil {
		return 0, err
	}
	size := int64(l.end()) << w.bits
	if err := w.f.Truncate(size); err != nil {
		return 0, err
	}
	if err := l.write(); err != nil {
		return 0, err
	}
	root := w.node(Root)
	s := super{
		root: uint16(root.slot), inodes: uint64(len(l.order)), sec: root.sec, nsec: root.nsec,
		blocks: l.end(), metaBlock: l.meta, blockBits: w.bits, tarBlocks: w.tar, uuid: w.o.UUID,
	}
	if _, err := w.f.WriteAt(s.encode(), 0); err != nil {
		return 0, fmt.Errorf("write superblock: %w", err)
	}
	return size, nil
}

// NeedsTar says whether any contents lie in the tar.
func (w *Writer) NeedsTar() bool { return w.tar > 0 }

// Mtime is when an inode was modified.
func (w *Writer) Mtime(id ID) time.Time {
	n := w.node(id)
	return time.Unix(n.sec, int64(n.nsec))
}
