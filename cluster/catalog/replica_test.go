package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/transfer/p2p/memory"
)

// group is some replicas on one network.
type group struct {
	t   testing.TB
	net *memory.Network
	dir string // "" keeps logs in memory
	rs  map[string]*replica
	// removed are the replicas that were taken out: one that led then ends.
	removed sync.Map
}

type replica struct {
	*catalog.Catalog
	host *memory.Host
	stop func()
}

func newGroup(t testing.TB, dir string, ids ...string) *group {
	g := &group{t: t, net: memory.NewNetwork(), dir: dir, rs: map[string]*replica{}}
	for i, n := range ids {
		g.start(n, i == 0)
	}
	if tt, ok := t.(*testing.T); ok {
		tt.Cleanup(g.stopAll)
	}
	return g
}

func (g *group) start(id string, first bool) *replica {
	host := g.net.Host(id)
	for _, o := range []string{"a", "b", "c", "d", "e", "f"} {
		host.SetPeer(o, []string{"/memory/" + o})
	}
	cfg := catalog.Config{Wire: host, Bootstrap: first, Logger: slog.New(slog.DiscardHandler)}
	if g.dir != "" {
		cfg.Dir = filepath.Join(g.dir, id)
	}
	c := catalog.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		err := c.Run(ctx)
		if _, gone := g.removed.Load(id); gone && errors.Is(err, catalog.ErrRemoved) {
			return
		}
		if err != nil {
			g.t.Errorf("replica %s: %v", id, err)
		}
	})
	tasks.Go(func() {
		_ = c.Lead(ctx, func(ctx context.Context) error {
			t := time.NewTicker(100 * time.Millisecond)
			defer t.Stop()
			for {
				_, _ = c.ManageMembers(ctx, func(n string) bool { return g.net.Reachable(id, n) })
				select {
				case <-t.C:
				case <-ctx.Done():
					return nil
				}
			}
		})
	})
	var once sync.Once
	r := &replica{c, host, func() {
		once.Do(func() {
			cancel()
			tasks.Wait()
			if err := host.Close(); err != nil {
				g.t.Errorf("close host %s: %v", id, err)
			}
		})
	}}
	g.rs[id] = r
	return r
}

func (g *group) stopAll() {
	for _, r := range g.rs {
		r.stop()
	}
}

// begin makes the group a cluster of all its replicas.
func (g *group) begin(ctx context.Context, ids ...string) {
	g.t.Helper()
	first := g.rs[ids[0]]
	_, err := first.Propose(ctx, catalog.SetSettings{Name: "t", Subnet: catalog.DefaultSubnet})
	require.NoError(g.t, err)
	for _, n := range ids {
		_, err := first.Propose(ctx, catalog.PutNode{Node: catalog.Node{ID: n, Name: "node-" + n}})
		require.NoError(g.t, err)
	}
	want := len(ids)
	if want%2 == 0 {
		want--
	}
	for _, n := range ids {
		g.until(ctx, n, func(v catalog.View) bool {
			voters := 0
			for _, n := range v.Nodes() {
				if n.Voter {
					voters++
				}
			}
			return len(v.Nodes()) == len(ids) && voters == min(want, 5)
		})
	}
}

// until waits for a replica's view.
func (g *group) until(ctx context.Context, id string, ok func(catalog.View) bool) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		v := g.rs[id].View()
		if ok(v) {
			return
		}
		if err := g.rs[id].Wait(ctx, v.Index()); err != nil {
			g.t.Fatalf("replica %s: nodes %+v: %v", id, v.Nodes(), err)
		}
	}
}

func (g *group) leader(ctx context.Context, among ...string) string {
	g.t.Helper()
	for range 600 {
		for _, n := range among {
			if l, ok := g.rs[n].Leader(); ok && l == n {
				return n
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	g.t.Fatal("no leader within a minute")
	return ""
}

func TestOneReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, "", "a")
		defer g.stopAll()
		g.begin(t.Context(), "a")
		_, err := g.rs["a"].Propose(t.Context(), catalog.ClaimContainer{ID: id("1"), Name: "x", NodeID: "a"})
		require.NoError(t, err)
		_, err = g.rs["a"].View().Container("x")
		require.NoError(t, err)
		require.NoError(t, g.rs["a"].Sync(t.Context()))
	})
}

