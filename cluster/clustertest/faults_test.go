package clustertest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
