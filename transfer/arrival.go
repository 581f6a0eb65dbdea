package transfer

import (
	"context"
	"time"
)

// arrival is a piece that came and isn't written yet.
type arrival struct {
	piece   int
	content []byte
	free    func() // of content
	note    pieceNote
	peak    float64 // see supplier

	counts bool // as under way; the loop's own
}

// apart is the size of pieces from which on one is read while the one before is written:
// with smaller ones, handing them over costs more than it wins.
const apart = 128 << 10

// keepsApart says whether pieces are written beside the reading.
func (s *swarm) keepsApart() bool { return pieceSize(s.f.size) >= apart }

// arrived has a piece written.
func (u *supplier) arrived(ctx context.Context, s *swarm, a *arrival) error {
	if !s.keepsApart() {
		return s.keep(ctx, a, func() { s.onCame(u, a) })
	}
	if err := s.post(ctx, func() { s.onCame(u, a) }); err != nil {
		a.free()
		return err
	}
	u.arrivals <- a
	return nil
}

// keep writes pieces until there are no more.
func (u *supplier) keep(ctx context.Context, s *swarm) {
	for a := range u.arrivals {
		_ = s.keep(ctx, a, func() {}) // fails when the fetch has ended
	}
}

// keep writes a piece, unless it is here, and tells the loop, which calls first before.
func (s *swarm) keep(ctx context.Context, a *arrival, first func()) error {
	defer a.free()
	fresh := s.progress.claim(a.piece)
	if fresh {
		if _, err := s.w.WriteAt(a.content, pieceAt(s.f.size, a.piece)); err != nil {
			s.progress.remove(a.piece)
			return s.post(ctx, func() { s.fail(err) })
		}
		s.progress.add(a.piece)
	}
	return s.post(ctx, func() {
		first()
		s.onKept(a, fresh)
	})
}

// onCame notes that a peer has sent all of a piece, and asks it for more if that will
// not be done at once.
func (s *swarm) onCame(u *supplier, a *arrival) {
	s.peak = max(s.peak, a.peak)
	if len(u.asked) == 0 {
		return // dropped meanwhile
	}
	now := time.Now()
	u.nones = 0
	u.came++
	r := s.answered(u)
	a.counts = true
	s.keeping++
	from := r.at
	if u.since.After(from) {
		from = u.since
	}
	took := float64(now.Sub(from)) / float64(pieceLen(s.f.size, a.piece))
	if u.perByte == 0 {
		u.perByte = took
	} else {
		u.perByte += (took - u.perByte) / 4
	}
	u.since = now
	if c := s.candidates[u.peer]; c != nil {
		c.failures = 0
	}
	if s.keepsApart() {
		s.ask(u)
	}
}

// onKept notes a piece that is written; fresh says that it is the first copy.
func (s *swarm) onKept(a *arrival, fresh bool) {
	if a.counts {
		s.inflight[a.piece]--
		s.keeping--
	}
	if fresh {
		length := int64(pieceLen(s.f.size, a.piece))
		s.missing.unset(a.piece)
		s.left--
		s.top = max(s.top, a.piece+1)
		s.done += length
		s.notes.sums[a.piece] = a.note
		s.f.count(a.note.peer, length)
		s.lastNews = time.Now()
		s.last = s.lastNews
		s.got++
		if s.doubtful(a.piece) {
			s.reject(a.piece)
		} else if s.done > s.reported {
			s.reported = s.done
			s.report(s.done)
		}
	}
	s.askAll()
}
