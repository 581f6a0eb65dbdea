package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
)

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func rules(t testing.TB, kind Kind, exprs ...string) []Rule {
	t.Helper()
	var rs []Rule
	for _, e := range exprs {
		r, err := ParseRule(kind, e)
		require.NoError(t, err)
		rs = append(rs, r)
	}
	return rs
}

func threeNodes() View {
	node := func(name, zone string, running int) NodeInfo {
		return NodeInfo{
			ID: "id-" + name, Name: name, Tags: map[string]string{"zone": zone},
			OS: "linux", Arch: "amd64", CPUs: 2, Memory: 4 << 30, Running: running, Reachable: true,
		}
	}
	return View{Nodes: []NodeInfo{node("node1", "a", 1), node("node2", "b", 2), node("node3", "b", 3)}}
}

func TestPlaceChooses(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*View)
		request Request
		want    string
	}{
		"fewest running": {want: "node1"},
		"image breaks a tie": {
			change: func(v *View) {
				v.Nodes[1].Running = 1
				v.Nodes[1].Images = map[string]bool{"busybox:latest": true}
			},
			request: Request{Image: "busybox:latest"}, want: "node2",
		},
		"image does not beat spread": {
			change:  func(v *View) { v.Nodes[1].Images = map[string]bool{"busybox:latest": true} },
			request: Request{Image: "busybox:latest"}, want: "node1",
		},
		"unreachable":  {change: func(v *View) { v.Nodes[0].Reachable = false }, want: "node2"},
		"full":         {change: func(v *View) { v.Nodes[0].Reserved = 3 << 30 }, request: Request{Memory: 2 << 30}, want: "node2"},
		"exactly full": {change: func(v *View) { v.Nodes[0].Reserved = 2 << 30 }, request: Request{Memory: 2 << 30}, want: "node1"},
		"platform": {
			change:  func(v *View) { v.Nodes[0].Arch = "arm64" },
			request: Request{Platform: api.Platform{OS: "linux", Architecture: "amd64"}}, want: "node2",
		},
		"pin":             {request: Request{Pins: []Pin{{NodeID: "id-node3", Why: "bind mount"}}}, want: "node3"},
		"constraint":      {request: Request{Rules: rules(t, Constraint, "zone==b")}, want: "node2"},
		"not":             {request: Request{Rules: rules(t, Constraint, "zone!=a", "node!=node2")}, want: "node3"},
		"soft met":        {request: Request{Rules: rules(t, Constraint, "node==~node3")}, want: "node3"},
		"soft unmet":      {request: Request{Rules: rules(t, Constraint, "zone==~mars")}, want: "node1"},
		"more soft rules": {request: Request{Rules: rules(t, Constraint, "zone==~b", "node==~node3", "node==~node1")}, want: "node3"},
		"affinity": {
			change:  func(v *View) { v.Nodes[2].Containers = []ContainerInfo{{ID: "0123456789abcdef", Name: "db"}} },
			request: Request{Rules: rules(t, Affinity, "container==db")}, want: "node3",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := threeNodes()
			if c.change != nil {
				c.change(&v)
			}
			d, err := Place(v, c.request, seeded(1))
			require.NoError(t, err)
			require.Equal(t, c.want, d.NodeName)
			require.Equal(t, "id-"+c.want, d.NodeID)
		})
	}
}

