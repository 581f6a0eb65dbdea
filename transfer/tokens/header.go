package tokens

import (
	"bytes"
	"encoding/binary"
)

const (
	// MaxHeader is the longest gzip header that is understood.
	MaxHeader = 4 << 10
	minHeader = 10
)

// HeaderSize is the length of the gzip header that b begins with; 0 if that isn't one, or
// isn't all there.
func HeaderSize(b []byte) int {
	if len(b) < minHeader || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return 0
	}
	at := minHeader
	if b[3]&4 != 0 { // more of it follows
		if at+2 > len(b) {
			return 0
		}
		at += 2 + int(binary.LittleEndian.Uint16(b[at:]))
	}
	for _, flag := range []byte{8, 16} { // name, comment
		if b[3]&flag == 0 || at > len(b) {
			continue
		}
		n := bytes.IndexByte(b[at:], 0)
		if n < 0 {
			return 0
		}
		at += n + 1
	}
	if b[3]&2 != 0 {
		at += 2
	}
	if at > len(b) || at > MaxHeader {
		return 0
	}
	return at
}
