package p2p

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoal-engine/shoal/api"
)

// bareID is the name of the way to use a connection for one stream: the bytes that are
// left when TLS is taken off are the stream's. A muxer copies them twice more, and hands
// them from one goroutine to another on both sides.
const bareID protocol.ID = "/shoal/bare/1"

// maxBare is how many such connections a peer may have here at a time, so that it always
// has room for usual ones.
const maxBare = maxConnsPerPeer / 2

// bareMuxer makes connections of one stream, which the side that dialed opens.
type bareMuxer struct{}

func (bareMuxer) NewConn(c net.Conn, server bool, _ network.PeerScope) (network.MuxedConn, error) {
	if g, ok := c.(*gatheredConn); ok && server {
		// libp2p has connections end with a reset, which overtakes what was said last.
		if t, ok := g.g.Conn.(interface{ SetLinger(int) error }); ok {
			_ = t.SetLinger(-1) // then the other side may have to ask again
		}
	}
	return &bareConn{Conn: c, server: server}, nil
}

// bareConn is such a connection, and its stream. Only this package sees it, and takes or
// opens the stream once.
type bareConn struct {
	net.Conn
	server bool
	closed atomic.Bool
}

var errOneStream = errors.New("a connection of one stream has no others")

func (c *bareConn) OpenStream(context.Context) (network.MuxedStream, error) {
	if c.server {
		return nil, errOneStream
	}
	return c, nil
}

func (c *bareConn) AcceptStream() (network.MuxedStream, error) {
	if !c.server {
		return nil, errOneStream
	}
	return c, nil
}

