package tokens

import (
	"encoding/binary"
	"io"
)

// Writer makes a blob of its layout and its tokens. It isn't safe for concurrent use.
type Writer struct {
	dst    io.Writer
	layout []byte // what is left of it
	out    []byte
	bits   uint64
	nbits  uint
	rest   []byte // of a token that isn't whole yet
	left   uint64 // tokens of the block, or bytes of a stored one
	stored bool
	coded  bool // a block is open that its end's code must follow

	// What to write for literals, lengths and distances, with extra bits where they are
	// the same for all.
	lit    [256]word
	length [256]word
	near   [256]word // distances up to 256
	far    [256]word // the others, by their upper bits
	end    word
	fixed  bool // these are those of the fixed code
}

// word is bits to write.
type word struct {
	bits uint32
	n    uint8 // 0: there is no code
	more uint8 // extra bits that follow, which aren't part of it
	base uint16
}

// NewWriter writes to w what a layout and the tokens that follow say. It writes in pieces
// of about 64 KiB.
func NewWriter(w io.Writer, layout []byte) *Writer {
	return &Writer{dst: w, layout: layout, out: make([]byte, 0, writeSize+slack)}
}

const (
	writeSize = 64 << 10
	slack     = 64 // more than a token or a block's head needs
)

// Write takes tokens. An error is final.
func (z *Writer) Write(b []byte) (int, error) {
	n := len(b)
	for len(z.rest) > 0 && len(b) > 0 { // until that token is whole
		z.rest, b = append(z.rest, b[0]), b[1:]
		k, err := z.write(z.rest)
		if err != nil {
			return 0, err
		}
		z.rest = z.rest[k:]
	}
	if len(b) == 0 {
		return n, nil
	}
	k, err := z.write(b)
	if err != nil {
		return 0, err
	}
	z.rest = append(z.rest[:0], b[k:]...)
	return n, nil
}

// write uses whole tokens, and says how many bytes they had.
func (z *Writer) write(b []byte) (n int, err error) {
	for len(b) > n {
		if z.left == 0 {
			if err := z.next(); err != nil {
				return n, err
			}
			if z.left == 0 {
				return n, errTokens // the layout is at its end
			}
		}
		take := z.tokens
		if z.stored {
			take = z.bytes
		}
		k, err := take(b[n:])
		if n += k; err != nil || k == 0 {
			return n, err
		}
	}
	return n, nil
}

// Close ends the blob: all tokens must have been written.
func (z *Writer) Close() error {
	if len(z.rest) > 0 || z.left > 0 {
		return errTokens
	}
	if err := z.next(); err != nil {
		return err
	}
	if z.left > 0 {
		return errTokens
	}
	if z.nbits > 0 {
		z.pad()
	}
	return z.flush()
}

// put adds bits, at most 48 at once.
func (z *Writer) put(v uint64, n uint) {
	z.bits |= v << z.nbits
	for z.nbits += n; z.nbits >= 8; z.nbits -= 8 {
		z.out = append(z.out, byte(z.bits))
		z.bits >>= 8
	}
}

// pad adds zeros up to a whole byte.
func (z *Writer) pad() { z.put(0, -z.nbits%8) }

func (z *Writer) flush() error {
	_, err := z.dst.Write(z.out)
	z.out = z.out[:0]
	return err
}

// room keeps what was written short.
func (z *Writer) room() error {
	if len(z.out) < writeSize {
		return nil
	}
	return z.flush()
}

// next goes on in the layout to what takes tokens; left is 0 at the layout's end.
func (z *Writer) next() error {
	for z.left == 0 {
		if z.coded {
			if z.end.n == 0 {
				return errLayout
			}
			z.put(uint64(z.end.bits), uint(z.end.n))
			z.coded = false
		}
		if len(z.layout) == 0 {
			return nil
		}
		if err := z.record(); err != nil {
			return err
		}
		if err := z.room(); err != nil {
			return err
		}
	}
	return nil
}

// number takes a number of the layout.
func (z *Writer) number() (uint64, error) {
	v, n := binary.Uvarint(z.layout)
	if n <= 0 {
		return 0, errLayout
	}
	z.layout = z.layout[n:]
	return v, nil
}

// part takes bytes of the layout.
func (z *Writer) part(n uint64) ([]byte, error) {
	if n > uint64(len(z.layout)) {
		return nil, errLayout
	}
	b := z.layout[:n]
	z.layout = z.layout[n:]
	return b, nil
}

// record begins what the layout says next.
func (z *Writer) record() error {
	kind, err := z.number()
	if err != nil {
		return err
	}
	n, err := z.number()
	if err != nil {
		return err
	}
	if kind == kindRaw {
		z.pad()
		b, err := z.part(n)
		if err != nil {
			return err
		}
		if err := z.flush(); err != nil {
			return err
		}
		_, err = z.dst.Write(b)
		return err
	}
	block := kind &^ lastFlag
	if block > kindDynamic {
		return errLayout
	}
	z.put(block<<1|kind/lastFlag, 3)
	z.left, z.stored, z.coded = n, block == kindStored, block != kindStored
	switch block {
	case kindStored:
		return z.beginStored(n)
	case kindFixed:
		return z.beginFixed()
	}
	return z.beginDynamic()
}

