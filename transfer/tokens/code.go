package tokens

import (
	"errors"
	"math/bits"
)

const (
	escape     = 0xf5
	escaped    = 0xff // after an escape: the literal escape
	copySize   = 4
	maxBits    = 15 // of a code
	maxLitLen  = 286
	maxDist    = 30
	endOfBlock = 256
	maxHeader  = 3 + 5 + 5 + 4 + 19*7 + (maxLitLen+maxDist+2)*14 // bits; generous
)

// Kinds of records; 0 to 2 are deflate's own.
const (
	kindStored  = 0
	kindFixed   = 1
	kindDynamic = 2
	kindRaw     = 3
	lastFlag    = 4
)

var (
	errCode   = errors.New("no code of deflate")
	errForm   = errors.New("gzip stream of a form that can't be made again")
	errLayout = errors.New("layout is damaged")
	errTokens = errors.New("tokens don't fit their layout")
)

// span is a range of lengths or distances that share a symbol.
type span struct {
	base  uint16
	extra uint8
}

// lengths and distances are deflate's, by symbol (of lengths less 257).
var (
	lengths   = makeSpans(29, 4, 3)
	distances = makeSpans(30, 2, 1)
)

// makeSpans has group symbols for each number of extra bits, twice as many for none.
func makeSpans(n, group int, base uint16) []span {
	out := make([]span, n)
	for i := range out {
		if i >= 2*group {
			out[i].extra = uint8(i/group - 1)
		}
		out[i].base = base
		base += 1 << out[i].extra
	}
	if group == 4 {
		out[28] = span{258, 0}
	}
	return out
}

// codes are the bits of symbols, reversed as deflate writes them; n is 0 for symbols
// that have none.
type codes struct {
	code [maxLitLen + 2]uint16
	n    [maxLitLen + 2]uint8
}

// assign gives each symbol its code, from the codes' lengths.
func (c *codes) assign(lens []uint8) error {
	var count, next [maxBits + 2]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	code := 0
	for n := 1; n <= maxBits; n++ {
		code = (code + count[n-1]) << 1
		if next[n] = code; code+count[n] > 1<<n {
			return errCode // more symbols than codes
		}
	}
	*c = codes{}
	for i, n := range lens {
		if n > 0 {
			c.code[i] = bits.Reverse16(uint16(next[n])) >> (16 - n)
			c.n[i] = n
			next[n]++
		}
	}
	return nil
}

// fixedLens are the lengths of the fixed code.
func fixedLens() (lit [288]uint8, dist [30]uint8) {
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	return lit, dist
}

// bitSource gives bits, the lowest first.
type bitSource interface {
	take(n uint) (uint32, error)
}

// order is in which order the lengths of the code of code lengths are written.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the header of a block that has codes of its own.
func readCodes(r bitSource) (lit, dist []uint8, err error) {
	var n [3]uint32
	for i, width := range []uint{5, 5, 4} {
		if n[i], err = r.take(width); err != nil {
			return nil, nil, err
		}
	}
	nlit, ndist, nclen := int(n[0])+257, int(n[1])+1, int(n[2])+4
	if nlit > maxLitLen {
		return nil, nil, errCode
	}
	var meta [19]uint8
	for _, at := range order[:nclen] {
		v, err := r.take(3)
		if err != nil {
			return nil, nil, err
		}
		meta[at] = uint8(v)
	}
	m, err := newMeta(meta)
	if err != nil {
		return nil, nil, err
	}
	lens := make([]uint8, 0, maxLitLen+32+138)
	for len(lens) < nlit+ndist {
		if lens, err = m.readLens(r, lens); err != nil {
			return nil, nil, err
		}
	}
	if len(lens) > nlit+ndist || ndist > maxDist && nonZero(lens[nlit+maxDist:]) {
		return nil, nil, errCode
	}
	return lens[:nlit], lens[nlit:min(nlit+ndist, nlit+maxDist)], nil
}

func nonZero(b []uint8) bool {
	for _, v := range b {
		if v != 0 {
			return true
		}
	}
	return false
}

// metaCode is the code of code lengths: how many symbols have codes of each length, and
// the symbols in the order of their codes.
type metaCode struct {
	count   [8]int
	symbols []uint8
}

func newMeta(lens [19]uint8) (m metaCode, err error) {
	for n := uint8(1); n <= 7; n++ {
		for s, l := range lens {
			if l == n {
				m.count[n]++
				m.symbols = append(m.symbols, uint8(s))
			}
		}
	}
	left := 1
	for n := 1; n <= 7; n++ {
		if left = left<<1 - m.count[n]; left < 0 {
			return m, errCode // more symbols than codes
		}
	}
	return m, nil
}

// readLens reads one symbol, which stands for one or more lengths.
func (m *metaCode) readLens(r bitSource, lens []uint8) ([]uint8, error) {
	code, first, index := 0, 0, 0
	for n := 1; n <= 7; n++ {
		bit, err := r.take(1)
		if err != nil {
			return nil, err
		}
		code |= int(bit)
		if k := m.count[n]; code-first < k {
			return repeatLen(r, m.symbols[index+code-first], lens)
		}
		index += m.count[n]
		first = (first + m.count[n]) << 1
		code <<= 1
	}
	return nil, errCode
}

// repeatLen does what a symbol of the code of code lengths says.
func repeatLen(r bitSource, symbol uint8, lens []uint8) ([]uint8, error) {
	var value uint8
	var width uint
	var least uint32
	switch symbol {
	case 16:
		if len(lens) == 0 {
			return nil, errCode
		}
		value, width, least = lens[len(lens)-1], 2, 3
	case 17:
		width, least = 3, 3
	case 18:
		width, least = 7, 11
	default:
		return append(lens, symbol), nil
	}
	n, err := r.take(width)
	if err != nil {
		return nil, err
	}
	for range n + least {
		lens = append(lens, value)
	}
	return lens, nil
}
