package p2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// connected watches the connections of strangers.
func (h *Host) connected(_ network.Network, c network.Conn) {
	stranger := c.Stat().Direction == network.DirInbound && !h.limits.isKnown(c.RemotePeer())
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || !stranger {
		return
	}
	h.watched[c] = time.AfterFunc(h.idle, func() { h.checkUse(c) })
}

// checkUse closes a stranger's connection that has no permitted stream. Who has become a
// peer since isn't watched any more.
func (h *Host) checkUse(c network.Conn) {
	h.mu.Lock()
	timer, watched := h.watched[c]
	if !watched || h.limits.isKnown(c.RemotePeer()) {
		delete(h.watched, c)
		h.mu.Unlock()
		return
	}
	for _, s := range c.GetStreams() {
		if s.Protocol() != "" {
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
	if h.closed || h.swarm.Connectedness(id) == network.Connected {
		call = nil
	} else if !h.limits.isKnown(id) {
		h.store.RemovePeer(id) // or every stranger would leave a key behind
	}
	h.mu.Unlock()
	for _, f := range call {
		f(id.String())
	}
}
