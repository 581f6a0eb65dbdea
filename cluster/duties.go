package cluster

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Figures of the leader's duties.
const (
	// dutyEvery is how often the leader looks after things besides when the catalog or
	// liveness changes.
	dutyEvery = time.Second
	// downAfter is how long a node must be out of reach before the leader writes it down:
	// longer than a false alarm lasts.
	downAfter = 3 * time.Second
	// claimLimit is how long a claim may stay without its node having made the container:
	// time to fetch a large image over a slow link.
	claimLimit = 15 * time.Minute
)

// leader does a leader's duties while this node leads.
type leader struct {
	s       *session
	away    map[string]time.Time // since when nodes can't be reached
	pending map[string]time.Time // since when claims are known to be unconfirmed
}

// lead runs until ctx, which is the leadership, ends.
func (s *session) lead(ctx context.Context) error {
	s.log.Info("this node leads the cluster now")
	l := &leader{s, map[string]time.Time{}, map[string]time.Time{}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.loop(ctx, l.nodes) })
	g.Go(func() error { return l.loop(ctx, l.voters) })
	g.Go(func() error { return l.loop(ctx, l.claims) })
	return g.Wait()
}

// loop does a duty again and again. What fails is tried again at the next turn.
func (l *leader) loop(ctx context.Context, duty func(context.Context) error) error {
	t := time.NewTicker(dutyEvery)
	defer t.Stop()
	for {
		if err := duty(ctx); err != nil && ctx.Err() == nil {
			l.s.log.Debug("a duty of the leader failed; trying again", "error", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// nodes writes down who is up and who isn't: one write for a node, not one for each of
// its containers.
func (l *leader) nodes(ctx context.Context) error {
	for _, n := range l.s.cat.View().Nodes() {
		since, away := l.away[n.ID]
		switch up := l.s.alive(n.ID); {
		case up:
			delete(l.away, n.ID)
		case !away:
			l.away[n.ID] = time.Now()
			continue
		case time.Since(since) < downAfter:
			continue
		}
		_, away = l.away[n.ID]
		if n.Down == away {
			continue
		}
		if _, err := l.s.cat.Propose(ctx, catalog.SetNodeDown{ID: n.ID, Down: away}); err != nil {
			return err
		}
		l.s.log.Info("node", "name", n.Name, "down", away)
	}
	return nil
}

// voters keeps raft's configuration as the nodes are.
func (l *leader) voters(ctx context.Context) error {
	for {
		changed, err := l.s.cat.ManageMembers(ctx, l.s.alive)
		if err != nil || !changed {
			return err
		}
	}
}

// claims drops claims whose router died before the container was made.
func (l *leader) claims(ctx context.Context) error {
	seen := map[string]bool{}
	for _, c := range l.s.cat.View().Containers() {
		if c.State != "" {
			continue
		}
		seen[c.ID] = true
		since, known := l.pending[c.ID]
		if !known {
			l.pending[c.ID] = time.Now()
			continue
		}
		if time.Since(since) < claimLimit {
			continue
		}
		if _, err := l.s.cat.Propose(ctx, catalog.ReleaseClaim{ID: c.ID}); err != nil {
			return err
		}
		l.s.log.Info("claim expired: no node made the container", "container", c.ID, "name", c.Name)
	}
	for _, v := range l.s.cat.View().Volumes() {
		if v.Made || time.Since(v.Claimed) < claimLimit {
			continue
		}
		if _, err := l.s.cat.Propose(ctx, catalog.ReleaseVolume{Name: v.Name, NodeID: v.NodeID}); err != nil {
			return err
		}
	}
	for id := range l.pending {
		if !seen[id] {
			delete(l.pending, id)
		}
	}
	return nil
}
