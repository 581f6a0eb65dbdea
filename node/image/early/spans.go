package early

import "slices"

// Span is a range of bytes, end exclusive.
type Span struct{ Start, End int64 }

// Spans are ranges, sorted, that never touch.
type Spans []Span

// at is the first span that ends at or behind off.
func (s Spans) at(off int64) int {
	i, _ := slices.BinarySearchFunc(s, off, func(x Span, off int64) int {
		if x.End < off {
			return -1
		}
		return 1
	})
	return i
}

// Add adds a range.
func (s *Spans) Add(x Span) {
	if x.Start >= x.End {
		return
	}
	i := s.at(x.Start)
	j := i
	for j < len(*s) && (*s)[j].Start <= x.End {
		x.Start, x.End = min(x.Start, (*s)[j].Start), max(x.End, (*s)[j].End)
		j++
	}
	*s = slices.Replace(*s, i, j, x)
}

// Has says whether all of a range is there.
func (s Spans) Has(x Span) bool {
	if x.Start >= x.End {
		return true
	}
	i := s.at(x.Start + 1)
	return i < len(s) && s[i].Start <= x.Start && x.End <= s[i].End
}

// Without is what of a range isn't there.
func (s Spans) Without(x Span) []Span {
	var out []Span
	for i := s.at(x.Start); i < len(s) && s[i].Start < x.End; i++ {
		if s[i].Start > x.Start {
			out = append(out, Span{x.Start, s[i].Start})
		}
		x.Start = max(x.Start, s[i].End)
	}
	if x.Start < x.End {
		out = append(out, x)
	}
	return out
}

// Remove takes a range out.
func (s *Spans) Remove(x Span) {
	if x.Start >= x.End {
		return
	}
	var left Spans
	for _, old := range *s {
		left = append(left, Spans{x}.Without(old)...)
	}
	*s = left
}

// Around is the span that a range which is there lies in.
func (s Spans) Around(x Span) Span {
	if i := s.at(x.Start + 1); i < len(s) {
		return s[i]
	}
	return x
}
