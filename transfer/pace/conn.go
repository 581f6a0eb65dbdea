package pace

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits are those of both directions, as seen from this node.
type Limits struct{ Up, Down *Limit }

// Conn keeps a stream within limits; nil limits cost nothing. The other end's address
// says whose stream it is. Time spent waiting for the limit doesn't count against the
// write deadline, which is for a peer that takes nothing.
func (l Limits) Conn(c net.Conn) net.Conn {
	if l.Up == nil && l.Down == nil {
		return c
	}
	return &conn{Conn: c, limits: l, peer: c.RemoteAddr().String(), closed: make(chan struct{})}
}

// Listener keeps the streams that a listener accepts within limits.
func (l Limits) Listener(from net.Listener) net.Listener { return listener{from, l} }

type listener struct {
	net.Listener
	limits Limits
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.limits.Conn(c), nil
}

type conn struct {
	net.Conn
	limits Limits
	peer   string

	patience atomic.Int64 // of writes, in nanoseconds; 0 is without end
	once     sync.Once
	closed   chan struct{}
}

func (c *conn) Read(b []byte) (int, error) {
	down := c.limits.Down
	if down == nil {
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b[:min(len(b), down.segment)])
	if n > 0 && !down.wait(c.closed, c.peer, n) {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	up := c.limits.Up
	if up == nil {
		return c.Conn.Write(b)
	}
	done := 0
	for {
		part := b[done:min(done+up.segment, len(b))]
		if !up.wait(c.closed, c.peer, len(part)) {
			return done, net.ErrClosed
		}
		if d := time.Duration(c.patience.Load()); d > 0 {
			if err := c.Conn.SetWriteDeadline(time.Now().Add(d)); err != nil {
				return done, err
			}
		}
		n, err := c.Conn.Write(part)
		if done += n; err != nil || done == len(b) {
			return done, err
		}
	}
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	var d time.Duration
	if !t.IsZero() {
		d = max(time.Until(t), 1)
	}
	c.patience.Store(int64(d))
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.Conn.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// CloseWrite ends the sending side, if the stream can do that.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
