package p2p

import (
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// What incoming connections and streams are bounded by. Connections whose peer isn't
// proven yet are counted by address, as everybody can make them.
const (
	maxUnproven        = 256
	maxUnprovenPerIP   = 64
	maxStrangerConns   = 64
	maxConnsPerPeer    = 16
	maxStrangerStreams = 8 // per peer
	maxStreams         = 4096
)

// limits is libp2p's resource manager, reduced to the counts above. Outgoing
// connections and streams aren't limited: this node asked for them.
type limits struct {
	network.NullResourceManager

	mu        sync.Mutex
	known     map[peer.ID]bool
	unproven  int
	perIP     map[string]int
	strangers int
	conns     map[peer.ID]int
	streams   map[peer.ID]int
}

func newLimits() *limits {
	return &limits{known: map[peer.ID]bool{}, perIP: map[string]int{}, conns: map[peer.ID]int{}, streams: map[peer.ID]int{}}
}

func (l *limits) setKnown(p peer.ID, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known {
		l.known[p] = true
	} else {
		delete(l.known, p)
	}
}

func (l *limits) isKnown(p peer.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[p]
}

// OpenConnection admits an incoming connection before its handshake.
func (l *limits) OpenConnection(dir network.Direction, _ bool, from ma.Multiaddr) (network.ConnManagementScope, error) {
	if dir != network.DirInbound {
		return &connScope{}, nil
	}
	ip := ""
	if a, err := manet.ToIP(from); err == nil {
		ip = a.String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unproven >= maxUnproven || l.perIP[ip] >= maxUnprovenPerIP {
		return nil, fmt.Errorf("%w: too many connections in their handshake", network.ErrResourceLimitExceeded)
	}
	l.unproven++
	l.perIP[ip]++
	return &connScope{l: l, undo: func() { l.unproven--; decrement(l.perIP, ip) }}, nil
}

// OpenStream admits an incoming stream.
func (l *limits) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if dir != network.DirInbound {
		return &streamScope{}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	most := maxStrangerStreams
	if l.known[p] {
		most = maxStreams
	}
	if l.streams[p] >= most {
		return nil, fmt.Errorf("%w: too many streams", network.ErrResourceLimitExceeded)
	}
	l.streams[p]++
	return &streamScope{connScope{l: l, undo: func() { decrement(l.streams, p) }}}, nil
}

// connScope is what one connection counts for. Without limits it counts for nothing.
type connScope struct {
	network.NullScope
	l    *limits
	peer network.PeerScope
	undo func() // with l.mu held; nil when done
}

func (c *connScope) PeerScope() network.PeerScope { return c.peer }

// SetPeer moves a connection from the unproven to those of a peer.
func (c *connScope) SetPeer(p peer.ID) error {
	c.peer = &network.NullScope{}
	if c.l == nil {
		return nil
	}
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.undo == nil {
		return nil
	}
	stranger := !l.known[p]
	if l.conns[p] >= maxConnsPerPeer || stranger && l.strangers >= maxStrangerConns {
		return fmt.Errorf("%w: too many connections", network.ErrResourceLimitExceeded)
	}
	c.undo()
	l.conns[p]++
	if stranger {
		l.strangers++
	}
	c.undo = func() {
		decrement(l.conns, p)
		if stranger {
			l.strangers--
		}
	}
	return nil
}

// Done may be called more than once.
func (c *connScope) Done() {
	if c.l == nil {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.undo != nil {
		c.undo()
		c.undo = nil
	}
}

type streamScope struct{ connScope }

func (*streamScope) ProtocolScope() network.ProtocolScope { return nil }
func (*streamScope) SetProtocol(protocol.ID) error        { return nil }
func (*streamScope) ServiceScope() network.ServiceScope   { return nil }
func (*streamScope) SetService(string) error              { return nil }
func (s *streamScope) PeerScope() network.PeerScope       { return s.peer }

func decrement[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}
