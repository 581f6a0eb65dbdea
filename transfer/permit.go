package transfer

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// permit asks whether the session's peer may have a blob, before anything is said of
// it. From then on Review asks again. A peer that may not is answered as by a node that
// lacks the blob.
func (s *session) permit(ctx context.Context, d digest.Digest) error {
	if s.p.cfg.Allow == nil {
		return nil
	}
	// Before asking: a change of mind in between is Review's, or the answer's.
	s.p.mu.Lock()
	s.p.sessions[s] = d
	s.p.mu.Unlock()
	return s.p.cfg.Allow(ctx, s.peer, d)
}

func (p *Peers) ended(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
}

// Review asks PeersConfig.Allow again about all that is being served, and ends at once,
// in the middle of a piece if need be, what isn't allowed any more.
func (p *Peers) Review(ctx context.Context) {
	if p.cfg.Allow == nil {
		return
	}
	p.mu.Lock()
	open := make(map[*session]digest.Digest, len(p.sessions))
	for s, d := range p.sessions {
		open[s] = d
	}
	p.mu.Unlock()
	for s, d := range open {
		if err := p.cfg.Allow(ctx, s.peer, d); err != nil && ctx.Err() == nil {
			p.log.Info("stop serving a blob", "peer", s.peer, "digest", d.String(), "reason", err)
			s.conn.Close()
		}
	}
}
