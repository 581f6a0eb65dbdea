package p2p

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	mss "github.com/multiformats/go-multistream"

	"github.com/shoal-engine/shoal/api"
)

// backlog is how many streams may wait for Accept; more are reset.
const backlog = 1024

// listener hands out the incoming streams of one protocol.
type listener struct {
	h     *Host
	proto string
	queue chan accepted
	once  sync.Once
	done  chan struct{} // closed: no more streams
}

// Listen takes streams of a protocol from the peers that Allow permits.
func (h *Host) Listen(proto string) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.listeners[proto] != nil {
		return nil, api.Conflict("p2p: protocol %s has a listener already", proto)
	}
	l := &listener{h: h, proto: proto, queue: make(chan accepted, backlog), done: make(chan struct{})}
	h.listeners[proto] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case s := <-l.queue:
		return s, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.h.mu.Lock()
	if l.h.listeners[l.proto] == l {
		delete(l.h.listeners, l.proto)
	}
	l.h.mu.Unlock()
	l.shut()
	return nil
}

func (l *listener) Addr() net.Addr { return Addr(l.h.ID()) }

// shut ends Accept and resets the streams that nobody took.
func (l *listener) shut() {
	l.once.Do(func() { close(l.done) })
	for {
		select {
		case s := <-l.queue:
			s.abandon()
		default:
			return
		}
	}
}

// accepted is a stream that a peer opened.
type accepted interface {
	net.Conn
	// abandon ends a stream that nobody has seen.
	abandon()
}

// offer queues a stream, or ends it.
func (l *listener) offer(s accepted) {
	select {
	case l.queue <- s:
	default:
		l.h.log.Warn("end a stream: too many wait to be accepted", "peer", s.RemoteAddr().String(), "protocol", l.proto)
		s.abandon()
		return
	}
	select {
	case <-l.done: // shut may have emptied the queue before we filled it
		l.shut()
	default:
	}
}

// incoming hands a stream that a peer opened to the listener of its protocol.
func (h *Host) incoming(s network.Stream) {
	to, proto, err := h.agree(s, s.Conn().RemotePeer())
	if err == nil {
		err = s.SetProtocol(proto)
	}
	if err != nil {
		s.Reset()
		return
	}
	to.offer(h.wrap(s, string(proto)))
}

// agree negotiates the protocol of a stream that a peer opened. One that isn't allowed
// looks to the peer as one we don't speak.
func (h *Host) agree(s network.MuxedStream, from peer.ID) (to *listener, proto protocol.ID, err error) {
	s.SetDeadline(time.Now().Add(negotiateTimeout))
	remote := from.String()
	mux := mss.NewMultistreamMuxer[protocol.ID]()
	mux.AddHandlerWithFunc("", func(p protocol.ID) bool {
		h.mu.Lock()
		l := h.listeners[string(p)]
		h.mu.Unlock()
		if l == nil || !h.allow(remote, string(p)) {
			h.log.Debug("refuse a stream", "peer", remote, "protocol", string(p), "served", l != nil)
			return false
		}
		to = l
		return true
	}, nil)
	if proto, _, err = mux.Negotiate(s); err == nil && to == nil {
		err = errors.New("no protocol was agreed on")
	}
	if err != nil {
		h.log.Debug("negotiate a stream", "peer", remote, "err", err)
		return nil, "", err
	}
	return to, proto, s.SetDeadline(time.Time{})
}
