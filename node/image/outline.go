package image

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// An outline is what of a plain tar is read to learn its tree: for each range how far
// it is from the end of the last, how long it is (both as varints), and its bytes. The
// rest is what files contain.

var (
	_ transfer.Outliner = (*Store)(nil)
	_ skipper           = (*outlined)(nil)
)

// Outline implements transfer.Outliner.
func (s *Store) Outline(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := s.open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	head := make([]byte, magicSize)
	if n, _ := b.ReadAt(head, 0); detect(head[:n]) != plain {
		return nil, api.NotFound("blob %s is compressed and has no outline", d)
	}
	return outlineOf(ctx, b, b.size)
}

func outlineOf(ctx context.Context, r io.ReaderAt, size int64) ([]byte, error) {
	rec := &recorder{r: r, size: size}
	tr := tar.NewReader(rec)
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		_, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, badTar(err)
		}
	}
	if _, err := io.Copy(io.Discard, rec); err != nil {
		return nil, err
	}
	return append(rec.done, rec.run()...), nil
}

// recorder reads a tar and keeps what was read of it.
type recorder struct {
	r    io.ReaderAt
	size int64
	at   int64
	done []byte // ranges that are written down
	end  int64  // of the last of them
	from int64  // where the range begins that is being read
	part []byte // what was read of it
}

// run is the range that is being read, as it is written down.
func (c *recorder) run() []byte {
	if len(c.part) == 0 {
		return nil
	}
	b := binary.AppendUvarint(nil, uint64(c.from-c.end))
	b = binary.AppendUvarint(b, uint64(len(c.part)))
	return append(b, c.part...)
}

func (c *recorder) Read(b []byte) (int, error) {
	if c.at >= c.size {
		return 0, io.EOF
	}
	n, err := c.r.ReadAt(b[:min(int64(len(b)), c.size-c.at)], c.at)
	if n > 0 {
		err = nil
	}
	if len(c.part) == 0 {
		c.from = c.at
	}
	c.part = append(c.part, b[:n]...)
	c.at += int64(n)
	if len(c.done)+len(c.part) > transfer.MaxOutline {
		return n, api.InvalidArgument("outline has more than %d bytes", transfer.MaxOutline)
	}
	return n, err
}

// Seek goes forward from here, which is all that archive/tar wants.
func (c *recorder) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 || n > c.size-c.at {
		return 0, errors.ErrUnsupported
	}
	if n > 0 {
		c.done = append(c.done, c.run()...)
		if len(c.part) > 0 {
			c.end = c.from + int64(len(c.part))
		}
		c.part = c.part[:0]
		c.at += n
	}
	return c.at, nil
}

// outlined reads a tar of which only the outline is here, and passes over the rest.
type outlined struct {
	left []byte // of the outline, behind the range that follows
	size int64  // of the tar
	at   int64
	from int64  // where the range begins
	part []byte // the range
}

func (o *outlined) Read(b []byte) (int, error) {
	if o.at >= o.size {
		return 0, io.EOF
	}
	for o.at >= o.from+int64(len(o.part)) {
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	if o.at < o.from {
		return 0, api.InvalidArgument("outline lacks what is at %d", o.at)
	}
	n := copy(b, o.part[o.at-o.from:])
	o.at += int64(n)
	return n, nil
}

// next takes the next range.
func (o *outlined) next() error {
	if len(o.left) == 0 {
		return api.InvalidArgument("outline ends before %d", o.at)
	}
	gap, n := binary.Uvarint(o.left)
	if n <= 0 {
		return api.InvalidArgument("outline is malformed")
	}
	length, m := binary.Uvarint(o.left[n:])
	if m <= 0 {
		return api.InvalidArgument("outline is malformed")
	}
	rest, end := o.left[n+m:], o.from+int64(len(o.part))
	if length == 0 || length > uint64(len(rest)) || gap > uint64(o.size-end) || length > uint64(o.size-end)-gap {
		return api.InvalidArgument("outline is malformed")
	}
	o.from, o.part, o.left = end+int64(gap), rest[:length], rest[length:]
	return nil
}

func (o *outlined) pass(n int64) { o.at += n }
