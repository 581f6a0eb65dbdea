package transfer

import (
	"bytes"
	stdflate "compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/tokens"
)

// packing is how a blob's content was compressed. With it, content becomes the very
// bytes of the blob again. Of packedTokens the content is tokens.
type packing struct {
	method byte
	level  int8
	header []byte // of gzip, literally: names, times and systems differ
	layout []byte // of tokens; not part of the frame
}

// Methods are on the wire and in files: their numbers never get another meaning, and
// what one writes never changes (TestPackersAreStable).
const (
	packedNot    = 0
	packedGo     = 1   // gzip, of the standard library's compress/flate
	packedFast   = 2   // gzip, of klauspost/compress/flate
	packedTokens = 3   // gzip, of anything; not compressed again but written down again
	packedOdd    = 255 // by something unknown: it can be searched, but not be made again
)

const (
	packingSize = 4 // without the header
	maxHeader   = tokens.MaxHeader
	gzipHead    = 10 // a gzip header without what is optional
	// maxExpansion is how many times larger than a blob its content may be. What
	// compresses better moves whole, which costs little, and what is made to blow up is
	// left alone.
	maxExpansion = 32
	// proofSize is how much of a blob must come out of a compressor to believe that all
	// of it will.
	proofSize = 1 << 20
	// unpackMemory bounds what a compressed blob can make us allocate.
	unpackMemory = 128 << 20
)

func (p packing) append(b []byte) []byte {
	b = append(b, p.method, byte(p.level))
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.header)))
	return append(b, p.header...)
}

