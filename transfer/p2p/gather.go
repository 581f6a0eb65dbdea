package p2p

import (
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// recordSize is the most that TLS puts in one record, and so in one write of its own.
const recordSize = 16 << 10

// gatherSize is how many bytes of records go in one write: enough for the kernel to
// build the largest packets it can, few enough to be in a processor's own cache, and 128
// KiB of content fit in, with what TLS and others put around them.
const gatherSize = 132 << 10

// gathering makes the connections of a security transport write the records of one
// Write together. TLS alone calls the kernel for each, and the kernel sends them one by
// one, which costs more than to encrypt them.
type gathering struct{ sec.SecureTransport }

func (t gathering) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	return gathered(insecure, func(c net.Conn) (sec.SecureConn, error) { return t.SecureTransport.SecureInbound(ctx, c, p) })
}

func (t gathering) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	return gathered(insecure, func(c net.Conn) (sec.SecureConn, error) { return t.SecureTransport.SecureOutbound(ctx, c, p) })
}

func gathered(insecure net.Conn, secure func(net.Conn) (sec.SecureConn, error)) (sec.SecureConn, error) {
	g := &gatherer{Conn: insecure, patience: newPatience(insecure)}
	c, err := secure(g)
	if err != nil {
		return nil, err
	}
	return &gatheredConn{c, g}, nil
}

// gatheredConn is a secured connection over a gatherer.
type gatheredConn struct {
	sec.SecureConn
	g *gatherer
}

func (c *gatheredConn) Write(b []byte) (int, error) {
	if len(b) <= recordSize {
		return c.SecureConn.Write(b)
	}
	c.g.hold()
	n, err := c.SecureConn.Write(b)
	if failed := c.g.release(); failed != nil && err == nil {
		return 0, failed
	}
	return n, err
}

// Close doesn't wait for a Write under way, which fails.
func (c *gatheredConn) Close() error {
	if c.g.writing() {
		// TLS would wait for it, to say goodbye.
		c.g.Conn.Close()
	}
	return c.SecureConn.Close()
}

// gatherer is a connection that, while it is held, keeps what is written until there is
// gatherSize of it. What fails stays failed, as part of the stream is lost.
type gatherer struct {
	net.Conn
	patience *patience

	mu    sync.Mutex // of all writing
	holds int
	buf   *[gatherSize]byte // nil: nothing is kept
	kept  int
	err   error
}

var gatherBuffers = sync.Pool{New: func() any { return new([gatherSize]byte) }}

// hold begins to keep what is written, until as many calls of release.
func (g *gatherer) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds++
}

// release writes what is kept, if nobody else holds it.
func (g *gatherer) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holds--; g.holds == 0 {
		g.flush()
	}
	return g.err
}

// writing says whether a Write may wait for the kernel.
func (g *gatherer) writing() bool {
	if !g.mu.TryLock() {
		return true
	}
	g.mu.Unlock()
	return false
}

func (g *gatherer) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	g.patience.came(b[:n])
	return n, err
}

func (g *gatherer) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return 0, g.err
	}
	if g.holds == 0 {
		return g.Conn.Write(b)
	}
	for rest := b; len(rest) > 0; {
		if g.buf == nil {
			g.buf = gatherBuffers.Get().(*[gatherSize]byte)
		}
		n := copy(g.buf[g.kept:], rest)
		g.kept += n
		rest = rest[n:]
		if g.kept == gatherSize {
			if g.flush(); g.err != nil {
				return len(b) - len(rest), g.err
			}
		}
	}
	return len(b), nil
}

// flush writes what is kept, and keeps the buffer no longer. With g.mu held.
func (g *gatherer) flush() {
	if g.buf == nil {
		return
	}
	if g.err == nil {
		_, g.err = g.Conn.Write(g.buf[:g.kept])
	}
	gatherBuffers.Put(g.buf)
	g.buf, g.kept = nil, 0
}
