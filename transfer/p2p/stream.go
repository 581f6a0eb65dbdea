package p2p

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	mss "github.com/multiformats/go-multistream"

	"github.com/shoal-engine/shoal/api"
)

// Addr is the address of a stream's end: a peer ID.
type Addr string

func (Addr) Network() string  { return "p2p" }
func (a Addr) String() string { return string(a) }

// Dial opens a stream of a protocol to a peer, over the connection there is or a new
// one. The error is Unavailable if the peer can't be reached and PermissionDenied if it
// is there but doesn't take the protocol from this host.
func (h *Host) Dial(ctx context.Context, peerID, proto string) (net.Conn, error) {
	return h.dial(ctx, h.swarm, peerID, proto)
}

// DialBeside is Dial over a second connection, for more than one can carry: each end of
// a connection encrypts on one processor. Such a connection is closed when it has been
// without streams for a while.
func (h *Host) DialBeside(ctx context.Context, peerID, proto string) (net.Conn, error) {
	sw, err := h.besides()
	if err != nil {
		return nil, err
	}
	return h.dial(ctx, sw, peerID, proto)
}

func (h *Host) dial(ctx context.Context, sw *swarm.Swarm, peerID, proto string) (net.Conn, error) {
	id, err := peer.Decode(peerID)
	if err != nil {
		return nil, api.InvalidArgument("dial peer %q: not a peer ID: %w", peerID, err)
	}
	if id == h.id {
		return nil, api.InvalidArgument("dial peer %s, protocol %s: that is this node itself", peerID, proto)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialTimeout+negotiateTimeout)
		defer cancel()
	}
	s, again, err := h.dialed(ctx, sw, id, proto)
	if again && ctx.Err() == nil {
		// The connection we had was dead without our knowing; a fresh one may do.
		s, _, err = h.dialed(ctx, sw, id, proto)
	}
	var unsupported mss.ErrNotSupported[protocol.ID]
	switch {
	case err == nil:
		return h.wrap(s, proto), nil
	case errors.As(err, &unsupported):
		return nil, api.Errorf(errdefs.ErrPermissionDenied, "peer %s doesn't take protocol %s from this node", peerID, proto)
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return nil, api.Unavailable("dial peer %s, protocol %s: %w: %w", peerID, proto, ctx.Err(), err)
	}
	return nil, api.Unavailable("dial peer %s, protocol %s: %w", peerID, proto, err)
}

// dialed is a stream of a protocol to a peer, and whether another attempt may help.
func (h *Host) dialed(ctx context.Context, sw *swarm.Swarm, id peer.ID, protocol string) (s network.Stream, again bool, err error) {
	had := sw.Connectedness(id) == network.Connected
	// libp2p refuses to dial for seconds after a failure; whoever dials here knows why,
	// and paces itself.
	sw.Backoff().Clear(id)
	s, err = sw.NewStream(ctx, id)
	if err != nil {
		return nil, false, err
	}
	if err := negotiate(ctx, s, protocol); err != nil {
		dead := s.Conn().IsClosed()
		s.Reset()
		return nil, had && dead, err
	}
	return s, false, nil
}

// negotiate agrees on the protocol of a stream just opened.
func negotiate(ctx context.Context, s network.Stream, proto string) error {
	limit := time.Now().Add(negotiateTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	s.SetDeadline(limit)
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	_, err := mss.SelectOneOf([]protocol.ID{protocol.ID(proto)}, s)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	s.SetDeadline(time.Time{})
	return s.SetProtocol(protocol.ID(proto))
}

// stream is a libp2p stream as a net.Conn.
type stream struct {
	h      *Host
	s      network.Stream
	proto  string
	remote Addr

	closed atomic.Bool
	eof    atomic.Bool // the peer has ended its side, and we have read all of it
}

func (h *Host) wrap(s network.Stream, proto string) *stream {
	return &stream{h: h, s: s, proto: proto, remote: Addr(s.Conn().RemotePeer().String())}
}

func (c *stream) Read(p []byte) (int, error) {
	n, err := c.s.Read(p)
	if err == io.EOF {
		c.eof.Store(true)
	}
	return n, c.explain("read", err)
}

func (c *stream) Write(p []byte) (int, error) {
	n, err := c.s.Write(p)
	return n, c.explain("write", err)
}

// CloseWrite ends the sending side; the peer reads EOF.
func (c *stream) CloseWrite() error { return c.explain("close write", c.s.CloseWrite()) }

// Close ends both sides at once, also for a Read or Write under way. As with TCP, what
// was written still arrives, and a peer that keeps sending gets an error. (Closing the
// stream of yamux alone would let such a peer block on a full window for ever.)
func (c *stream) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	c.s.SetDeadline(time.Now())
	end := func() {
		if c.eof.Load() {
			c.s.Close()
			return
		}
		// What precedes the end of the stream is safe from the reset that follows it.
		_ = c.s.CloseWrite()
		c.s.Reset()
	}
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.h.closed {
		c.s.Reset()
		return nil
	}
	c.h.ending.Go(end) // both wait while the connection is busy with other streams
	return nil
}

func (c *stream) LocalAddr() net.Addr  { return Addr(c.h.ID()) }
func (c *stream) RemoteAddr() net.Addr { return c.remote }

func (c *stream) SetDeadline(t time.Time) error      { return c.limit(c.s.SetDeadline, t) }
func (c *stream) SetReadDeadline(t time.Time) error  { return c.limit(c.s.SetReadDeadline, t) }
func (c *stream) SetWriteDeadline(t time.Time) error { return c.limit(c.s.SetWriteDeadline, t) }

// limit sets a deadline, but never puts off the end of a closed stream.
func (c *stream) limit(set func(time.Time) error, t time.Time) error {
	err := set(t)
	if c.closed.Load() {
		_ = set(time.Now())
		return net.ErrClosed
	}
	return err
}

// explain turns the muxer's errors into those of net, and says whose stream it was.
func (c *stream) explain(step string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if c.closed.Load() {
		return net.ErrClosed
	}
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() && !c.s.Conn().IsClosed() {
		return os.ErrDeadlineExceeded
	}
	return api.Unavailable("%s, peer %s, protocol %s: %w", step, c.remote, c.proto, err)
}
