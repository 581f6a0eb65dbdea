package tokens

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Reader takes gzip's members apart: Read gives the tokens. It isn't safe for
// concurrent use.
type Reader struct {
	src    io.Reader
	in     []byte // what was read of src
	at     int    // up to where it is used
	ended  bool   // of src
	bits   uint64
	nbits  uint
	noted  *noted // set while a header's bits are noted
	out    []byte
	given  int // of out
	layout []byte
	limit  int
	err    error
	next   func(*Reader) error

	lit, dist table
	count     uint64 // tokens of the block
	stored    int    // bytes that follow
	last      bool
}

const (
	inSize  = 128 << 10
	outSize = 128 << 10
)

// NewReader reads the gzip stream r, of one or more members; a layout of more than
// limit bytes is an error.
func NewReader(r io.Reader, limit int) *Reader {
	return &Reader{src: r, in: make([]byte, 0, inSize), out: make([]byte, 0, outSize+16), limit: limit, next: (*Reader).member}
}

// Layout is what has to be known beside the tokens. It is whole once Read has returned
// io.EOF.
func (z *Reader) Layout() []byte { return z.layout }

// Read gives tokens.
func (z *Reader) Read(b []byte) (int, error) {
	for z.given == len(z.out) {
		if z.err != nil {
			return 0, z.err
		}
		z.out, z.given = z.out[:0], 0
		if z.err = z.next(z); z.err == nil && len(z.layout) > z.limit {
			z.err = errForm
		}
	}
	n := copy(b, z.out[z.given:])
	z.given += n
	return n, nil
}

