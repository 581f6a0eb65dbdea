package daemon

import (
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// sessionBuffer is how many bytes of output wait for a client.
const sessionBuffer = 1 << 20

// session is one client's connection with a process.
type session struct {
	conn *net.UnixConn
	want wire.Streams
	raw  bool // a terminal's output, without frames

	mu     sync.Mutex
	change sync.Cond // of anything below
	buf    []byte    // what the client shall get
	spare  []byte    // the buffer that was sent last
	ending bool      // nothing is added to buf any more
	dead   bool      // the client is gone, or was given up
}

func newSession(conn *net.UnixConn, want wire.Streams, raw bool) *session {
	s := &session{conn: conn, want: want, raw: raw}
	s.change.L = &s.mu
	return s
}

// push adds output to what the client shall get. Without room it waits: for as
// long as patience says, or without limit if that is 0. It is false once the
// client is gone or was given up.
func (s *session) push(stream byte, output []byte, patience time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.wants(stream) {
		return !s.dead
	}
	if !s.dead && s.full(output) && patience > 0 {
		defer time.AfterFunc(patience, s.drop).Stop()
	}
	for !s.dead && s.full(output) {
		s.change.Wait()
	}
	if s.dead {
		return false
	}
	if s.raw {
		s.buf = append(s.buf, output...)
	} else {
		s.buf = wire.AppendFrame(s.buf, stream, output)
	}
	s.change.Broadcast()
	return true
}

func (s *session) full(output []byte) bool {
	return len(s.buf) > 0 && len(s.buf)+len(output) > sessionBuffer
}

// end says that what was pushed is all.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	s.change.Broadcast()
}

// drop gives the client up.
func (s *session) drop() {
	s.mu.Lock()
	s.dead = true
	s.change.Broadcast()
	s.mu.Unlock()
	_ = s.conn.Close() // unblocks who reads or writes it
}

// run sends output until its end or the client's, and closes the connection.
func (s *session) run() {
	defer s.drop()
	for {
		output, ok := s.next()
		if !ok {
			return
		}
		if _, err := s.conn.Write(output); err != nil {
			return
		}
	}
}

// next waits for output; ok is false if no more comes.
func (s *session) next() (output []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A client that is idle needs no buffer.
	if s.spare = s.spare[:0]; len(s.buf) == 0 || cap(s.spare) > 2*sessionBuffer {
		s.spare = nil
	}
	for len(s.buf) == 0 && !s.ending && !s.dead {
		s.change.Wait()
	}
	if s.dead || len(s.buf) == 0 {
		return nil, false
	}
	output = s.buf
	s.buf, s.spare = s.spare, output
	s.change.Broadcast()
	return output, true
}

// receive copies what the client sends to stdin, or nowhere if that is nil, until
// the client sends no more. It says so to eof, and goes on until the client has
// closed the connection altogether; then the session ends.
func (s *session) receive(stdin io.Writer, eof func()) {
	buf := make([]byte, 32<<10)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 && stdin != nil {
			if _, wErr := stdin.Write(buf[:n]); wErr != nil {
				stdin = nil // nobody reads it any more
			}
		}
		if err != nil {
			break
		}
	}
	buf = nil
	eof()
	s.awaitClose()
	s.drop()
}

// awaitClose blocks until the other side has closed both directions.
func (s *session) awaitClose() {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return
	}
	// Its error is that the connection is closed, by us.
	_ = raw.Read(func(fd uintptr) bool { return hungUp(int(fd)) })
}

// hungUp says whether the other side of a socket is closed in both directions.
func hungUp(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(poll, 0)
	return n > 0 && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 || err != nil && err != unix.EINTR
}
