package transfer

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// ask requests pieces of a peer until enough are under way from it.
//
// A holder of all, and one who gets the blob from outside, chooses by itself among the
// pieces that nobody else is known to have: so each leaves it about once, however many
// fetch. What is known elsewhere is asked of
// those others, the rarest first. At the end, whoever is idle is asked for what is
// overdue from somebody else.
func (s *swarm) ask(u *supplier) {
	for u.known && len(u.asked) < s.ahead(u) && !s.sampled() && !s.rests(u) {
		r, ok := s.choose(u)
		if !ok {
			return
		}
		var b []byte
		if r.piece >= 0 {
			b = encodePiece(kindGet, uint32(r.piece))
			s.inflight[r.piece]++
		} else {
			b = frame(kindNext, r.any...)
		}
		r.at, r.before = time.Now(), len(u.asked)
		if len(u.asked) == 0 {
			u.lastByte.Store(r.at.UnixNano())
		}
		u.asked = append(u.asked, r)
		select {
		case u.out <- b:
		default:
			s.drop(u, errors.New("it takes no requests"))
			return
		}
	}
}

// ahead is how many requests a peer may have unanswered: few if it is slow, or one of
// many, so that what is under way can't keep others waiting for long and is chosen late,
// with what is known then.
func (s *swarm) ahead(u *supplier) int {
	if u.perByte == 0 {
		return minAhead
	}
	pieces := float64(aheadTime) / (u.perByte * u.pieceSize * float64(len(s.suppliers)))
	return min(max(minAhead, int(pieces)+1), minAhead+u.came, maxAhead, max(minAhead, mostAhead/int(u.pieceSize)))
}

func (s *swarm) choose(u *supplier) (request, bool) {
	for s.low < s.f.pieces && !s.missing.has(s.low) {
		s.low++
	}
	s.sparing = s.progress.sparing()
	r, found, enough := s.chooseNew(u)
	if s.sparing != nil && !found && !enough {
		s.sparing = nil // nothing else is left
		r, found, enough = s.chooseNew(u)
	}
	if found || enough {
		return r, found
	}
	if p, ok := s.overdue(u); ok {
		return request{piece: p}, true
	}
	return request{}, false
}

// chooseNew chooses among what isn't under way and isn't left to another way. enough says
// that the peer shall be asked for nothing else now.
func (s *swarm) chooseNew(u *supplier) (r request, found, enough bool) {
	if u.chooses() {
		if m, enough := s.unknownElsewhere(u); m != nil || enough {
			return request{piece: -1, any: m}, m != nil, enough
		}
	}
	p, ok := s.rarest(u)
	return request{piece: p}, ok, false
}

// spared says whether a piece is left to another way.
func (s *swarm) spared(piece int) bool { return s.sparing != nil && s.sparing.has(piece) }

// unknownElsewhere is the set of pieces to ask of a holder of all: this holder's share
// of those that only such holders have. All who fetch ask for these, so enough has been
// asked when this node's part of what is left is under way: more would be answered with
// what is on its way to others.
func (s *swarm) unknownElsewhere(u *supplier) (m bitmap, enough bool) {
	holders, rank, fetchers := 0, 0, 1
	for _, x := range s.suppliers {
		if x == u {
			rank = holders
		}
		switch {
		case x.chooses():
			holders++
		case x.known:
			fetchers++
		}
	}
	m = newBitmap(s.f.pieces)
	found := 0
	for i := s.low; i < s.f.pieces; i++ {
		if s.missing.has(i) && s.inflight[i] == 0 && s.avail[i] == 0 && i%holders == rank && (u.whole || u.have.has(i)) && !s.spared(i) {
			m.set(i)
			found++
		}
	}
	// What it may choose for requests it hasn't answered yet is spoken for.
	spoken := 0
	for _, r := range u.asked {
		if r.piece < 0 {
			spoken++
		}
	}
	switch {
	case found <= spoken:
		return nil, false
	case spoken > 0 && spoken >= found/fetchers:
		return nil, true
	}
	return m, false
}

// rarest is a piece that the peer has, that isn't under way, and that the fewest others
// have. Of equals any will do; that all who fetch take different ones is best.
//
// What comes in order can be hashed and unpacked while the rest is on its way, and what
// everybody has is asked for last: so pieces that have been left behind go first.
func (s *swarm) rarest(u *supplier) (int, bool) {
	if window := max(minWindow, s.f.pieces/16); s.low+window < s.top {
		for i := s.low; i < s.top-window; i++ {
			if s.missing.has(i) && s.inflight[i] == 0 && s.avail[i] > 0 && (u.whole || u.have.has(i)) && !s.spared(i) {
				return i, true
			}
		}
	}
	best, ties := -1, 0
	for i := s.low; i < s.f.pieces; i++ {
		if !s.missing.has(i) || s.inflight[i] != 0 || !u.whole && !u.have.has(i) || s.avail[i] == 0 && s.promised(i) || s.spared(i) {
			continue
		}
		switch {
		case best < 0 || s.avail[i] < s.avail[best]:
			best, ties = i, 1
		case s.avail[i] == s.avail[best]:
			if ties++; rand.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best, best >= 0
}

// promised says whether a holder of all may be about to choose a piece. One that others
// have needn't be asked about: holders prefer what they haven't sent to anybody.
func (s *swarm) promised(piece int) bool {
	for _, u := range s.suppliers {
		for _, r := range u.asked {
			if r.piece < 0 && r.any.has(piece) {
				return true
			}
		}
	}
	return false
}

// overdue is a piece that the peer has and that another has owed for long, as seen from
// how fast the peers usually are. A second copy costs everybody's links what the first
// does: a peer that merely shares its link with others isn't late.
func (s *swarm) overdue(u *supplier) (int, bool) {
	if len(u.asked) > 0 {
		return 0, false
	}
	usual := s.usual()
	now := time.Now()
	for _, x := range s.suppliers {
		if x == u {
			continue
		}
		for _, r := range x.asked {
			patience := max(lateTime, time.Duration(r.before+1)*lateFactor*usual)
			if r.piece >= 0 && now.Sub(r.at) > patience && s.inflight[r.piece] == 1 && s.missing.has(r.piece) && (u.whole || u.have.has(r.piece)) {
				return r.piece, true
			}
		}
	}
	return 0, false
}

// usual is how long a piece takes from the middle one of the peers; 0 is unknown.
func (s *swarm) usual() time.Duration {
	var took []float64
	for _, u := range s.suppliers {
		if u.perByte > 0 {
			took = append(took, u.perByte*u.pieceSize)
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return time.Duration(took[(len(took)-1)/2])
}
