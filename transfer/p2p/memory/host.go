package memory

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
)

// Host is one node's end of a network; the methods are those of p2p.Host.
type Host struct {
	n  *Network
	id string

	// All of it is guarded by n.mu.
	allow        func(peerID, protocol string) bool
	peers        map[string][]string
	listeners    map[string]*listener
	onDisconnect []func(peerID string)
	closed       bool
}

// SetAllow says who may open which protocol; everybody may everything without it. f is
// called with no lock held.
func (h *Host) SetAllow(f func(peerID, protocol string) bool) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.allow = f
}

// ID is the host's ID.
func (h *Host) ID() string { return h.id }

// Addrs is where SetPeer finds the host.
func (h *Host) Addrs() []string { return []string{"/memory/" + h.id} }

// SetPeer makes a peer known at the given addresses, which replace earlier ones.
func (h *Host) SetPeer(peerID string, addrs []string) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.peers[peerID] = slices.Clone(addrs)
}

// ForgetPeer forgets a peer's addresses and closes its connection.
func (h *Host) ForgetPeer(peerID string) {
	h.n.mu.Lock()
	delete(h.peers, peerID)
	h.n.mu.Unlock()
	h.Disconnect(peerID)
}

// Disconnect closes the connection to a peer, which stays known.
func (h *Host) Disconnect(peerID string) {
	h.n.mu.Lock()
	l := h.n.links[linkKey(h.id, peerID)]
	if l == nil {
		h.n.mu.Unlock()
		return
	}
	call := h.n.drop(l, api.Unavailable("connection closed"))
	h.n.mu.Unlock()
	call()
}

// Connected says whether a connection to the peer is open.
func (h *Host) Connected(peerID string) bool {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	return h.n.links[linkKey(h.id, peerID)] != nil
}

// OnDisconnect has f called when the connection to a peer has ended, for whatever
// reason but Close.
func (h *Host) OnDisconnect(f func(peerID string)) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.onDisconnect = append(h.onDisconnect, f)
}

// Close ends the host as the end of its process would: peers notice at once, unless
// they are cut off.
func (h *Host) Close() error {
	h.n.mu.Lock()
	if h.closed {
		h.n.mu.Unlock()
		return nil
	}
	h.closed = true
	delete(h.n.hosts, h.id)
	for _, l := range h.listeners {
		l.shut()
	}
	var calls []func()
	for _, l := range h.n.links {
		if l.a != h && l.b != h {
			continue
		}
		if h.n.reachable(l.a.id, l.b.id) {
			calls = append(calls, h.n.drop(l, api.Unavailable("peer has ended")))
			continue
		}
		for c := range l.conns { // the peer finds out when the link is lost
			if c.h == h {
				c.in.fail(net.ErrClosed)
				c.out.fail(net.ErrClosed)
			}
		}
	}
	h.n.mu.Unlock()
	for _, f := range calls {
		f()
	}
	return nil
}

// Listen takes streams of a protocol.
func (h *Host) Listen(protocol string) (net.Listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.listeners[protocol] != nil {
		return nil, api.Conflict("memory: protocol %s has a listener already", protocol)
	}
	l := &listener{h: h, protocol: protocol, queue: make(chan *conn, backlog), done: make(chan struct{})}
	h.listeners[protocol] = l
	return l, nil
}

// Dial opens a stream; the errors are those of p2p.Host.Dial.
func (h *Host) Dial(ctx context.Context, peerID, protocol string) (net.Conn, error) {
	if peerID == h.id {
		return nil, api.InvalidArgument("dial peer %s, protocol %s: that is this node itself", peerID, protocol)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := h.reach(ctx, peerID); err != nil {
		return nil, api.Unavailable("dial peer %s, protocol %s: %w", peerID, protocol, err)
	}
	h.n.mu.Lock()
	to := h.n.hosts[peerID]
	var allow func(string, string) bool
	if to != nil {
		allow = to.allow
	}
	h.n.mu.Unlock()
	allowed := allow != nil && allow(h.id, protocol)

	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	switch {
	case h.closed:
		return nil, api.Unavailable("dial peer %s, protocol %s: %w", peerID, protocol, net.ErrClosed)
	case to == nil || to.closed:
		return nil, api.Unavailable("dial peer %s, protocol %s: connection refused", peerID, protocol)
	case h.n.links[linkKey(h.id, peerID)] == nil && !slices.Contains(h.peers[peerID], "/memory/"+peerID):
		return nil, api.Unavailable("dial peer %s, protocol %s: no addresses", peerID, protocol)
	}
	lk := h.link(to)
	l := to.listeners[protocol]
	if l == nil || !allowed {
		return nil, api.Errorf(errdefs.ErrPermissionDenied, "peer %s doesn't take protocol %s from this node", peerID, protocol)
	}
	near, far := h.n.pair(lk, h, to)
	select {
	case l.queue <- far:
		return near, nil
	default:
		delete(lk.conns, near)
		delete(lk.conns, far)
		return nil, api.Unavailable("dial peer %s, protocol %s: too many streams wait there", peerID, protocol)
	}
}

// reach waits until packets pass to a peer, and for one round trip.
func (h *Host) reach(ctx context.Context, peerID string) error {
	for {
		h.n.mu.Lock()
		up, change := h.n.reachable(h.id, peerID), h.n.change
		var rtt time.Duration
		for _, id := range []string{h.id, peerID} {
			if s := h.n.shapes[id]; s != nil {
				rtt += s.latency
			}
		}
		h.n.mu.Unlock()
		if !up {
			select {
			case <-change:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if rtt == 0 {
			return ctx.Err()
		}
		t := time.NewTimer(rtt)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// link is the connection to another host, made if there is none.
func (h *Host) link(to *Host) *link {
	key := linkKey(h.id, to.id)
	l := h.n.links[key]
	if l == nil {
		l = &link{a: h, b: to, conns: map[*conn]bool{}}
		h.n.links[key] = l
	}
	return l
}

// listener hands out the incoming streams of one protocol.
type listener struct {
	h        *Host
	protocol string
	queue    chan *conn
	ended    bool          // guarded by n.mu
	done     chan struct{} // closed: no more streams
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.h.n.mu.Lock()
	defer l.h.n.mu.Unlock()
	if l.h.listeners[l.protocol] == l {
		delete(l.h.listeners, l.protocol)
	}
	l.shut()
	return nil
}

func (l *listener) Addr() net.Addr { return Addr(l.h.id) }

// shut ends Accept, with n.mu held, and resets the streams nobody took.
func (l *listener) shut() {
	if !l.ended {
		l.ended = true
		close(l.done)
	}
	for {
		select {
		case c := <-l.queue:
			c.end()
		default:
			return
		}
	}
}
