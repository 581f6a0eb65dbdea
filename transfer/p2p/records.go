package p2p

import (
	"encoding/binary"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	recordHead = 5 // bytes before what is in a record: kind, version, length
	// recordMost is the most that may be in one, as it is on the wire.
	recordMost = recordSize + 256
	// worthWaiting is how much of a record must be missing for the kernel to be told to
	// wait for it.
	worthWaiting = 2 << 10
	// mostWaiting is how much of it the kernel waits for at most, and a windowShare of the
	// connection's window, so that the sender can go on meanwhile.
	mostWaiting = 8 << 10
	windowShare = 4
)

// records follows where TLS records end in a stream.
type records struct {
	head  [recordHead]byte
	got   int  // of head
	left  int  // bytes that the record begun still has
	other bool // the stream is none of records
}

// pass takes note of bytes that came.
func (r *records) pass(b []byte) {
	for len(b) > 0 && !r.other {
		if r.left > 0 {
			n := min(r.left, len(b))
			r.left -= n
			b = b[n:]
			continue
		}
		n := copy(r.head[r.got:], b)
		r.got += n
		b = b[n:]
		if r.got < recordHead {
			return
		}
		r.got, r.left = 0, int(binary.BigEndian.Uint16(r.head[3:]))
		if r.left > recordMost {
			r.left, r.other = 0, true
		}
	}
}

// patience has the kernel wake a connection's reader only when the rest of a record is
// there. On a slow link each packet would wake it otherwise, for TLS to do nothing with
// it: a record has a dozen of them. Only the reader uses it.
type patience struct {
	raw     syscall.RawConn // nil: the connection isn't a socket
	records records
	window  *window // the connection's, if it has one
	wanted  int     // bytes that the kernel waits for
	set     func(fd uintptr)
}

func newPatience(c net.Conn) *patience {
	p := &patience{wanted: 1}
	if s, ok := c.(syscall.Conn); ok {
		p.raw, _ = s.SyscallConn() // nil if it fails
	}
	if w, ok := c.(*windowed); ok {
		p.window = &w.w
	}
	p.set = func(fd uintptr) {
		// If it fails the reader is woken too often, or when the connection ends.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, p.wanted)
	}
	return p
}

// came takes note of bytes that came.
func (p *patience) came(b []byte) {
	if p.raw == nil {
		return
	}
	p.records.pass(b)
	wanted := 1
	if p.records.left >= worthWaiting {
		wanted = min(p.records.left, mostWaiting)
		if p.window != nil && p.window.size > 0 {
			wanted = min(wanted, p.window.size/windowShare)
		}
	}
	if wanted != p.wanted {
		p.wanted = wanted
		_ = p.raw.Control(p.set) // fails when it is closed
	}
}