func TestPlaceRefuses(t *testing.T) {
	v := threeNodes()
	v.Nodes[1].Reserved = 7 << 29
	v.Nodes[2].Reachable = false
	for name, c := range map[string]struct {
		view    View
		request Request
		want    string
		class   error
	}{
		"every node and why": {
			view: v, request: Request{Memory: 2 << 30, Rules: rules(t, Constraint, "zone==b")},
			want:  "no node fits: node1: constraint zone==b (has zone=a); node2: needs 2 GiB memory, 512 MiB free; node3: can't be reached",
			class: errdefs.ErrUnavailable,
		},
		"the request itself": {
			view: v, request: Request{Rules: rules(t, Constraint, "disk==ssd")},
			want: "no node fits: node1: constraint disk==ssd (has no disk); node2: constraint disk==ssd (has no disk); " +
				"node3: constraint disk==ssd (has no disk)",
			class: errdefs.ErrInvalidArgument,
		},
		"more memory than any node has": {
			view: View{Nodes: v.Nodes[:2]}, request: Request{Memory: 8 << 30},
			want:  "no node fits: node1: needs 8 GiB memory, 4 GiB free; node2: needs 8 GiB memory, 512 MiB free",
			class: errdefs.ErrInvalidArgument,
		},
		"pinned to a node that is away": {
			view: View{Nodes: v.Nodes[1:]}, request: Request{Pins: []Pin{{NodeID: "id-node3", Why: "volume data is on node3"}}},
			want:  "no node fits: node2: the container is tied to another node: volume data is on node3; node3: can't be reached",
			class: errdefs.ErrUnavailable,
		},
		"platform, cores, affinity": {
			view: View{Nodes: v.Nodes[:1]}, request: Request{Platform: api.Platform{OS: "linux", Architecture: "s390x"}},
			want: "no node fits: node1: needs platform linux/s390x, is linux/amd64", class: errdefs.ErrInvalidArgument,
		},
		"an image that is private": {
			view: v, request: Request{Only: map[string]bool{"id-node3": true}, Why: "image app:1 is private to node3", Rules: rules(t, Constraint, "zone==a")},
			want:  "no node fits: node1: image app:1 is private to node3; node2: image app:1 is private to node3; node3: constraint zone==a (has zone=b)",
			class: errdefs.ErrInvalidArgument,
		},
		"an image that no node may have": {
			view: View{Nodes: v.Nodes[:1]}, request: Request{Only: map[string]bool{}, Why: "image app:1 is private to no node"},
			want: "no node fits: node1: image app:1 is private to no node", class: errdefs.ErrInvalidArgument,
		},
		"cores": {
			view: View{Nodes: v.Nodes[:1]}, request: Request{CPUs: 2.5},
			want: "no node fits: node1: needs 2.5 CPUs, has 2", class: errdefs.ErrInvalidArgument,
		},
		"affinity": {
			view: View{Nodes: v.Nodes[:1]}, request: Request{Rules: rules(t, Affinity, "container==db")},
			want: "no node fits: node1: affinity container==db (isn't there)", class: errdefs.ErrInvalidArgument,
		},
		"nobody": {want: "no node fits: the cluster has no nodes", class: errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Place(c.view, c.request, seeded(1))
			require.EqualError(t, err, c.want)
			require.ErrorIs(t, err, c.class)
		})
	}
}

var genView = rapid.Custom(func(t *rapid.T) View {
	var v View
	for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
		v.Nodes = append(v.Nodes, NodeInfo{
			ID: fmt.Sprintf("id%d", i), Name: fmt.Sprintf("node%d", i),
			Tags:      map[string]string{"zone": rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone")},
			CPUs:      rapid.IntRange(0, 4).Draw(t, "cpus"),
			Memory:    rapid.Int64Range(0, 8).Draw(t, "memory"),
			Reserved:  rapid.Int64Range(0, 8).Draw(t, "reserved"),
			Running:   rapid.IntRange(0, 3).Draw(t, "running"),
			Images:    map[string]bool{"i": rapid.Bool().Draw(t, "image")},
			Reachable: rapid.Bool().Draw(t, "reachable"),
		})
	}
	return v
})

