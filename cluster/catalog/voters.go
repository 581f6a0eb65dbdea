package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Figures of the voters' management.
const (
	maxVoters = 5
	// promoteLag is how many entries a node may miss and still become a voter: one
	// that is far behind would hold every commit up.
	promoteLag   = 1000
	configWithin = 5 * time.Second
)

// member is one server of raft's configuration or one to be.
type member struct {
	id     string
	joined time.Time
	voter  bool
	alive  bool
	leads  bool
}

// desiredVoters says who shall vote: 1, 3 or 5, as many as the cluster has nodes
// for. The leader stays, then present voters that are alive, then nodes in the order they joined;
// dead voters are replaced where somebody else is there and kept otherwise.
func desiredVoters(ms []member) map[string]bool {
	target := min(maxVoters, len(ms))
	if target%2 == 0 {
		target--
	}
	ranked := slices.Clone(ms)
	rank := func(m member) int {
		switch {
		case m.leads:
			return 0
		case m.alive && m.voter:
			return 1
		case m.alive:
			return 2
		case m.voter:
			return 3
		default:
			return 4
		}
	}
	slices.SortFunc(ranked, func(a, b member) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.joined.Compare(b.joined), cmp.Compare(a.id, b.id))
	})
	want := map[string]bool{}
	for _, m := range ranked[:max(target, 0)] {
		want[m.id] = true
	}
	return want
}

// ManageMembers brings raft's configuration one step closer to the catalog's nodes
// and says whether it changed anything. Only the leader can.
func (c *Catalog) ManageMembers(ctx context.Context, alive func(nodeID string) bool) (bool, error) {
	r, done, ok := c.asking()
	if !ok {
		return false, nil
	}
	defer done()
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return false, fmt.Errorf("read raft's configuration: %w", err)
	}
	servers := map[string]raft.ServerSuffrage{}
	for _, s := range f.Configuration().Servers {
		servers[string(s.ID)] = s.Suffrage
	}
	change := c.nextChange(r, servers, alive)
	if change == nil || ctx.Err() != nil {
		return false, nil
	}
	if err := change().Error(); err != nil {
		return false, fmt.Errorf("change raft's configuration: %w", err)
	}
	return true, nil
}

// nextChange is the next step: take nodes in as followers, promote, demote, forget.
func (c *Catalog) nextChange(r *raft.Raft, servers map[string]raft.ServerSuffrage, alive func(string) bool) func() raft.IndexFuture {
	self := c.cfg.Wire.ID()
	var ms []member
	for _, n := range c.View().Nodes() {
		suffrage, there := servers[n.ID]
		if !there {
			return func() raft.IndexFuture {
				return r.AddNonvoter(raft.ServerID(n.ID), raft.ServerAddress(n.ID), 0, configWithin)
			}
		}
		ms = append(ms, member{n.ID, n.Joined, suffrage == raft.Voter, alive(n.ID), n.ID == self})
	}
	want := desiredVoters(ms)
	for _, m := range ms {
		if want[m.id] && !m.voter && c.caughtUp(r, m.id) {
			return func() raft.IndexFuture {
				return r.AddVoter(raft.ServerID(m.id), raft.ServerAddress(m.id), 0, configWithin)
			}
		}
	}
	for _, m := range ms {
		// A voter goes only when its successor votes.
		if m.voter && !want[m.id] && votes(ms, want) {
			return func() raft.IndexFuture { return r.DemoteVoter(raft.ServerID(m.id), 0, configWithin) }
		}
	}
	return c.removal(r, servers, ms, want)
}

// removal takes out who isn't a node any more; the leader itself last, once those who
// shall vote do, after which raft finds a leader among them.
func (c *Catalog) removal(r *raft.Raft, servers map[string]raft.ServerSuffrage, ms []member, want map[string]bool) func() raft.IndexFuture {
	self := c.cfg.Wire.ID()
	isNode := map[string]bool{}
	for _, m := range ms {
		isNode[m.id] = true
	}
	var gone []string
	for id := range servers {
		if !isNode[id] && id != self {
			gone = append(gone, id)
		}
	}
	if len(gone) == 0 && !isNode[self] && len(ms) > 0 && votes(ms, want) {
		gone = []string{self}
	}
	if len(gone) == 0 {
		return nil
	}
	return func() raft.IndexFuture { return r.RemoveServer(raft.ServerID(gone[0]), 0, configWithin) }
}

// votes says whether everyone who shall vote does.
func votes(ms []member, want map[string]bool) bool {
	return !slices.ContainsFunc(ms, func(m member) bool { return want[m.id] && !m.voter })
}

func (c *Catalog) caughtUp(r *raft.Raft, id string) bool {
	c.mu.Lock()
	t := c.trans
	c.mu.Unlock()
	if t == nil {
		return false
	}
	lag, known := t.lag(raft.ServerID(id), r.LastIndex())
	return known && lag <= promoteLag
}

// AwaitRemoval returns once this node is no part of raft's configuration any more, or
// ctx ends. A leader that was removed from the catalog hands its voice to others first.
func (c *Catalog) AwaitRemoval(ctx context.Context) {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		c.mu.Lock()
		r := c.raft
		c.mu.Unlock()
		if r == nil || r.State() == raft.Shutdown {
			return
		}
		f := r.GetConfiguration()
		if f.Error() != nil || !configured(f.Configuration(), c.cfg.Wire.ID()) || len(f.Configuration().Servers) == 1 {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// AwaitOut returns nil once a node is no part of raft's configuration, as far as is known
// here: then the leader tells it of no more changes.
func (c *Catalog) AwaitOut(ctx context.Context, id string) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		c.mu.Lock()
		r := c.raft
		c.mu.Unlock()
		if r == nil {
			return ErrNoLeader
		}
		f := r.GetConfiguration()
		if err := f.Error(); err != nil {
			return fmt.Errorf("read raft's configuration: %w", err)
		}
		if !configured(f.Configuration(), id) {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func configured(c raft.Configuration, id string) bool {
	return slices.ContainsFunc(c.Servers, func(s raft.Server) bool { return string(s.ID) == id })
}