// TestEndsInTheMiddleOfWrites: a replica that ends leaves nothing behind, whatever it is
// asked at that moment. What raft left unanswered would hold its goroutine for ever, and
// the bubble's end says so.
func TestEndsInTheMiddleOfWrites(t *testing.T) {
	for _, ids := range [][]string{{"a"}, {"a", "b", "c"}} {
		for range 20 {
			synctest.Test(t, func(t *testing.T) { endBusy(t, ids) })
		}
	}
}

// endBusy ends the leader of a group while 32 clients write.
func endBusy(t *testing.T, ids []string) {
	g := newGroup(t, "", ids...)
	defer g.stopAll()
	g.begin(t.Context(), ids...)
	leader := g.rs[g.leader(t.Context(), ids...)]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	var written atomic.Int64
	for i := range 32 {
		tasks.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("x%d-%d", i, n)
				_, err := leader.Propose(ctx, catalog.ClaimContainer{ID: id(name), Name: name, NodeID: "a"})
				if err == nil && leader.Sync(ctx) == nil && written.Add(1) == 50 {
					tasks.Go(func() {
						leader.stop()
						cancel()
					})
				}
			}
		})
	}
}

func TestFollowersProposeAndSeeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, "", "a", "b", "c", "d")
		defer g.stopAll()
		g.begin(t.Context(), "a", "b", "c", "d")
		for i, n := range []string{"a", "b", "c", "d"} {
			began := time.Now()
			name := fmt.Sprint("x", i)
			_, err := g.rs[n].Propose(t.Context(), catalog.ClaimContainer{ID: id(fmt.Sprint(i)), Name: name, NodeID: n})
			require.NoError(t, err)
			_, err = g.rs[n].View().Container(name)
			require.NoError(t, err, "a proposer sees what it did")
			for _, o := range []string{"a", "b", "c", "d"} {
				require.NoError(t, g.rs[o].Sync(t.Context()))
				_, err = g.rs[o].View().Container(name)
				require.NoError(t, err, "after a sync everyone sees it")
			}
			require.Less(t, time.Since(began), 20*time.Millisecond, "no timer lies on the way of a write")
			_, err = g.rs[n].Propose(t.Context(), catalog.ClaimContainer{ID: id("f"), Name: name, NodeID: n})
			require.ErrorIs(t, err, errdefs.ErrConflict)
			require.ErrorContains(t, err, `is already in use by container "`+id(fmt.Sprint(i)))
		}
	})
}

func TestLeaderCutOffAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c"}
		g := newGroup(t, "", ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		g.net.Isolate("a")

		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := g.rs["a"].Propose(short, catalog.ClaimContainer{ID: id("1"), Name: "lost", NodeID: "a"})
		require.ErrorIs(t, err, catalog.ErrNoLeader)
		require.ErrorIs(t, g.rs["a"].Sync(short), catalog.ErrNoLeader)

		l := g.leader(t.Context(), "b", "c")
		_, err = g.rs["b"].Propose(t.Context(), catalog.ClaimContainer{ID: id("2"), Name: "kept", NodeID: "b"})
		require.NoError(t, err)
		g.net.Heal()
		g.until(t.Context(), "a", func(v catalog.View) bool { _, err := v.Container("kept"); return err == nil })
		require.NoError(t, g.rs["a"].Sync(t.Context()))
		for _, n := range ids {
			require.NoError(t, g.rs[n].Sync(t.Context()))
			require.Equal(t, g.rs[l].View().Containers(), g.rs[n].View().Containers())
		}
	})
}

