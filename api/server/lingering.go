package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// lingerListener's connections can be told to end in order. Those of TLS are left as
// they are: net/http wants to see what they prove.
type lingerListener struct{ net.Listener }

func (l lingerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if _, secret := c.(*tls.Conn); err != nil || secret {
		return c, err
	}
	return &lingerConn{Conn: c}, nil
}

// lingerConn is a connection that may have unread bytes of an upload when it is closed.
// The kernel then resets it, and the client would lose the answer.
type lingerConn struct {
	net.Conn
	unread atomic.Bool
}

type lingerKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, lingerKey{}, c)
}

// closeInOrder has the connection of a request closed in order.
func closeInOrder(ctx context.Context) {
	if c, ok := ctx.Value(lingerKey{}).(*lingerConn); ok {
		c.unread.Store(true)
	}
}

const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 20
)

// Close lets the client read the answer to its end first.
func (c *lingerConn) Close() error {
	if c.unread.Swap(false) && c.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	return c.Conn.Close()
}

// CloseWrite says that nothing follows.
func (c *lingerConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn is the connection's below, if that has one.
func (c *lingerConn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
