package memory

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/api"
)

const (
	window  = 256 << 10 // bytes a stream holds before Write blocks
	segment = 16 << 10  // the unit in which streams share a host's rate
)

// conn is one end of a stream.
type conn struct {
	h       *Host
	peer    string
	link    *link
	in, out *pipe
	closed  bool // guarded by n.mu
}

// pipe is one direction of a stream; n.mu guards it.
type pipe struct {
	n        *Network
	from, to string
	wake     *sync.Cond // something changed
	waiting  [][]byte   // for their turns on the writer's link
	flying   [][]byte   // sent, not yet there
	queue    [][]byte   // to be read
	size     int        // bytes in all three
	end      bool       // the writer has finished
	err      error      // the stream was reset

	read, write deadline
}

// deadline wakes a pipe when it passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

// pair makes the two ends of a stream, with n.mu held.
func (n *Network) pair(l *link, a, b *Host) (near, far *conn) {
	newPipe := func(from, to string) *pipe {
		return &pipe{n: n, from: from, to: to, wake: sync.NewCond(&n.mu)}
	}
	ab, ba := newPipe(a.id, b.id), newPipe(b.id, a.id)
	near = &conn{h: a, peer: b.id, link: l, in: ba, out: ab}
	far = &conn{h: b, peer: a.id, link: l, in: ab, out: ba}
	l.conns[near], l.conns[far] = true, true
	return near, far
}

// fail resets a pipe.
func (p *pipe) fail(err error) {
	if p.err == nil {
		p.err = err
	}
	p.wake.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(p *pipe, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		d.timer = p.alarm(t)
	}
	p.wake.Broadcast()
}

// alarm wakes the pipe at a time.
func (p *pipe) alarm(t time.Time) *time.Timer {
	return time.AfterFunc(time.Until(t), func() {
		p.n.mu.Lock()
		defer p.n.mu.Unlock()
		p.wake.Broadcast()
	})
}

func (c *conn) Read(b []byte) (int, error) {
	n, p := c.h.n, c.in
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case p.read.passed():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		if len(p.queue) > 0 && n.reachable(p.from, p.to) {
			k := copy(b, p.queue[0])
			if p.queue[0] = p.queue[0][k:]; len(p.queue[0]) == 0 {
				p.queue = p.queue[1:]
			}
			p.size -= k
			p.wake.Broadcast()
			return k, nil
		}
		switch {
		case p.end && p.size == 0:
			return 0, io.EOF
		case p.err != nil:
			return 0, api.Unavailable("read, peer %s: %w", c.peer, p.err)
		}
		p.wake.Wait()
	}
}

func (c *conn) Write(b []byte) (int, error) {
	n, p := c.h.n, c.out
	n.mu.Lock()
	defer n.mu.Unlock()
	done := 0
	for {
		switch {
		case c.closed:
			return done, net.ErrClosed
		case p.err != nil:
			return done, api.Unavailable("write, peer %s: %w", c.peer, p.err)
		case p.end:
			return done, api.Unavailable("write, peer %s: stream closed", c.peer)
		case p.write.passed():
			return done, os.ErrDeadlineExceeded
		case done == len(b):
			return done, nil
		}
		room := min(window-p.size, segment, len(b)-done)
		if room <= 0 {
			p.wake.Wait()
			continue
		}
		p.size += room
		n.send(p, append([]byte(nil), b[done:done+room]...))
		done += room
		p.wake.Broadcast()
	}
}

// CloseWrite ends the sending side; the peer reads EOF.
func (c *conn) CloseWrite() error {
	c.h.n.mu.Lock()
	defer c.h.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.out.end = true
	c.out.wake.Broadcast()
	return nil
}

// Close ends both sides: what was written still arrives, and a peer that keeps sending
// gets an error.
func (c *conn) Close() error {
	c.h.n.mu.Lock()
	defer c.h.n.mu.Unlock()
	c.end()
	return nil
}

func (c *conn) end() {
	if c.closed {
		return
	}
	c.closed = true
	delete(c.link.conns, c)
	c.out.end = true
	c.out.wake.Broadcast()
	c.in.fail(api.Unavailable("stream reset"))
	for _, d := range []*deadline{&c.in.read, &c.out.write} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
}

func (c *conn) LocalAddr() net.Addr  { return Addr(c.h.id) }
func (c *conn) RemoteAddr() net.Addr { return Addr(c.peer) }

func (c *conn) SetDeadline(t time.Time) error      { return c.setDeadlines(t, true, true) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadlines(t, true, false) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *conn) setDeadlines(t time.Time, read, write bool) error {
	c.h.n.mu.Lock()
	defer c.h.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if read {
		c.in.read.set(c.in, t)
	}
	if write {
		c.out.write.set(c.out, t)
	}
	return nil
}