func (z *Writer) beginStored(n uint64) error {
	if n > 0xffff {
		return errLayout
	}
	z.pad()
	z.put(n|^n<<16&0xffff0000, 32)
	return nil
}

func (z *Writer) beginFixed() error {
	if z.fixed {
		return nil
	}
	lit, dist := fixedLens()
	if err := z.code(lit[:], dist[:]); err != nil {
		return err
	}
	z.fixed = true
	return nil
}

func (z *Writer) beginDynamic() error {
	n, err := z.number()
	if err != nil {
		return err
	}
	if n > maxHeader {
		return errLayout
	}
	b, err := z.part((n + 7) / 8)
	if err != nil {
		return err
	}
	h := &header{b: b, left: uint(n)}
	lit, dist, err := readCodes(h)
	if err != nil || h.left > 0 {
		return errLayout
	}
	for ; n > 0; b = b[1:] {
		k := min(n, 8)
		z.put(uint64(b[0])&(1<<k-1), uint(k))
		n -= k
	}
	return z.code(lit, dist)
}

// header gives a block's header bit by bit.
type header struct {
	b    []byte
	at   uint
	left uint
}

func (h *header) take(n uint) (v uint32, err error) {
	if n > h.left {
		return 0, errLayout
	}
	for i := range n {
		v |= uint32(h.b[(h.at+i)/8]>>((h.at+i)%8)&1) << i
	}
	h.at += n
	h.left -= n
	return v, nil
}

// code prepares what to write for each literal, length and distance.
func (z *Writer) code(lit, dist []uint8) error {
	var c codes
	if err := c.assign(lit); err != nil {
		return err
	}
	z.fixed = false
	for i := range z.lit {
		z.lit[i] = word{bits: uint32(c.code[i]), n: c.n[i]}
	}
	z.end = word{bits: uint32(c.code[endOfBlock]), n: c.n[endOfBlock]}
	for s, l := range lengths {
		n := c.n[257+s]
		for k := range 1 << l.extra {
			w := word{bits: uint32(c.code[257+s]) | uint32(k)<<n, n: n + l.extra}
			if n == 0 {
				w = word{}
			}
			if at := int(l.base) - 3 + k; at < 255 || s == 28 {
				z.length[at] = w // 258 has a symbol of its own
			}
		}
	}
	if err := c.assign(dist); err != nil {
		return err
	}
	for s, d := range distances {
		w := word{bits: uint32(c.code[s]), n: c.n[s], more: d.extra, base: d.base}
		for k := 0; k < 1<<d.extra; k++ {
			if at := int(d.base) - 1 + k; at < 256 {
				z.near[at] = w
			} else {
				z.far[at>>7] = w
				k += 127
			}
		}
	}
	return nil
}

// bytes writes a stored block's.
func (z *Writer) bytes(b []byte) (n int, err error) {
	for z.left > 0 && n < len(b) {
		c := b[n]
		if n++; c == escape {
			if n == len(b) {
				return n - 1, nil
			}
			if b[n] != escaped {
				return n, errTokens
			}
			n++
		}
		z.out = append(z.out, c)
		z.left--
		if err := z.room(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// tokens writes those of a block.
func (z *Writer) tokens(b []byte) (at int, err error) {
	out, o, acc, n, left := z.out[:cap(z.out)], len(z.out), z.bits, z.nbits, z.left
	defer func() { z.out, z.bits, z.nbits, z.left = out[:o], acc, n, left }()
	for left > 0 && at < len(b) {
		c := b[at]
		w := z.lit[c]
		if c == escape {
			if len(b)-at < 2 {
				return at, nil
			}
			if b[at+1] == escaped {
				at++
			} else {
				if len(b)-at < copySize {
					return at, nil
				}
				distance := binary.BigEndian.Uint16(b[at+1:])
				if distance >= 1<<15 {
					return at, errTokens
				}
				w = z.length[b[at+3]]
				d := z.near[distance&0xff]
				if distance >= 256 {
					d = z.far[distance>>7]
				}
				if d.n == 0 {
					return at, errTokens
				}
				v := uint64(w.bits) | uint64(d.bits)<<w.n | uint64(distance+1-d.base)<<(w.n+d.n)
				if w.n == 0 {
					return at, errTokens
				}
				acc |= v << n
				n += uint(w.n + d.n + d.more)
				at += copySize
				goto store
			}
		}
		if w.n == 0 {
			return at, errTokens
		}
		acc |= uint64(w.bits) << n
		n += uint(w.n)
		at++
	store:
		left--
		binary.LittleEndian.PutUint64(out[o:], acc)
		o += int(n >> 3)
		acc >>= n &^ 7 & 63
		n &= 7
		if o >= writeSize {
			if _, err := z.dst.Write(out[:o]); err != nil {
				return at, err
			}
			o = 0
		}
	}
	return at, nil
}