// TestCutOffLeaderResumesFromDisk: what a leader wrote alone is cut off its log when it
// is back, and the log can still be read after a restart.
func TestCutOffLeaderResumesFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c"}
		g := newGroup(t, t.TempDir(), ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		old := g.leader(t.Context(), ids...)
		g.net.Isolate(old)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := g.rs[old].Propose(short, catalog.SetRef{Ref: catalog.Ref{Name: "alone", Digest: "d"}})
		require.ErrorIs(t, err, catalog.ErrNoLeader)
		rest := slices.DeleteFunc(ids, func(id string) bool { return id == old })
		now := g.leader(t.Context(), rest...)
		_, err = g.rs[now].Propose(t.Context(), catalog.SetRef{Ref: catalog.Ref{Name: "kept", Digest: "d"}})
		require.NoError(t, err)
		g.net.Heal()
		g.until(t.Context(), old, func(v catalog.View) bool { _, ok := v.Ref("kept"); return ok })
		g.rs[old].stop()
		g.start(old, false)
		require.NoError(t, g.rs[old].Sync(t.Context()))
		_, ok := g.rs[old].View().Ref("kept")
		require.True(t, ok)
		_, ok = g.rs[old].View().Ref("alone")
		require.False(t, ok)
	})
}

func TestReplicaResumesFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c"}
		g := newGroup(t, t.TempDir(), ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		for i := range 20 {
			_, err := g.rs["c"].Propose(t.Context(), catalog.SetRef{Ref: catalog.Ref{Name: fmt.Sprint("r", i), Digest: "d"}})
			require.NoError(t, err)
		}
		for _, n := range ids { // one after the other, the leader too
			g.rs[n].stop()
			g.start(n, n == "a") // Bootstrap must not matter a second time
			_, err := g.rs[n].Propose(t.Context(), catalog.SetRef{Ref: catalog.Ref{Name: "after " + n, Digest: "d"}})
			require.NoError(t, err)
			_, ok := g.rs[n].View().Ref("r19")
			require.True(t, ok)
		}
		for _, n := range ids { // all at once
			g.rs[n].stop()
		}
		for _, n := range ids {
			g.start(n, false)
		}
		require.NoError(t, g.rs["b"].Sync(t.Context()))
		_, ok := g.rs["b"].View().Ref("after c")
		require.True(t, ok, "what was acknowledged outlives everybody's restart")
	})
}

// TestReturnedVoterIsToldAtOnce: a voter that was away for long, and without which there
// is no majority a second later, doesn't have to wait until raft tries it again.
func TestReturnedVoterIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c"}
		g := newGroup(t, t.TempDir(), ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		for _, away := range []time.Duration{time.Second, 6 * time.Second, 8 * time.Second, 21 * time.Second} {
			leader := g.leader(t.Context(), ids...)
			rest := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == leader })
			name := fmt.Sprint(away)
			g.rs[rest[0]].stop()
			_, err := g.rs[leader].Propose(t.Context(), catalog.SetRef{Ref: catalog.Ref{Name: "before " + name, Digest: "d"}})
			require.NoError(t, err)
			<-time.After(away)
			g.start(rest[0], false)
			<-time.After(time.Second) // heartbeats reach it again
			g.net.Isolate(rest[1])
			began := time.Now()
			_, err = g.rs[leader].Propose(t.Context(), catalog.SetRef{Ref: catalog.Ref{Name: name, Digest: "d"}})
			require.NoError(t, err)
			g.until(t.Context(), rest[0], func(v catalog.View) bool { _, ok := v.Ref(name); return ok })
			require.Less(t, time.Since(began), time.Second, "after %s", away)
			g.net.Heal()
			require.NoError(t, g.rs[rest[1]].Sync(t.Context()))
		}
	})
}

func TestDeadVoterIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c", "d"}
		g := newGroup(t, "", ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		d, _ := g.rs["a"].View().Node("d")
		require.False(t, d.Voter)
		g.net.Isolate("b")
		g.until(t.Context(), "a", func(v catalog.View) bool {
			d, _ := v.Node("d")
			b, _ := v.Node("b")
			return d.Voter && !b.Voter
		})
	})
}

func TestRemovedNodeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c"}
		g := newGroup(t, "", ids...)
		defer g.stopAll()
		g.begin(t.Context(), ids...)
		g.removed.Store("c", true)
		_, err := g.rs["a"].Propose(t.Context(), catalog.RemoveNode{ID: "c"})
		require.NoError(t, err)
		g.until(t.Context(), "a", func(v catalog.View) bool {
			voters := 0
			for _, n := range v.Nodes() {
				if n.Voter {
					voters++
				}
			}
			return voters == 1
		})
	})
}
