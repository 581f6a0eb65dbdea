// Package chunk cuts bytes where their content says so, so that equal content is cut alike wherever it lies.
package chunk

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"github.com/shoal-engine/shoal/api"
)

// Bounds of chunks of the coarse grain. Two nodes that cut differently find nothing in
// common, so these, the table and the masks are part of the wire protocol.
const (
	Min     = 4 << 10
	Average = 16 << 10
	Max     = 64 << 10
)

// Grain is how finely content is cut: each step halves the bounds.
type Grain uint

// The grains.
const (
	Coarse Grain = 0 // for content as it is
	Fine   Grain = 2 // for what is dense: a quarter of the bounds
)

// A cut is where the top bits of the rolling hash are zero: 16 of them before the
// average length, 12 after it, which keeps lengths near the average (FastCDC's normalised
// chunking), and one bit less for each step of the grain. Each bit of the hash that is
// looked at depends on at least the last 48 bytes.
const (
	bitsShort = 16
	bitsLong  = 12
)

// gear gives each byte its random number.
var gear = makeGear()

// makeGear is the sequence of splitmix64 from zero.
func makeGear() (t [256]uint64) {
	var s uint64
	for i := range t {
		s += 0x9e3779b97f4a7c15
		z := s
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}

// Cut is the length of the first chunk of b. Unless b is the end of the content, it must
// have Max bytes.
func (g Grain) Cut(b []byte) int {
	n := min(len(b), Max>>g)
	if n <= Min>>g {
		return n
	}
	maskShort, maskLong := ^uint64(0)<<(64-bitsShort+g), ^uint64(0)<<(64-bitsLong+g)
	var h uint64
	i := Min >> g
	for ; i < min(Average>>g, n); i++ {
		if h = h<<1 + gear[b[i]]; h&maskShort == 0 {
			return i + 1
		}
	}
	for ; i < n; i++ {
		if h = h<<1 + gear[b[i]]; h&maskLong == 0 {
			return i + 1
		}
	}
	return n
}

// Sum names a chunk's content: the first half of its SHA-256. It finds what is alike;
// proof is the digest of the whole blob.
type Sum [16]byte

// SumOf is the sum of a chunk.
func SumOf(b []byte) Sum {
	s := sha256.Sum256(b)
	return Sum(s[:16])
}

// Chunk is one piece of content.
type Chunk struct {
	Sum Sum
	Len uint32
}

// Recipe is content as the chunks it consists of, in order.
type Recipe []Chunk

// Size is the length of the content.
func (r Recipe) Size() int64 {
	var n int64
	for _, c := range r {
		n += int64(c.Len)
	}
	return n
}

// Split reads content to its end and cuts it.
func (g Grain) Split(r io.Reader) (Recipe, error) {
	br := bufio.NewReaderSize(r, 4*Max)
	var out Recipe
	for {
		b, err := br.Peek(Max)
		if len(b) == 0 && errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		n := g.Cut(b)
		out = append(out, Chunk{SumOf(b[:n]), uint32(n)})
		if _, err := br.Discard(n); err != nil {
			return nil, err
		}
	}
}

// EntrySize is the length of an encoded chunk.
const EntrySize = 4 + len(Sum{})

// Append encodes chunks after b: length (4 bytes, big endian), sum.
func (r Recipe) Append(b []byte) []byte {
	for _, c := range r {
		b = append(binary.BigEndian.AppendUint32(b, c.Len), c.Sum[:]...)
	}
	return b
}

// Decode reads encoded chunks.
func Decode(b []byte) (Recipe, error) {
	if len(b)%EntrySize != 0 {
		return nil, api.InvalidArgument("chunk list of %d bytes", len(b))
	}
	out := make(Recipe, 0, len(b)/EntrySize)
	for ; len(b) > 0; b = b[EntrySize:] {
		c := Chunk{Sum(b[4:EntrySize]), binary.BigEndian.Uint32(b)}
		if c.Len == 0 || c.Len > Max {
			return nil, api.InvalidArgument("chunk list: a chunk of %d bytes", c.Len)
		}
		out = append(out, c)
	}
	return out, nil
}
