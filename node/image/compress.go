package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/shoal-engine/shoal/api"
)

// compression is how a stream is packed.
type compression string

const (
	plain   compression = ""
	gzipped compression = "gzip"
	zstded  compression = "zstd"
	bzipped compression = "bzip2"
	xzed    compression = "xz"
)

// magics tell compressions apart, as their first bytes do.
var magics = []struct {
	c     compression
	magic []byte
}{
	{gzipped, []byte{0x1f, 0x8b, 0x08}},
	{zstded, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{bzipped, []byte("BZh")},
	{xzed, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// magicSize is how many bytes detect wants.
const magicSize = 6

func detect(head []byte) compression {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.magic) {
			return m.c
		}
	}
	return plain
}

// zstdMemory bounds what a frame may make the decoder allocate.
const zstdMemory = 256 << 20

// decompress unpacks r, whatever it is packed with. Closing frees the decoder, not r.
func decompress(r io.Reader) (io.ReadCloser, compression, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(magicSize)
	if err != nil && err != io.EOF {
		return nil, plain, err
	}
	switch c := detect(head); c {
	case gzipped:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, c, api.InvalidArgument("read gzip: %w", err)
		}
		return z, c, nil
	case zstded:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(zstdMemory), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, c, api.InvalidArgument("read zstd: %w", err)
		}
		return z.IOReadCloser(), c, nil
	case bzipped:
		return io.NopCloser(bzip2.NewReader(br)), c, nil
	case xzed:
		return nil, c, api.InvalidArgument("xz-compressed archives are not supported; recompress with gzip or zstd")
	default:
		return io.NopCloser(br), plain, nil
	}
}

// readAhead reads r in a goroutine of its own, so that producing and consuming
// bytes run beside each other. Closing it ends the goroutine once r's Read returns,
// and waits for that.
type readAhead struct {
	full, free chan []byte
	stop, done chan struct{} // closed: the reader left; the goroutine ended
	err        error         // set before full is closed
	cur, buf   []byte
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan []byte, aheadBuffers), free: make(chan []byte, aheadBuffers),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	go a.fill(r)
	return a
}

func (a *readAhead) fill(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		select {
		case buf := <-a.free:
			n, err := readFull(r, buf)
			if n > 0 {
				a.full <- buf[:n] // never blocks: there are as many places as buffers
			}
			if err != nil {
				a.err = err
				return
			}
		case <-a.stop:
			a.err = io.ErrClosedPipe
			return
		}
	}
}

// readFull is io.ReadFull, which would turn io.EOF into the error that a cut-off
// stream has.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (a *readAhead) Read(b []byte) (int, error) {
	if len(a.cur) == 0 {
		if a.buf != nil {
			a.free <- a.buf[:cap(a.buf)]
			a.buf = nil
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.buf, a.cur = buf, buf
	}
	n := copy(b, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

func (a *readAhead) Close() error {
	close(a.stop)
	<-a.done
	return nil
}