var genRequest = rapid.Custom(func(t *rapid.T) Request {
	var rs []Rule
	for _, e := range rapid.SliceOfN(rapid.SampledFrom([]string{
		"zone==a", "zone!=b", "zone==~c", "zone==/[ab]/", "node!=node3", "node==~node*",
	}), 0, 3).Draw(t, "rules") {
		r, err := ParseRule(Constraint, e)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return Request{
		Image: rapid.SampledFrom([]string{"", "i"}).Draw(t, "image"), Rules: rs,
		Memory: rapid.Int64Range(0, 8).Draw(t, "memory"), CPUs: rapid.Float64Range(0, 4).Draw(t, "cpus"),
	}
})

// A brute-force reading of Place's promise: the chosen node fits, no fitting node
// suits better, and an error means that none fits.
func TestPlaceKeepsItsPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, r := genView.Draw(t, "view"), genRequest.Draw(t, "request")
		seed := rapid.Uint64().Draw(t, "seed")
		d, err := Place(v, r, seeded(seed))
		again, errAgain := Place(v, r, seeded(seed))
		require.Equal(t, d, again, "the same seed decides the same")
		require.Equal(t, err == nil, errAgain == nil)
		fit := 0
		for i := range v.Nodes {
			n := &v.Nodes[i]
			if refusing(&r, n) != nil {
				require.NotEqual(t, n.ID, d.NodeID, "a refused node was chosen")
				if err != nil {
					require.Contains(t, err.Error(), n.Name+": ")
				}
				continue
			}
			fit++
			require.NoError(t, err, "%s fits", n.Name)
			require.False(t, rate(&r, n).above(score{d.Soft, d.Running, d.HasImage}), "%s suits better", n.Name)
		}
		require.Equal(t, fit, d.Fit)
	})
}

// Containers placed one after another differ by at most one between nodes that
// are alike.
func TestSpreadBalances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var v View
		for i := range rapid.IntRange(1, 20).Draw(t, "nodes") {
			v.Nodes = append(v.Nodes, NodeInfo{ID: fmt.Sprint(i), Name: fmt.Sprint(i), Reachable: true})
		}
		rnd := seeded(rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(0, 200).Draw(t, "containers") {
			d, err := Place(v, Request{}, rnd)
			require.NoError(t, err)
			for i := range v.Nodes {
				if v.Nodes[i].ID == d.NodeID {
					v.Nodes[i].Running++
				}
			}
		}
		low, high := v.Nodes[0].Running, v.Nodes[0].Running
		for _, n := range v.Nodes {
			low, high = min(low, n.Running), max(high, n.Running)
		}
		require.LessOrEqual(t, high-low, 1)
	})
}

func TestTiesAreBrokenEvenly(t *testing.T) {
	v := View{}
	for i := range 4 {
		v.Nodes = append(v.Nodes, NodeInfo{ID: fmt.Sprint(i), Reachable: true})
	}
	got := map[string]int{}
	rnd := seeded(7)
	for range 4000 {
		d, err := Place(v, Request{}, rnd)
		require.NoError(t, err)
		got[d.NodeID]++
	}
	for id, n := range got {
		require.InDelta(t, 1000, n, 150, "node %s", id)
	}
	require.Len(t, got, 4)
}

func BenchmarkPlace(b *testing.B) {
	v := View{}
	for i := range 1000 {
		v.Nodes = append(v.Nodes, NodeInfo{
			ID: fmt.Sprintf("id%d", i), Name: fmt.Sprintf("node%d", i),
			Tags: map[string]string{"zone": string(rune('a' + i%5)), "disk": "ssd"},
			OS:   "linux", Arch: "amd64", CPUs: 8, Memory: 32 << 30, Running: i % 7, Reachable: true,
			Images: map[string]bool{"busybox:latest": i%3 == 0},
		})
	}
	for name, r := range map[string]Request{
		"plain":       {Image: "busybox:latest", Memory: 1 << 30},
		"constrained": {Image: "busybox:latest", Memory: 1 << 30, Rules: rules(b, Constraint, "zone==b", "disk==/^s.d$/", "node!=node7")},
	} {
		b.Run(name, func(b *testing.B) {
			rnd := seeded(1)
			for b.Loop() {
				d, err := Place(v, r, rnd)
				if err != nil {
					b.Fatal(err)
				}
				_ = d
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "placements/s")
		})
	}
}
