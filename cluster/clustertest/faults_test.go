package clustertest_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// leaderOf is the ID of the node that leads, as one node sees it.
func leaderOf(t *testing.T, n *clustertest.Node) string {
	t.Helper()
	_, s := call[cluster.Status](t, n, "GET", "status", "")
	for _, m := range n.Reader().View().Nodes() {
		if m.Name == s.Leader {
			return m.ID
		}
	}
	return ""
}

// TestAcknowledgedWritesSurvive: while every node writes, the leader is cut off or
// restarted again and again. What was acknowledged is there in the end, everywhere, and
// nobody saw anything else for it.
func TestAcknowledgedWritesSurvive(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		ids := []string{"a", "b", "c"}
		nodes := map[string]*clustertest.Node{}
		for _, n := range l.Form(t.Context(), ids...) {
			nodes[n.ID] = n
		}
		var mu sync.Mutex // guards nodes and acked
		acked := map[string]string{}
		ctx, cancel := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for _, id := range ids {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					mu.Lock()
					store := nodes[id].Store()
					mu.Unlock()
					ref := catalog.Ref{Name: fmt.Sprint(id, i), Digest: fmt.Sprint("d", i)}
					try, stop := context.WithTimeout(ctx, 3*time.Second)
					_, err := store.Propose(try, catalog.SetRef{Ref: ref})
					stop()
					if err == nil {
						mu.Lock()
						acked[ref.Name] = ref.Digest
						mu.Unlock()
					}
					<-time.After(20 * time.Millisecond)
				}
			})
		}
		for round := range 6 {
			<-time.After(3 * time.Second)
			leader := leaderOf(t, nodes[ids[round%3]])
			if leader == "" {
				continue
			}
			if round%2 == 0 {
				l.Isolate(leader)
				<-time.After(6 * time.Second)
				l.Heal()
				continue
			}
			l.Stop(leader)
			<-time.After(4 * time.Second)
			n := l.Start(leader)
			mu.Lock()
			nodes[leader] = n
			mu.Unlock()
		}
		<-time.After(10 * time.Second)
		cancel()
		writers.Wait()
		require.Greater(t, len(acked), 500)
		for _, n := range nodes {
			require.NoError(t, n.Store().Sync(t.Context()))
			v := n.Reader().View()
			for name, digest := range acked {
				r, ok := v.Ref(name)
				require.True(t, ok, "node %s: %s was acknowledged and is gone", n.ID, name)
				require.Equal(t, digest, r.Digest)
			}
		}
	})
}

// TestQuietClusterIsQuiet: nothing is written while nothing happens.
func TestQuietClusterIsQuiet(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		run(t, nodes[1].Engine(), "x1")
		<-time.After(time.Minute)
		before := nodes[0].Reader().View().Index()
		<-time.After(10 * time.Minute)
		require.Equal(t, before, nodes[0].Reader().View().Index())
	})
}

// TestLastNodeLeaves: a cluster of one ends with its node, which may begin another.
func TestLastNodeLeaves(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		a := l.Form(t.Context(), "a")[0]
		load(t, a.Engine())
		run(t, a.Engine(), "x1")
		old, err := a.Token(t.Context())
		require.NoError(t, err)
		require.NoError(t, a.Leave(t.Context()))
		a.Until(t.Context(), t, "a is in no cluster", func(catalog.View) bool { return !a.Member() })
		require.NoError(t, a.Init(t.Context()))
		a.Until(t.Context(), t, "the container is adopted", func(v catalog.View) bool { _, err := v.Container("x1"); return err == nil })
		fresh, err := a.Token(t.Context())
		require.NoError(t, err)
		require.NotEqual(t, old, fresh)
	})
}

// TestCutOffNodeKnowsThatItDoesNotKnow: only who is up to date may say that something
// isn't there.
func TestCutOffNodeKnowsThatItDoesNotKnow(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		l.Isolate("c")
		<-time.After(5 * time.Second)
		id := run(t, nodes[0].Engine(), "x1")
		_, err := nodes[2].Engine().InspectContainer(t.Context(), id, api.InspectOptions{})
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		_, err = nodes[1].Engine().InspectContainer(t.Context(), "x2", api.InspectOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		l.Heal()
		nodes[2].Until(t.Context(), t, "x1 is known", func(v catalog.View) bool { _, err := v.Container(id); return err == nil })
		_, err = nodes[2].Engine().InspectContainer(t.Context(), "x2", api.InspectOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	})
}

