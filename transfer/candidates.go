package transfer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
)

// candidate is a peer that may be asked.
type candidate struct {
	failures int
	after    time.Time // not to be tried before
	active   bool      // has a session, or gets one
	since    time.Time // when that was begun
	useless  bool
	busy     time.Duration // the pause after it was last found busy
}

// locate asks the locator for peers, in the background.
func (s *swarm) locate(ctx context.Context) {
	if s.only != "" {
		s.add(s.only, true)
		s.located = true
		return
	}
	s.wg.Go(func() {
		for peer, err := range s.f.p.cfg.Locator.Find(ctx, s.f.digest) {
			if err != nil {
				s.f.p.log.Warn("locate blob", "digest", s.f.digest.String(), "err", err)
				break
			}
			if s.post(ctx, func() { s.add(peer.ID, true) }) != nil {
				return
			}
		}
		if !s.awaits {
			_ = s.post(ctx, func() { s.located = true }) // nobody asks once it has ended
		}
	})
}

// add makes a peer a candidate, that the locator named or that was heard of.
func (s *swarm) add(id string, located bool) {
	if id == "" || id == s.f.p.cfg.Self || s.candidates[id] != nil || len(s.order) == maxCandidates || s.f.p.isBanned(id) {
		return
	}
	s.candidates[id] = &candidate{}
	at := s.named
	if located {
		s.named++
	} else {
		at += rand.IntN(len(s.order) - s.named + 1) // so that not all ask the same few
	}
	s.order = slices.Insert(s.order, at, id)
}

// hear is told, from any goroutine, of a peer that fetches the blob, too.
func (s *swarm) hear(id string) {
	select {
	case s.events <- func() { s.onPeers([]string{id}) }:
	default: // too busy for gossip
	}
}

// connect opens sessions, as many as are of use, and gives up if none can be.
func (s *swarm) connect(ctx context.Context) {
	now := time.Now()
	target := min(s.left+int(now.Sub(s.lastNews)/hedgeTime), maxSuppliers, firstSuppliers+int(now.Sub(s.started)/moreSuppliers))
	for i := 0; i < len(s.order) && s.active < target; i++ {
		id := s.order[i]
		c := s.candidates[id]
		if c.active || c.useless || now.Before(c.after) {
			continue
		}
		s.active++
		c.active, c.since = true, now
		s.alone.Store(false)
		s.wg.Go(func() { s.session(ctx, id) })
	}
	s.double(ctx)
	if s.active > 0 || !s.located {
		return
	}
	hope := false
	for _, c := range s.candidates {
		hope = hope || !c.useless
	}
	switch {
	case hope && now.Sub(s.lastNews) > busyLimit:
		s.fail(api.Unavailable("fetch blob %s: all peers that may have it are busy", s.f.digest))
	case hope:
	case s.anybody:
		s.fail(api.Unavailable("fetch blob %s: every peer that had it was lost: %w", s.f.digest, s.lost))
	case s.lost != nil:
		s.fail(api.NotFound("fetch blob %s: no peer has it: %w", s.f.digest, s.lost))
	default:
		s.fail(api.NotFound("fetch blob %s: no peer has it", s.f.digest))
	}
}

const (
	// besideRate is how many bytes a second a peer must give alone, and besideLeft how
	// many it must still have to give, for it to be asked over connections of their own.
	besideRate = 200e6
	besideLeft = 32 << 20
	// besideCame is after how many pieces its rate is believed.
	besideCame = 8
	// besides is over how many: one keeps a processor of either side busy.
	besides = 2
)

// double asks the one peer that gives over connections of their own, if that may help. One
// attempt is enough.
func (s *swarm) double(ctx context.Context) {
	dial := s.f.p.cfg.DialBeside
	if dial == nil || s.doubled || s.active != 1 || len(s.suppliers) != 1 || s.only != "" || s.sample > 0 {
		return
	}
	u := s.suppliers[0]
	if !u.whole || u.came < besideCame || u.perByte*besideRate > float64(time.Second) || s.f.size-s.done < besideLeft {
		return
	}
	s.doubled = true
	s.alone.Store(s.notes.resumed == 0 && !s.f.patched)
	for range besides {
		s.wg.Go(func() {
			beside, err := s.talk(ctx, u.peer, dial, true)
			_ = s.post(ctx, func() { // nothing to drop once it has ended
				if slices.Contains(s.suppliers, beside) {
					s.drop(beside, err)
				}
				s.f.p.log.Debug("end of a session over a connection of its own", "peer", u.peer, "digest", s.f.digest.String(), "err", err)
			})
		})
	}
}

// rests says whether a peer gives as much over connections of their own as it can, so that
// the usual one, over which the same costs more, is left to others.
func (s *swarm) rests(u *supplier) bool {
	if !s.doubled || u.beside {
		return false
	}
	n := 0
	for _, x := range s.suppliers {
		if x.beside && x.known && x.peer == u.peer {
			n++
		}
	}
	return n == besides
}

// onEnd notes that a session has ended, or never began.
func (s *swarm) onEnd(id string, u *supplier, err error) {
	c := s.candidates[id]
	if i := slices.Index(s.suppliers, u); u != nil && i >= 0 {
		s.drop(u, err)
	}
	c.active = false
	s.active--
	if errors.Is(err, errBusy) {
		c.busy = min(max(2*c.busy, firstBusy), lastBusy)
		c.after = time.Now().Add(c.busy/2 + rand.N(c.busy))
		return
	}
	c.failures++
	c.after = time.Now().Add(retryTime)
	served := u != nil && u.known
	atOnce := time.Since(c.since) < soonTime && !errdefs.IsPermissionDenied(err)
	if !served && atOnce {
		c.after = time.Now().Add(soonTime)
	}
	if errors.Is(err, errHasNone) || !served && !atOnce || c.failures >= maxFailures {
		c.useless = true
	}
	if !errors.Is(err, errHasNone) {
		s.lost = err
		s.f.p.log.Debug("lost a peer", "peer", id, "digest", s.f.digest.String(), "err", err)
	}
}

func (s *swarm) onPeers(ids []string) {
	for _, id := range ids {
		if c := s.candidates[id]; c != nil && !c.active && c.failures < maxFailures {
			c.useless = false // somebody talks with it: it is alive, and fetching
		}
		if s.only == "" {
			s.add(id, false)
		}
	}
}
