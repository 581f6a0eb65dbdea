package catalog_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// BenchmarkPropose measures claims of containers until the proposer sees them in its
// own view: one after the other, and by many callers at once; at the leader and at a
// follower; with the log in memory and on disk.
//
//	go test -run xxx -bench Propose ./cluster/catalog
func BenchmarkPropose(b *testing.B) {
	for _, disk := range []bool{false, true} {
		for _, ids := range [][]string{{"a"}, {"a", "b", "c"}} {
			log := "memory"
			if disk {
				log = "disk"
			}
			b.Run(fmt.Sprintf("%s/%d-nodes", log, len(ids)), func(b *testing.B) {
				dir := ""
				if disk {
					dir = b.TempDir()
				}
				g := newGroup(b, dir, ids...)
				b.Cleanup(g.stopAll)
				g.begin(b.Context(), ids...)
				proposers := map[string]*replica{"leader": g.rs["a"]}
				if len(ids) > 1 {
					proposers["follower"] = g.rs["c"]
				}
				for who, r := range proposers {
					b.Run(who+"/serial", func(b *testing.B) { claimAll(b, r, 1) })
					b.Run(who+"/parallel", func(b *testing.B) { claimAll(b, r, 128) })
				}
			})
		}
	}
}

var claims atomic.Uint64

func claimAll(b *testing.B, r *replica, callers int) {
	b.SetParallelism(callers)
	one := func() error {
		n := claims.Add(1)
		_, err := r.Propose(b.Context(), catalog.ClaimContainer{ID: fmt.Sprintf("%064x", n), Name: fmt.Sprint("c", n), NodeID: "a"})
		return err
	}
	b.ResetTimer()
	if callers == 1 {
		for b.Loop() {
			require.NoError(b, one())
		}
	} else {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := one(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "claims/s")
}

// BenchmarkSync measures a linearizable read barrier.
func BenchmarkSync(b *testing.B) {
	g := newGroup(b, "", "a", "b", "c")
	b.Cleanup(g.stopAll)
	g.begin(b.Context(), "a", "b", "c")
	for _, n := range []string{"a", "c"} {
		b.Run(n, func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, g.rs[n].Sync(b.Context()))
			}
		})
	}
}

// BenchmarkView measures what a reader pays when the catalog changed since it last
// looked, with 1,000 containers.
func BenchmarkView(b *testing.B) {
	s := catalog.NewState()
	_, err := s.Propose(b.Context(), catalog.PutNode{Node: catalog.Node{ID: "n", Name: "n"}})
	require.NoError(b, err)
	for i := range 1000 {
		_, err := s.Propose(b.Context(), catalog.ClaimContainer{ID: fmt.Sprintf("%064x", i), Name: fmt.Sprint("c", i), NodeID: "n"})
		require.NoError(b, err)
	}
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			_, err := s.Propose(b.Context(), catalog.SetRef{Ref: catalog.Ref{Name: "r", Digest: "d"}})
			require.NoError(b, err)
			b.StartTimer()
			s.View().Containers()
		}
	})
	b.Run("find", func(b *testing.B) {
		for b.Loop() {
			_, err := s.View().Container("c500")
			require.NoError(b, err)
		}
	})
}