// TestSameRenameTwice: whoever comes second doesn't undo what the first was promised.
func TestSameRenameTwice(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "n0")
		for round := range 50 {
			name := fmt.Sprint("n", round+1)
			var tasks sync.WaitGroup
			for _, n := range nodes {
				tasks.Go(func() {
					if err := n.Engine().RenameContainer(t.Context(), id, name); err != nil {
						require.ErrorIs(t, err, errdefs.ErrInvalidArgument) // it has the name
					}
				})
			}
			tasks.Wait()
			for _, n := range nodes {
				require.NoError(t, n.Store().Sync(t.Context()))
				c, err := n.Reader().View().Container(id)
				require.NoError(t, err)
				require.Equal(t, name, c.Name)
			}
		}
	})
}

// TestRenameThereAndBack: what a node says late of a name that has changed again since
// changes nothing.
func TestRenameThereAndBack(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "x0", "constraint:node==node-b")
		for round := range 100 {
			n := nodes[round%len(nodes)]
			was, name := fmt.Sprint("x", round%2), fmt.Sprint("x", (round+1)%2)
			for _, next := range []string{name, was, name} {
				require.NoError(t, n.Engine().RenameContainer(t.Context(), id, next), "round %d", round)
			}
			require.NoError(t, n.Store().Sync(t.Context()))
			c, err := n.Reader().View().Container(id)
			require.NoError(t, err)
			require.Equal(t, name, c.Name, "round %d", round)
		}
	})
}

// TestNodeHearsOfNamesLate: the catalog alone says which names are free, also while a
// node that is slow to rename still has one in use, or two the wrong way round.
func TestNodeHearsOfNamesLate(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		on := "constraint:node==node-b"
		ids := []string{run(t, nodes[0].Engine(), "x0", on), run(t, nodes[0].Engine(), "x1", on)}
		var delay atomic.Int64
		nodes[1].Host.BeforeRename = func(id string) error {
			if id == ids[0] {
				<-time.After(time.Duration(delay.Load()))
			}
			return nil
		}
		agree := func(want ...string) {
			for i, id := range ids {
				c, err := nodes[1].Reader().View().Container(id)
				require.NoError(t, err)
				require.Equal(t, want[i], c.Name)
				of, err := nodes[1].Host.InspectContainer(t.Context(), id, api.InspectOptions{})
				require.NoError(t, err)
				require.Equal(t, "/"+want[i], of.Name)
			}
		}

		delay.Store(int64(500 * time.Millisecond))
		var tasks sync.WaitGroup
		tasks.Go(func() { require.NoError(t, nodes[0].Engine().RenameContainer(t.Context(), ids[0], "x2")) })
		nodes[2].Until(t.Context(), t, "x0 is free", func(v catalog.View) bool { _, err := v.Container("x0"); return err != nil })
		require.NoError(t, nodes[2].Engine().RenameContainer(t.Context(), ids[1], "x0"))
		tasks.Wait()
		agree("x2", "x0")

		tasks.Go(func() { require.NoError(t, nodes[0].Engine().RenameContainer(t.Context(), ids[0], "x3")) })
		nodes[2].Until(t.Context(), t, "x2 is free", func(v catalog.View) bool { _, err := v.Container("x2"); return err != nil })
		_, err := create(t.Context(), nodes[2].Engine(), "x2", on)
		require.NoError(t, err)
		tasks.Wait()
		agree("x3", "x0")

		delay.Store(0)
		for _, c := range []catalog.RenameContainer{{ID: ids[0], Name: "x4"}, {ID: ids[1], Name: "x3"}, {ID: ids[0], Name: "x0"}} {
			_, err := nodes[0].Store().Propose(t.Context(), c)
			require.NoError(t, err)
		}
		<-time.After(time.Minute)
		agree("x0", "x3")
	})
}