func (c *bareConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func (c *bareConn) CloseWithError(network.ConnErrorCode) error   { return c.Close() }
func (c *bareConn) Reset() error                                 { return c.Close() }
func (c *bareConn) ResetWithError(network.StreamErrorCode) error { return c.Close() }
func (c *bareConn) CloseRead() error                             { return nil }
func (c *bareConn) CloseWrite() error                            { return nil }
func (c *bareConn) IsClosed() bool                               { return c.closed.Load() }
func (c *bareConn) As(any) bool                                  { return false }

// bareTransport dials connections of one stream.
func (h *Host) bareTransport() (transport.Transport, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.bares.dialer == nil {
		t, err := h.newTransport([]upgrader.StreamMuxer{{ID: bareID, Muxer: bareMuxer{}}})
		if err != nil {
			return nil, err
		}
		h.bares.dialer = t
	}
	return h.bares.dialer, nil
}

// bares are a host's connections of one stream.
type bares struct {
	dialer transport.Transport // made when it is first needed
	open   map[*bareStream]bool
}

// DialBeside is Dial over a connection of its own, which carries this stream alone and
// ends with it. Setting it up takes longer, but large amounts cost less on it, and each
// end of a connection encrypts on one processor.
func (h *Host) DialBeside(ctx context.Context, peerID, proto string) (net.Conn, error) {
	id, err := h.peerToDial(peerID, proto)
	if err != nil {
		return nil, err
	}
	ctx, cancel := dialingTime(ctx)
	defer cancel()
	t, err := h.bareTransport()
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, a := range h.store.Addrs(id) {
		c, err := t.Dial(ctx, a, id)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		s, err := h.openBare(ctx, c, proto)
		return s, explainDial(ctx, peerID, proto, err)
	}
	if failed == nil {
		failed = append(failed, errors.New("no address is known"))
	}
	return nil, explainDial(ctx, peerID, proto, errors.Join(failed...))
}

// openBare agrees with the peer on what the stream of a connection just dialed is for.
func (h *Host) openBare(ctx context.Context, c transport.CapableConn, proto string) (net.Conn, error) {
	m, err := c.OpenStream(ctx)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s := newBareStream(h, c, m)
	s.proto = proto
	if err := h.keepBare(s); err != nil {
		return nil, err
	}
	if err := negotiate(ctx, m, proto); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// keepBare notes an open connection, so that it can be ended from outside, or closes it
// if there may be no more of its peer's.
func (h *Host) keepBare(s *bareStream) error {
	h.mu.Lock()
	n := 0
	for x := range h.bares.open {
		if x.remote == s.remote {
			n++
		}
	}
	closed, full := h.closed, n >= maxBare
	if !closed && !full {
		h.bares.open[s] = true
		h.mu.Unlock()
		return nil
	}
	h.mu.Unlock()
	s.c.Close()
	if closed {
		return net.ErrClosed
	}
	return api.Unavailable("peer %s has %d connections of one stream", s.remote, n)
}

// closeBares ends those with a peer, or all.
func (h *Host) closeBares(with Addr, all bool) {
	h.mu.Lock()
	var end []*bareStream
	for s := range h.bares.open {
		if all || s.remote == with {
			end = append(end, s)
		}
	}
	h.mu.Unlock()
	for _, s := range end {
		s.Close()
	}
}

// bareListening is a transport whose listeners keep connections of one stream from the
// swarm, which would open more on them.
type bareListening struct {
	*tcp.TcpTransport
	h *Host
}

func (t bareListening) Listen(a ma.Multiaddr) (transport.Listener, error) {
	l, err := t.TcpTransport.Listen(a)
	if err != nil {
		return nil, err
	}
	return &bareListener{l, t.h}, nil
}

type bareListener struct {
	transport.Listener
	h *Host
}

func (l *bareListener) Accept() (transport.CapableConn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || c.ConnState().StreamMultiplexer != bareID {
			return c, err
		}
		l.h.takeBare(c)
	}
}

// takeBare hands the stream of a connection to the listener of its protocol. Strangers
// get none.
func (h *Host) takeBare(c transport.CapableConn) {
	m, err := c.AcceptStream()
	if err != nil || !h.limits.isKnown(c.RemotePeer()) {
		h.log.Debug("refuse a connection of one stream", "peer", c.RemotePeer().String(), "err", err)
		c.Close()
		return
	}
	s := newBareStream(h, c, m)
	if err := h.keepBare(s); err != nil {
		h.log.Debug("refuse a connection of one stream", "err", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return // Close has ended it, or does
	}
	h.ending.Go(func() {
		to, proto, err := h.agree(m, c.RemotePeer())
		if err != nil {
			s.Close()
			return
		}
		s.proto = string(proto)
		to.offer(s)
	})
}

// bareStream is the one stream of a connection, as a net.Conn.
type bareStream struct {
	h      *Host
	c      transport.CapableConn
	m      network.MuxedStream
	proto  string
	remote Addr
	once   sync.Once
	closed atomic.Bool
}

func newBareStream(h *Host, c transport.CapableConn, m network.MuxedStream) *bareStream {
	return &bareStream{h: h, c: c, m: m, remote: Addr(c.RemotePeer().String())}
}

func (s *bareStream) Read(b []byte) (int, error) {
	n, err := s.m.Read(b)
	return n, s.explain("read", err)
}

func (s *bareStream) Write(b []byte) (int, error) {
	n, err := s.m.Write(b)
	return n, s.explain("write", err)
}

// Close ends the connection, too.
func (s *bareStream) Close() error {
	s.once.Do(func() {
		s.closed.Store(true)
		_ = s.c.Close() // what isn't sent yet may be lost either way
		s.h.mu.Lock()
		delete(s.h.bares.open, s)
		s.h.mu.Unlock()
	})
	return nil
}

func (s *bareStream) abandon()             { s.Close() }
func (s *bareStream) LocalAddr() net.Addr  { return Addr(s.h.ID()) }
func (s *bareStream) RemoteAddr() net.Addr { return s.remote }

func (s *bareStream) SetDeadline(t time.Time) error      { return s.m.SetDeadline(t) }
func (s *bareStream) SetReadDeadline(t time.Time) error  { return s.m.SetReadDeadline(t) }
func (s *bareStream) SetWriteDeadline(t time.Time) error { return s.m.SetWriteDeadline(t) }

func (s *bareStream) explain(step string, err error) error {
	return explain(step, err, s.closed.Load(), s.c.IsClosed, s.remote, s.proto)
}
