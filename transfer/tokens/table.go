package tokens

// entry is what the next bits mean.
//
//	bits 0–3    how many bits the code takes
//	bits 4–7    how many extra bits follow; of a link, how wide the second table is
//	bits 8–10   the kind
//	bits 16–31  a literal, the base of a length or distance, endOfBlock, or where a
//	            second table begins
type entry uint32

const (
	isLiteral entry = 1 << 8
	isStop    entry = 1 << 9 // the end of the block, or (not endOfBlock) no code
	isLink    entry = 1 << 10
)

func (e entry) used() uint    { return uint(e & 15) }
func (e entry) extra() uint   { return uint(e >> 4 & 15) }
func (e entry) value() uint32 { return uint32(e) >> 16 }
func (e entry) mask() uint32  { return 1<<e.extra() - 1 }
func (e entry) literal() bool { return e&isLiteral != 0 }
func (e entry) stops() bool   { return e&isStop != 0 }

// first is how many bits the first table is indexed by.
const first = 11

// table finds what bits mean: codes of at most first bits in its first part, longer ones
// in a second table that this links to.
type table struct {
	first  [1 << first]entry
	second []entry
}

func (t *table) look(acc uint64) entry {
	e := t.first[acc&(1<<first-1)]
	if e&isLink != 0 {
		e = t.second[uint64(e.value())+acc>>first&uint64(e.mask())]
	}
	return e
}

// litEntry and distEntry are what symbols mean, without their codes' lengths.
func litEntry(symbol int) entry {
	switch {
	case symbol < endOfBlock:
		return entry(symbol)<<16 | isLiteral
	case symbol == endOfBlock:
		return endOfBlock<<16 | isStop
	case symbol < maxLitLen:
		s := lengths[symbol-257]
		return entry(s.base)<<16 | entry(s.extra)<<4
	}
	return isStop
}

func distEntry(symbol int) entry {
	s := distances[symbol]
	return entry(s.base)<<16 | entry(s.extra)<<4
}

// build makes the table of a code.
func (t *table) build(lens []uint8, mean func(symbol int) entry) error {
	var c codes
	if err := c.assign(lens); err != nil {
		return err
	}
	for i := range t.first {
		t.first[i] = isStop
	}
	t.second = t.second[:0]
	var width [1 << first]uint8 // of second tables
	for s := range lens {
		if n := c.n[s]; n > first {
			low := c.code[s] & (1<<first - 1)
			width[low] = max(width[low], n-first)
		}
	}
	for s := range lens {
		n := uint(c.n[s])
		if n == 0 {
			continue
		}
		e := mean(s) | entry(n)
		if n <= first {
			for i := uint(c.code[s]); i < 1<<first; i += 1 << n {
				t.first[i] = e
			}
			continue
		}
		low := c.code[s] & (1<<first - 1)
		w := uint(width[low])
		if t.first[low]&isLink == 0 {
			t.first[low] = isLink | entry(len(t.second))<<16 | entry(w)<<4
			for range 1 << w {
				t.second = append(t.second, isStop)
			}
		}
		base := int(t.first[low].value())
		for i := uint(c.code[s]) >> first; i < 1<<w; i += 1 << (n - first) {
			t.second[base+int(i)] = e
		}
	}
	return nil
}