// TestRenamedOnItsNode: who renames through the node's own socket is followed, unless the
// name is another container's.
func TestRenamedOnItsNode(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "x0", "constraint:node==node-b")
		run(t, nodes[0].Engine(), "taken", "constraint:node==node-a")
		require.NoError(t, nodes[0].Engine().RenameContainer(t.Context(), id, "x1"))
		for _, c := range []struct{ to, becomes string }{{"x2", "x2"}, {"x1", "x1"}, {"taken", "x1"}, {"x3", "x3"}} {
			<-time.After(time.Minute)
			require.NoError(t, nodes[1].Host.RenameContainer(t.Context(), id, c.to))
			<-time.After(time.Minute)
			known, err := nodes[2].Reader().View().Container(id)
			require.NoError(t, err)
			require.Equal(t, c.becomes, known.Name)
			i, err := nodes[1].Host.InspectContainer(t.Context(), id, api.InspectOptions{})
			require.NoError(t, err)
			require.Equal(t, "/"+c.becomes, i.Name)
		}
	})
}

// TestGoneIsGone: who is told that there is no such container finds its name free.
func TestGoneIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		for range 20 {
			id := run(t, nodes[0].Engine(), "x1", "constraint:node==node-b")
			require.NoError(t, nodes[1].Host.RemoveContainer(t.Context(), id, api.RemoveOptions{Force: true}))
			require.ErrorIs(t, nodes[0].Engine().KillContainer(t.Context(), id, "KILL"), errdefs.ErrNotFound)
			id, err := create(t.Context(), nodes[0].Engine(), "x1")
			require.NoError(t, err)
			require.NoError(t, nodes[2].Engine().RemoveContainer(t.Context(), id, api.RemoveOptions{}))
		}
	})
}

// TestRenamerDies: a name that the catalog knows and the node was never told of
// reaches it, also when its agent was away.
func TestRenamerDies(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "x1", "constraint:node==node-b")
		ofNode := func() string {
			i, err := nodes[1].Host.InspectContainer(t.Context(), id, api.InspectOptions{})
			require.NoError(t, err)
			return i.Name
		}
		_, err := nodes[0].Store().Propose(t.Context(), catalog.RenameContainer{ID: id, Name: "x2"})
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.Equal(t, "/x2", ofNode())
		l.Stop("b")
		_, err = nodes[0].Store().Propose(t.Context(), catalog.RenameContainer{ID: id, Name: "x3"})
		require.NoError(t, err)
		b := l.Start("b")
		<-time.After(time.Minute)
		require.Equal(t, "/x3", ofNode())
		c, err := b.Reader().View().Container(id)
		require.NoError(t, err)
		require.Equal(t, "x3", c.Name)
	})
}

// TestPortTakenBetweenEndAndStart: a start that another container's claim overtook fails,
// and its container doesn't run on beside the port's new owner.
func TestPortTakenBetweenEndAndStart(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		publish := func(name, on string) string {
			c, err := nodes[0].Engine().CreateContainer(t.Context(), api.CreateOptions{Name: name,
				Config:     &container.Config{Image: "busybox", Cmd: []string{"sleep", "10000"}, Env: []string{"constraint:node==node-" + on}},
				HostConfig: &container.HostConfig{PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}}}}})
			require.NoError(t, err)
			return c.ID
		}
		first := publish("first", "b")
		require.NoError(t, nodes[0].Engine().StartContainer(t.Context(), first, api.StartOptions{}))
		require.NoError(t, nodes[0].Engine().StopContainer(t.Context(), first, api.StopOptions{Timeout: new(int)}))
		second := publish("second", "a")
		require.NoError(t, nodes[0].Engine().StartContainer(t.Context(), second, api.StartOptions{}))
		// Its node starts it without asking anybody, as for somebody whose view is late.
		require.NoError(t, nodes[1].Host.StartContainer(t.Context(), first, api.StartOptions{}))
		nodes[0].Until(t.Context(), t, "first runs without its port", func(v catalog.View) bool {
			c, err := v.Container(first)
			return err == nil && c.Denied && catalog.Live(c.State)
		})
		cs, err := nodes[0].Engine().ListContainers(t.Context(), api.ListOptions{})
		require.NoError(t, err)
		for _, c := range cs {
			for _, p := range c.Ports {
				require.False(t, c.ID == first && p.PublicPort != 0, "a port is shown of one container only")
			}
		}
		err = nodes[0].Engine().RestartContainer(t.Context(), first, api.StopOptions{Timeout: new(int)})
		require.ErrorContains(t, err, "port is already allocated")
		c, err := nodes[0].Reader().View().Container(first)
		require.NoError(t, err)
		require.False(t, catalog.Live(c.State), "what can't have its port doesn't run")
		require.NoError(t, nodes[0].Engine().RemoveContainer(t.Context(), second, api.RemoveOptions{Force: true}))
		require.NoError(t, nodes[0].Engine().StartContainer(t.Context(), first, api.StartOptions{}))
	})
}