// fill reads on, so that at least n bytes can be taken unless src ends before.
func (z *Reader) fill(n int) error {
	for len(z.in)-z.at < n && !z.ended {
		rest := copy(z.in, z.in[z.at:])
		z.in, z.at = z.in[:rest], 0
		k, err := z.src.Read(z.in[rest:cap(z.in)])
		z.in = z.in[:rest+k]
		if errors.Is(err, io.EOF) {
			z.ended = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// noted is a copy of bits that were taken.
type noted struct {
	b []byte
	n uint
}

func (h *noted) add(v uint32, n uint) {
	for i := range n {
		if h.n%8 == 0 {
			h.b = append(h.b, 0)
		}
		h.b[h.n/8] |= byte(v>>i&1) << (h.n % 8)
		h.n++
	}
}

// take implements bitSource; n is at most 16.
func (z *Reader) take(n uint) (uint32, error) {
	for z.nbits < n {
		if err := z.fill(1); err != nil {
			return 0, err
		}
		if z.at == len(z.in) {
			return 0, io.ErrUnexpectedEOF
		}
		z.bits |= uint64(z.in[z.at]) << z.nbits
		z.at++
		z.nbits += 8
	}
	v := uint32(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	if z.noted != nil {
		z.noted.add(v, n)
	}
	return v, nil
}

// align goes on at a byte; what is passed must be zero.
func (z *Reader) align() error {
	v, err := z.take(z.nbits % 8)
	if err == nil && v != 0 {
		err = errForm
	}
	z.at -= int(z.nbits / 8)
	z.bits, z.nbits = 0, 0
	return err
}

// raw notes bytes that aren't deflate's.
func (z *Reader) raw(b []byte) {
	z.layout = binary.AppendUvarint(append(z.layout, kindRaw), uint64(len(b)))
	z.layout = append(z.layout, b...)
}

// member begins a member of the stream, or ends it.
func (z *Reader) member() error {
	if err := z.fill(MaxHeader); err != nil {
		return err
	}
	if z.at == len(z.in) {
		return io.EOF
	}
	n := HeaderSize(z.in[z.at:min(len(z.in), z.at+MaxHeader)])
	if n == 0 {
		return errForm
	}
	z.raw(z.in[z.at : z.at+n])
	z.at += n
	z.next = (*Reader).block
	return nil
}

// tail ends a member.
func (z *Reader) tail() error {
	if err := z.align(); err != nil {
		return err
	}
	if err := z.fill(8); err != nil {
		return err
	}
	if len(z.in)-z.at < 8 {
		return io.ErrUnexpectedEOF
	}
	z.raw(z.in[z.at : z.at+8])
	z.at += 8
	z.next = (*Reader).member
	return nil
}

// block begins a block, or ends the stream.
func (z *Reader) block() error {
	if z.last {
		z.last = false
		return z.tail()
	}
	head, err := z.take(3)
	if err != nil {
		return err
	}
	z.last, z.count = head&1 != 0, 0
	switch head >> 1 {
	case kindStored:
		return z.beginStored()
	case kindFixed:
		lit, dist := fixedLens()
		return z.begin(lit[:], dist[:])
	case kindDynamic:
		z.noted = &noted{}
		lit, dist, err := readCodes(z)
		if err != nil {
			return err
		}
		return z.begin(lit, dist)
	}
	return errCode
}

// record begins a block's record, of n bytes or tokens.
func (z *Reader) record(kind byte, n uint64) {
	if z.last {
		kind |= lastFlag
	}
	z.layout = binary.AppendUvarint(append(z.layout, kind), n)
}

func (z *Reader) beginStored() error {
	if err := z.align(); err != nil {
		return err
	}
	if err := z.fill(4); err != nil {
		return err
	}
	if len(z.in)-z.at < 4 {
		return io.ErrUnexpectedEOF
	}
	n, not := binary.LittleEndian.Uint16(z.in[z.at:]), binary.LittleEndian.Uint16(z.in[z.at+2:])
	if n != ^not {
		return errCode
	}
	z.at += 4
	z.record(kindStored, uint64(n))
	z.stored, z.next = int(n), (*Reader).storedBytes
	return nil
}

func (z *Reader) storedBytes() error {
	if z.stored == 0 {
		z.next = (*Reader).block
		return nil
	}
	if err := z.fill(1); err != nil {
		return err
	}
	n := min(z.stored, len(z.in)-z.at, outSize/2)
	if n == 0 {
		return io.ErrUnexpectedEOF
	}
	z.out = appendLiterals(z.out, z.in[z.at:z.at+n])
	z.at += n
	z.stored -= n
	return nil
}

func (z *Reader) begin(lit, dist []uint8) error {
	if err := z.lit.build(lit, litEntry); err != nil {
		return err
	}
	z.next = (*Reader).coded
	return z.dist.build(dist, distEntry)
}

// end notes a block whose tokens were read.
func (z *Reader) end() {
	z.next = (*Reader).block
	if z.noted == nil {
		z.record(kindFixed, z.count)
		return
	}
	z.record(kindDynamic, z.count)
	z.layout = binary.AppendUvarint(z.layout, uint64(z.noted.n))
	z.layout = append(z.layout, z.noted.b...)
	z.noted = nil
}

// coded reads tokens of a block, as many as there is room for.
func (z *Reader) coded() error {
	const ahead = 16 // bytes of which a token and what is loaded with it surely lie
	if err := z.fill(ahead); err != nil {
		return err
	}
	in, at, acc, n := z.in, z.at, z.bits, z.nbits
	if z.ended && len(in)-at < ahead { // zeros stand for what isn't there; a token that uses them is found out
		in = append(bytes.Clone(in[at:]), make([]byte, ahead)...)
		at = 0
	}
	begin, out, count := at, z.out[:cap(z.out)], z.count
	o, done, bad := len(z.out), false, false
	for at+8 <= len(in) && o < outSize {
		acc |= binary.LittleEndian.Uint64(in[at:]) << n
		at += int((63 - n) >> 3)
		n |= 56
		e := z.lit.look(acc)
		acc >>= e.used()
		n -= e.used()
		if e.literal() {
			count++
			out[o] = byte(e.value())
			o++
			if byte(e.value()) == escape {
				out[o] = escaped
				o++
			}
			continue
		}
		if e.stops() {
			done, bad = true, e.value() != endOfBlock
			break
		}
		length := e.value() + uint32(acc)&e.mask()
		acc >>= e.extra()
		d := z.dist.look(acc)
		acc >>= d.used()
		distance := d.value() + uint32(acc)&d.mask()
		acc >>= d.extra()
		n -= e.extra() + d.used() + d.extra()
		if d.stops() || length == 258 && e.extra() > 0 {
			done, bad = true, true
			break
		}
		count++
		binary.BigEndian.PutUint32(out[o:], escape<<24|(distance-1)<<8|(length-3))
		o += copySize
	}
	// Whole bytes that weren't used go back.
	at -= int(n / 8)
	n %= 8
	z.bits, z.nbits, z.count, z.out = acc&(1<<n-1), n, count, z.out[:o]
	if z.at += at - begin; z.at > len(z.in) {
		return io.ErrUnexpectedEOF
	}
	if bad {
		return errCode
	}
	if done {
		z.end()
	}
	return nil
}
