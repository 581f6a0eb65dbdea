package p2p

import (
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// besides is the swarm of second connections. It listens nowhere: the other side of such
// a connection is a usual one. It is made when it is first needed.
func (h *Host) besides() (*swarm.Swarm, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.second == nil {
		sw, err := h.newSwarm()
		if err != nil {
			return nil, err
		}
		h.second = sw
	}
	return h.second, nil
}

// swarms are those there are.
func (h *Host) swarms() []*swarm.Swarm {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.both()
}

// both is swarms with h.mu held.
func (h *Host) both() []*swarm.Swarm {
	if h.second == nil {
		return []*swarm.Swarm{h.swarm}
	}
	return []*swarm.Swarm{h.swarm, h.second}
}

func connected(id peer.ID, in []*swarm.Swarm) bool {
	return slices.ContainsFunc(in, func(sw *swarm.Swarm) bool { return sw.Connectedness(id) == network.Connected })
}

// connected watches the connections of strangers and the second ones.
func (h *Host) connected(n network.Network, c network.Conn) {
	stranger := c.Stat().Direction == network.DirInbound && !h.limits.isKnown(c.RemotePeer())
	h.mu.Lock()
	defer h.mu.Unlock()
	if second := h.second != nil && n == network.Network(h.second); h.closed || !stranger && !second {
		return
	}
	h.watched[c] = time.AfterFunc(h.idle, func() { h.checkUse(c) })
}

// checkUse closes a watched connection unless it is used: a stranger's by a permitted
// stream, a second one by any.
func (h *Host) checkUse(c network.Conn) {
	h.mu.Lock()
	timer, watched := h.watched[c]
	inbound, known := c.Stat().Direction == network.DirInbound, h.limits.isKnown(c.RemotePeer())
	if !watched || inbound && known {
		delete(h.watched, c)
		h.mu.Unlock()
		return
	}
	for _, s := range c.GetStreams() {
		if !inbound || s.Protocol() != "" {
			timer.Reset(h.idle)
			h.mu.Unlock()
			return
		}
	}
	delete(h.watched, c)
	h.mu.Unlock()
	h.log.Debug("close an idle connection", "peer", c.RemotePeer().String(), "addr", c.RemoteMultiaddr().String())
	_ = c.CloseWithError(network.ConnGated) // it is gone either way
}

func (h *Host) disconnected(_ network.Network, c network.Conn) {
	id := c.RemotePeer()
	h.mu.Lock()
	if t, ok := h.watched[c]; ok {
		t.Stop()
		delete(h.watched, c)
	}
	call := h.onDisconnect
	if h.closed || connected(id, h.both()) {
		call = nil
	} else if !h.limits.isKnown(id) {
		h.store.RemovePeer(id) // or every stranger would leave a key behind
	}
	h.mu.Unlock()
	for _, f := range call {
		f(id.String())
	}
}
