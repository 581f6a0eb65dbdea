package tokens

import "errors"

// Planes are tokens sorted by what they are, which compresses better than as they come.
type Planes struct {
	Gaps     []byte // how many literals come before each copy; 255 means that more follow
	Literals []byte // without escapes; those behind the last copy, too
	Lengths  []byte // less 3
	Upper    []byte // bytes of distances less 1
	Lower    []byte
	Rest     []byte // the beginning of a copy, if that is where tokens end
}

var errPlanes = errors.New("tokens in planes don't fit each other")

// Split sorts tokens. They may begin and end inside one.
func Split(b []byte) (p Planes) {
	gap := 0
	for i := 0; i < len(b); {
		if b[i] != escape {
			p.Literals = append(p.Literals, b[i])
			gap++
			i++
			continue
		}
		if i+1 < len(b) && b[i+1] == escaped {
			p.Literals = append(p.Literals, escape)
			gap++
			i += 2
			continue
		}
		if len(b)-i < copySize {
			p.Rest = b[i:]
			break
		}
		for ; gap >= 255; gap -= 255 {
			p.Gaps = append(p.Gaps, 255)
		}
		p.Gaps = append(p.Gaps, byte(gap))
		p.Upper, p.Lower, p.Lengths = append(p.Upper, b[i+1]), append(p.Lower, b[i+2]), append(p.Lengths, b[i+3])
		gap = 0
		i += copySize
	}
	return p
}

// Join makes n bytes of tokens again of what Split gave.
func Join(p Planes, n int) ([]byte, error) {
	if len(p.Upper) != len(p.Lengths) || len(p.Lower) != len(p.Lengths) || len(p.Literals)+len(p.Rest) > n || len(p.Lengths) > n/copySize {
		return nil, errPlanes
	}
	out := make([]byte, 0, n+copySize)
	literals, gaps := p.Literals, p.Gaps
	for i, length := range p.Lengths {
		for more := true; more; {
			if len(gaps) == 0 || int(gaps[0]) > len(literals) {
				return nil, errPlanes
			}
			k := int(gaps[0])
			more, gaps = k == 255, gaps[1:]
			out, literals = appendLiterals(out, literals[:k]), literals[k:]
		}
		if out = append(out, escape, p.Upper[i], p.Lower[i], length); len(out) > n {
			return nil, errPlanes
		}
	}
	out = append(appendLiterals(out, literals), p.Rest...)
	if len(gaps) > 0 || len(out) != n {
		return nil, errPlanes
	}
	return out, nil
}

func appendLiterals(out, literals []byte) []byte {
	for _, c := range literals {
		if out = append(out, c); c == escape {
			out = append(out, escaped)
		}
	}
	return out
}