// TestRemovedWhileBeingMade: whoever wins, nothing is left on a node that nobody sees.
func TestRemovedWhileBeingMade(t *testing.T) {
	for what, takes := range map[string]time.Duration{"at once": time.Second, "slowly": time.Minute} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *clustertest.Lab) {
				nodes := l.Form(t.Context(), "a", "b", "c")
				load(t, nodes[1].Engine())
				making := make(chan struct{})
				nodes[1].Host.BeforeCreate = func(string) {
					close(making)
					<-time.After(takes)
				}
				var tasks sync.WaitGroup
				tasks.Go(func() {
					_, err := create(t.Context(), nodes[0].Engine(), "x1", "constraint:node==node-b")
					if takes > 10*time.Second {
						require.ErrorIs(t, err, errdefs.ErrConflict)
					}
				})
				<-making
				require.NoError(t, nodes[2].Engine().RemoveContainer(t.Context(), "x1", api.RemoveOptions{}))
				tasks.Wait()
				<-time.After(time.Minute)
				for _, e := range []api.Engine{nodes[0].Engine(), nodes[1].Host} {
					cs, err := e.ListContainers(t.Context(), api.ListOptions{All: true})
					require.NoError(t, err)
					require.Empty(t, cs)
				}
			})
		})
	}
}

// TestRenameThatTheNodeDoesNotHear: the catalog decides about names. A node that refuses
// is obeyed, one that is away follows later.
func TestRenameThatTheNodeDoesNotHear(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "x1", "constraint:node==node-b")
		cluster := func() string {
			c, err := nodes[0].Reader().View().Container(id)
			require.NoError(t, err)
			return c.Name
		}
		refusals := make(chan error, 1) // has what the node refuses with, if it does
		nodes[1].Host.BeforeRename = func(string) error {
			select {
			case err := <-refusals:
				refusals <- err
				return err
			default:
				return nil
			}
		}
		refusals <- api.Internal("the disk is full")
		require.ErrorContains(t, nodes[0].Engine().RenameContainer(t.Context(), id, "x2"), "the disk is full")
		require.Equal(t, "x1", cluster())
		<-refusals
		refusals <- api.Unavailable("connection reset by peer")
		require.NoError(t, nodes[0].Engine().RenameContainer(t.Context(), id, "x2"))
		require.Equal(t, "x2", cluster())
		<-refusals
		<-time.After(time.Minute)
		i, err := nodes[1].Host.InspectContainer(t.Context(), id, api.InspectOptions{})
		require.NoError(t, err)
		require.Equal(t, "/x2", i.Name)
		require.Equal(t, "x2", cluster())
	})
}

// TestMostRestartAtOnce: four of five stop and start again, over and over. All of them
// follow the leader again each time. Here its first word to a replica covers the whole
// log; what becomes of one that hears only of a part is for TestReplayForgetsNobody in
// package cluster.
func TestMostRestartAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		ids := []string{"a", "b", "c", "d", "e"}
		nodes := map[string]*clustertest.Node{}
		for _, n := range l.Form(t.Context(), ids...) {
			nodes[n.ID] = n
		}
		for round := range 12 {
			for i := range 20 {
				ref := catalog.Ref{Name: fmt.Sprint("r", round, ".", i), Digest: "d"}
				_, err := nodes["a"].Store().Propose(t.Context(), catalog.SetRef{Ref: ref})
				require.NoError(t, err)
			}
			stays := ids[round%len(ids)]
			for _, id := range ids {
				if id != stays {
					l.Stop(id)
				}
			}
			for _, id := range ids {
				if id != stays {
					nodes[id] = l.Start(id)
				}
			}
			<-time.After(20 * time.Second)
			for _, n := range nodes {
				require.NoError(t, n.Store().Sync(t.Context()), "node %s in round %d", n.ID, round)
				require.Len(t, n.Reader().View().Nodes(), len(ids))
			}
		}
	})
}
