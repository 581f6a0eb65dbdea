package memory

import "time"

// shape is what a host can send and receive.
type shape struct {
	rate    int64 // bytes per second each way; 0 is unlimited
	latency time.Duration
	sending bool      // a segment is on the wire
	turns   []*pipe   // with bytes to send, in the order of their turns
	in      time.Time // when all that was sent to the host has arrived
}

// spend is how long one direction of a host is busy with some bytes.
func (s *shape) spend(size int) time.Duration {
	if s == nil || s.rate == 0 {
		return 0
	}
	return time.Duration(int64(size) * int64(time.Second) / s.rate)
}

// send puts bytes on the wire, with n.mu held: at once from a host without a shape, else
// when those of the host's other streams had their turns.
func (n *Network) send(p *pipe, b []byte) {
	s := n.shapes[p.from]
	if s == nil {
		n.carry(p, b, 0)
		return
	}
	p.waiting = append(p.waiting, b)
	if len(p.waiting) == 1 {
		s.turns = append(s.turns, p)
		n.next(s)
	}
}

// next sends a segment of the stream whose turn it is.
func (n *Network) next(s *shape) {
	if s.sending || len(s.turns) == 0 {
		return
	}
	p := s.turns[0]
	s.turns = s.turns[1:]
	b := p.waiting[0]
	if p.waiting = p.waiting[1:]; len(p.waiting) > 0 {
		s.turns = append(s.turns, p)
	}
	s.sending = true
	n.after(s.spend(len(b)), func() {
		s.sending = false
		n.carry(p, b, s.latency)
		n.next(s)
	})
}

// carry brings bytes that have left a host to the other end of their stream, in order.
func (n *Network) carry(p *pipe, b []byte, latency time.Duration) {
	var wait time.Duration
	if s := n.shapes[p.to]; s != nil && s.rate != 0 {
		now := time.Now()
		if s.in.Before(now) {
			s.in = now
		}
		s.in = s.in.Add(s.spend(len(b)))
		wait = s.in.Sub(now)
	}
	p.flying = append(p.flying, b)
	n.after(wait+latency, func() {
		p.queue = append(p.queue, p.flying[0])
		p.flying = p.flying[1:]
		p.wake.Broadcast()
	})
}

// after calls f with n.mu held, at once if there is nothing to wait for.
func (n *Network) after(d time.Duration, f func()) {
	if d <= 0 {
		f()
		return
	}
	time.AfterFunc(d, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		f()
	})
}
