package transfer

import (
	"slices"
	"time"
)

// onOrigins is told which peers get the blob from outside.
func (s *swarm) onOrigins(ids []string) {
	s.origins = ids
	for _, u := range s.suppliers {
		s.noteOrigin(u)
	}
}

// noteOrigin notes whether a peer gets the blob from outside.
func (s *swarm) noteOrigin(u *supplier) {
	origin := slices.Contains(s.origins, u.peer)
	if u.whole || origin == u.origin {
		u.origin = origin
		return
	}
	u.origin = origin
	for i := range s.f.pieces {
		switch {
		case !u.have.has(i):
		case origin:
			s.avail[i]--
		default:
			s.avail[i]++
		}
	}
}

// onHas notes that a peer has one more piece.
func (s *swarm) onHas(u *supplier, piece int) {
	if u.have.has(piece) {
		return
	}
	u.have.set(piece)
	if !u.chooses() {
		s.avail[piece]++
	}
}

// onLacks notes that a peer hasn't got a piece that it had.
func (s *swarm) onLacks(u *supplier, piece int) {
	if u.whole || !u.have.has(piece) {
		return
	}
	u.have.unset(piece)
	if !u.origin {
		s.avail[piece]--
	}
}

// onSourced notes a piece that came from a source.
func (s *swarm) onSourced(piece int) {
	s.onHere(piece)
	if s.done > s.reported {
		s.reported = s.done
		s.report(s.done)
	}
}

// onNobody is told why the source didn't give the blob, once nobody else can get it
// either: what peers have is all there will be.
func (s *swarm) onNobody(failed error) {
	if slices.ContainsFunc(s.suppliers, func(u *supplier) bool { return u.whole || len(u.asked) > 0 }) {
		s.located = true
		return
	}
	s.fail(failed)
}

// isFed says whether one of some peers, or one that has all, gives what it has.
func (s *swarm) isFed(by []string) bool {
	return slices.ContainsFunc(s.suppliers, func(u *supplier) bool { return u.known && (u.whole || slices.Contains(by, u.peer)) })
}

// isServed says whether this node gets something, or will: from such a peer, from anybody
// lately, or because one has only put it off.
func (s *swarm) isServed(by []string) bool {
	return s.isFed(by) || time.Since(s.last) < turnPatience ||
		slices.ContainsFunc(by, func(id string) bool { return s.candidates[id] != nil && s.candidates[id].waits() })
}

// waits says whether the peer was busy and will be tried again.
func (c *candidate) waits() bool { return c.busy > 0 && !c.useless && c.failures == 0 }

// later hands an event to the loop if it has room. It is for what will be said again.
func (s *swarm) later(event func()) {
	select {
	case s.events <- event:
	default:
	}
}