// decodePacking also returns what follows.
func decodePacking(b []byte) (packing, []byte, error) {
	if len(b) < packingSize {
		return packing{}, nil, api.InvalidArgument("packing of %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n > maxHeader || n > len(b)-packingSize {
		return packing{}, nil, api.InvalidArgument("packing has a header of %d bytes", n)
	}
	p := packing{method: b[0], level: int8(b[1]), header: b[packingSize : packingSize+n]}
	return p, b[packingSize+n:], nil
}

// open makes the compressor: what is written to it comes out as the blob, the last of it
// at Close.
func (p packing) open(w io.Writer) (io.WriteCloser, error) {
	if p.method == packedTokens {
		return tokens.NewWriter(w, p.layout), nil
	}
	z := &gzipWriter{w: w, header: p.header, crc: crc32.NewIEEE()}
	var err error
	switch {
	case p.level < 1 || p.level > 9 || len(p.header) < gzipHead:
		err = api.InvalidArgument("no compressor of method %d has level %d", p.method, p.level)
	case p.method == packedGo:
		z.deflate, err = stdflate.NewWriter(w, int(p.level))
	case p.method == packedFast:
		z.deflate, err = flate.NewWriter(w, int(p.level))
	default:
		err = api.InvalidArgument("compressor %d isn't known", p.method)
	}
	return z, err
}

// gzipWriter puts a given header before what a compressor makes, and gzip's end behind.
type gzipWriter struct {
	w       io.Writer
	header  []byte // until it is written
	deflate io.WriteCloser
	crc     hash.Hash32
	size    uint32
}

func (z *gzipWriter) Write(b []byte) (int, error) {
	if z.header != nil {
		if _, err := z.w.Write(z.header); err != nil {
			return 0, err
		}
		z.header = nil
	}
	z.crc.Write(b)
	z.size += uint32(len(b))
	return z.deflate.Write(b)
}

func (z *gzipWriter) Close() error {
	if err := z.deflate.Close(); err != nil {
		return err
	}
	end := binary.LittleEndian.AppendUint32(nil, z.crc.Sum32())
	_, err := z.w.Write(binary.LittleEndian.AppendUint32(end, z.size))
	return err
}

// recognise finds out what compressed a blob, by trying on its beginning.
func recognise(ctx context.Context, b Blob) packing {
	head := make([]byte, min(b.Size(), maxHeader))
	if readFull(b, head, 0) != nil {
		return packing{}
	}
	n := tokens.HeaderSize(head)
	if n == 0 {
		if isCompressed(head) {
			return packing{method: packedOdd}
		}
		return packing{}
	}
	for _, p := range candidates(head[8]) {
		p.header = head[:n]
		if ctx.Err() != nil || p.proves(b) {
			return p
		}
	}
	return packing{method: packedOdd}
}

// candidates are the compressors to try, the likeliest first. hint is what gzip's header
// says of the level.
func candidates(hint byte) (out []packing) {
	levels := []int8{6, 5, 9, 1, 2, 3, 4, 7, 8}
	switch hint {
	case 2:
		levels = []int8{9}
	case 4:
		levels = []int8{1}
	}
	for _, method := range []byte{packedGo, packedFast} {
		for _, l := range levels {
			out = append(out, packing{method: method, level: l})
		}
	}
	return out
}

var (
	errProven = errors.New("it is the blob")
	errDiffer = errors.New("it isn't the blob")
)

// proves says whether the blob begins as the compressor would make it.
func (p packing) proves(b Blob) bool {
	content, err := openContent(b, p)
	if err != nil {
		return false
	}
	defer content.Close()
	z, err := p.open(&comparison{blob: b, end: min(proofSize, b.Size())})
	if err == nil {
		if _, err = io.Copy(z, content); err == nil {
			err = z.Close()
		}
	}
	return errors.Is(err, errProven)
}

// comparison is a writer that takes what a blob has, up to an end.
type comparison struct {
	blob    Blob
	at, end int64
	buf     []byte
}

func (c *comparison) Write(b []byte) (int, error) {
	c.buf = append(c.buf[:0], b...)
	if c.at+int64(len(b)) > c.blob.Size() || readFull(c.blob, c.buf, c.at) != nil || !bytes.Equal(b, c.buf) {
		return 0, errDiffer
	}
	if c.at += int64(len(b)); c.at >= c.end {
		return 0, errProven
	}
	return len(b), nil
}

// isCompressed judges by a blob's first bytes.
func isCompressed(head []byte) bool {
	return bytes.HasPrefix(head, gzipMagic) || bytes.HasPrefix(head, zstdMagic)
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// maxContent is how much content a blob that is compressed may have.
func maxContent(size int64) int64 { return min(size*maxExpansion, maxDelta) }

// maxLayout is how long the layout of a blob may be that is taken apart. Of usual ones
// it is 1/250.
func maxLayout(size int64) int { return int(min(size/16, topLayout)) }

// openContent reads a blob's content from its beginning. The blob stays open at Close.
func openContent(b Blob, p packing) (io.ReadCloser, error) {
	raw := io.NewSectionReader(b, 0, b.Size())
	if p.method == packedNot {
		return io.NopCloser(raw), nil
	}
	if p.method == packedTokens {
		z := tokens.NewReader(raw, maxLayout(b.Size()))
		return &bounded{io.NopCloser(z), maxContent(b.Size())}, nil
	}
	var head [4]byte
	if err := readFull(b, head[:], 0); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(head[:], zstdMagic) {
		z, err := zstd.NewReader(raw, zstd.WithDecoderMaxMemory(unpackMemory), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return &bounded{z.IOReadCloser(), maxContent(b.Size())}, nil
	}
	z, err := gzip.NewReader(raw)
	if err != nil {
		return nil, err
	}
	return &bounded{z, maxContent(b.Size())}, nil
}

// bounded fails once more than left bytes were read.
type bounded struct {
	io.ReadCloser
	left int64
}

func (c *bounded) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if c.left -= int64(n); c.left < 0 {
		return 0, api.InvalidArgument("content is larger than is worth unpacking")
	}
	return n, err
}

// forward reads content at offsets that mostly grow: those of what is compressed are
// reached by unpacking all before.
type forward struct {
	blob    Blob
	packing packing
	content io.ReadCloser // nil: not begun
	at      int64
	again   int // how often it may begin anew
}

// maxRewinds bounds what a peer that reads to and fro costs.
const maxRewinds = 16

func (c *forward) ReadAt(b []byte, at int64) (int, error) {
	if c.packing.method == packedNot {
		return c.blob.ReadAt(b, at)
	}
	if c.content == nil || at < c.at {
		if c.again++; c.again > maxRewinds {
			return 0, errors.New("too many reads of what was passed")
		}
		c.Close()
		content, err := openContent(c.blob, c.packing)
		if err != nil {
			return 0, err
		}
		c.content, c.at = content, 0
	}
	n, err := io.CopyN(io.Discard, c.content, at-c.at)
	if c.at += n; err != nil {
		return 0, err
	}
	k, err := io.ReadFull(c.content, b)
	c.at += int64(k)
	return k, err
}

func (c *forward) Close() error {
	if c.content == nil {
		return nil
	}
	return c.content.Close()
}
