package transfer

import (
	"errors"
	"slices"
)

// onSums notes what a holder of all says the pieces' sums are, and looks at what came
// before it said so.
func (s *swarm) onSums(peer string, sums []uint32) {
	if s.sums[peer] != nil {
		return
	}
	s.sums[peer] = sums
	for i := range s.f.pieces {
		if s.notes.sums[i].peer != "" && s.doubtful(i) {
			s.reject(i)
		}
	}
	s.askAll()
}

// doubtful says whether more holders contradict a piece than stand for it. Sums prove
// nothing, as who sends wrong bytes may also tell wrong sums; they spare a blob with few
// wrong pieces from being fetched again as a whole.
func (s *swarm) doubtful(piece int) bool {
	n := s.notes.sums[piece]
	if n.unsummed {
		return false // nothing is known of it
	}
	votes := map[uint32]int{}
	for _, sums := range s.sums {
		votes[sums[piece]]++
	}
	if n.verified && s.sums[n.peer] == nil {
		votes[n.crc]++
	}
	for crc, v := range votes {
		if crc != n.crc && v > votes[n.crc] {
			return true
		}
	}
	return false
}

// reject has a piece fetched again, from somebody else.
func (s *swarm) reject(piece int) {
	n := s.notes.sums[piece]
	s.notes.rejected[n.peer] = s.notes.rejected[n.peer] || n.verified
	s.notes.sums[piece] = pieceNote{}
	s.progress.remove(piece)
	s.missing.set(piece)
	s.left++
	s.done -= int64(pieceLen(s.f.size, piece))
	s.low = min(s.low, piece)
	for _, u := range slices.Clone(s.suppliers) {
		if u.peer != n.peer || !slices.Contains(s.suppliers, u) {
			continue
		}
		if n.verified {
			s.candidates[u.peer].failures = maxFailures // for the rest of this fetch
			s.drop(u, errors.New("it sent wrong bytes"))
			continue
		}
		s.onLacks(u, piece)
	}
}
