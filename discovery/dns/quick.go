package dns

import (
	"encoding/binary"
	"math/rand/v2"

	mdns "github.com/miekg/dns"
)

// record is the size of an A record whose name points at the question.
const record = 16

// quick appends the answer to the question that makes nearly all the traffic, an
// A of a name that exists, without allocating. It says no to everything in the
// least unusual; slow gives the same answer.
func (s *Server) quick(out, raw []byte, stream bool) ([]byte, bool) {
	var space [256]byte
	name, end := plainQuestion(space[:0], raw)
	if end == 0 || len(name) == 0 {
		return nil, false
	}
	size, edns := mdns.MinMsgSize, false
	if rest := raw[end:]; len(rest) > 0 {
		asked, ok := plainOPT(rest)
		if !ok {
			return nil, false
		}
		edns, size = true, max(mdns.MinMsgSize, min(asked, udpSize))
	}
	if edns != (raw[11] == 1) {
		return nil, false
	}
	x := s.current.Load()
	if x == nil {
		return nil, false
	}
	e := x.names[string(name)]
	if e == nil || len(e.v4) == 0 || stream || end+len(e.v4)*record+11 > size {
		return nil, false
	}

	base := len(out)
	out = append(out, raw[:end]...)
	head := out[base : base+12]
	head[2] = raw[2]&0x01 | 0x84 // answer, authoritative; whether recursion was desired is repeated
	head[3] = 0
	if len(*s.upstream.Load()) > 0 {
		head[3] = 0x80
	}
	binary.BigEndian.PutUint16(head[6:], uint16(len(e.v4)))
	first := len(out)
	for _, a := range e.v4 {
		b := a.As4()
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, b[0], b[1], b[2], b[3])
	}
	shuffle(out[first:])
	if edns {
		out = append(out, 0, 0, 41, udpSize>>8, udpSize&0xff, 0, 0, 0, 0, 0, 0)
	}
	return out, true
}

// shuffle exchanges the addresses of A records.
func shuffle(records []byte) {
	for i := len(records)/record - 1; i > 0; i-- {
		j := rand.IntN(i + 1)
		a, b := (*[4]byte)(records[i*record+12:]), (*[4]byte)(records[j*record+12:])
		*a, *b = *b, *a
	}
}

// plainQuestion reads a query of one question, A and IN, whose name is of plain
// letters. It appends the name in lower case with its final dot, and returns where
// the question ends, or 0.
func plainQuestion(name, raw []byte) (_ []byte, end int) {
	if len(raw) < 12+1+4 {
		return nil, 0
	}
	// A query, not truncated, no error, one question, at most one additional record.
	// Bits that only ask (recursion, checking disabled, authentic data) differ in
	// what slow repeats of them, so only the first may be set.
	if raw[2]&0xfe != 0 || raw[3] != 0 || binary.BigEndian.Uint16(raw[4:]) != 1 ||
		binary.BigEndian.Uint32(raw[6:]) != 0 || raw[10] != 0 || raw[11] > 1 {
		return nil, 0
	}
	at := 12
	for raw[at] != 0 {
		n := int(raw[at])
		if n > 63 || at+1+n+1+4 > len(raw) || len(name)+n+1 > 254 {
			return nil, 0
		}
		for _, c := range raw[at+1 : at+1+n] {
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			if !plain(rune(c)) {
				return nil, 0
			}
			name = append(name, c)
		}
		name = append(name, '.')
		at += 1 + n
	}
	if at+5 > len(raw) || binary.BigEndian.Uint32(raw[at+1:]) != 0x0001_0001 {
		return nil, 0
	}
	return name, at + 5
}

// plainOPT reads an EDNS record of version 0 that ends the packet and asks for
// nothing but a size.
func plainOPT(b []byte) (size int, ok bool) {
	if len(b) != 11 || b[0] != 0 || b[1] != 0 || b[2] != 41 || binary.BigEndian.Uint32(b[5:]) != 0 || b[9] != 0 || b[10] != 0 {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(b[3:])), true
}
