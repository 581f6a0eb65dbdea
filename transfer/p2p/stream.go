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
	id, err := h.peerToDial(peerID, proto)
	if err != nil {
		return nil, err
	}
	ctx, cancel := dialingTime(ctx)
	defer cancel()
	s, again, err := h.dialed(ctx, id, proto)
	if again && ctx.Err() == nil {
		// The connection we had was dead without our knowing; a fresh one may do.
		s, _, err = h.dialed(ctx, id, proto)
	}
	if err != nil {
		return nil, explainDial(ctx, peerID, proto, err)
	}
	return h.wrap(s, proto), nil
}

func (h *Host) peerToDial(peerID, proto string) (peer.ID, error) {
	id, err := peer.Decode(peerID)
	if err != nil {
		return "", api.InvalidArgument("dial peer %q: not a peer ID: %w", peerID, err)
	}
	if id == h.id {
		return "", api.InvalidArgument("dial peer %s, protocol %s: that is this node itself", peerID, proto)
	}
	return id, nil
}

// dialingTime bounds a dial whose caller doesn't.
func dialingTime(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, dialTimeout+negotiateTimeout)
}

func explainDial(ctx context.Context, peerID, proto string, err error) error {
	var unsupported mss.ErrNotSupported[protocol.ID]
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unsupported):
		return api.Errorf(errdefs.ErrPermissionDenied, "peer %s doesn't take protocol %s from this node", peerID, proto)
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return api.Unavailable("dial peer %s, protocol %s: %w: %w", peerID, proto, ctx.Err(), err)
	}
	return api.Unavailable("dial peer %s, protocol %s: %w", peerID, proto, err)
}

// dialed is a stream of a protocol to a peer, and whether another attempt may help.
func (h *Host) dialed(ctx context.Context, id peer.ID, proto string) (s network.Stream, again bool, err error) {
	had := h.swarm.Connectedness(id) == network.Connected
	// libp2p refuses to dial for seconds after a failure; whoever dials here knows why,
	// and paces itself.
	h.swarm.Backoff().Clear(id)
	s, err = h.swarm.NewStream(ctx, id)
	if err != nil {
		return nil, false, err
	}
	if err = negotiate(ctx, s, proto); err == nil {
		err = s.SetProtocol(protocol.ID(proto))
	}
	if err != nil {
		dead := s.Conn().IsClosed()
		s.Reset()
		return nil, had && dead, err
	}
	return s, false, nil
}

// negotiate agrees on the protocol of a stream just opened.
func negotiate(ctx context.Context, s network.MuxedStream, proto string) error {
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
	return s.SetDeadline(time.Time{})
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

func (c *stream) abandon() { c.s.Reset() }

func (c *stream) explain(step string, err error) error {
	return explain(step, err, c.closed.Load(), c.s.Conn().IsClosed, c.remote, c.proto)
}

// explain turns the muxer's errors into those of net, and says whose stream it was. A
// connection that is gone is no matter of time.
func explain(step string, err error, closed bool, gone func() bool, remote Addr, proto string) error {
	if err == nil || err == io.EOF {
		return err
	}
	if closed {
		return net.ErrClosed
	}
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() && !gone() {
		return os.ErrDeadlineExceeded
	}
	return api.Unavailable("%s, peer %s, protocol %s: %w", step, remote, proto, err)
}
