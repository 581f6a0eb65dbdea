package catalog_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// propose fails the test if the command is refused.
func propose(t *testing.T, s *catalog.State, c catalog.Command) catalog.Result {
	t.Helper()
	r, err := s.Propose(t.Context(), c)
	require.NoError(t, err)
	return r
}

func withNodes(t *testing.T, names ...string) *catalog.State {
	t.Helper()
	s := catalog.NewState()
	propose(t, s, catalog.SetSettings{Name: "c", Subnet: catalog.DefaultSubnet, Secret: "s"})
	for _, n := range names {
		propose(t, s, catalog.PutNode{Node: catalog.Node{ID: "id-" + n, Name: n}})
	}
	return s
}

func id(c string) string { return strings.Repeat(c, 64) }

func claim(c, name, node string, ports ...catalog.Port) catalog.ClaimContainer {
	return catalog.ClaimContainer{ID: id(c), Name: name, NodeID: "id-" + node, Ports: ports}
}

func port(host, ctr uint16) catalog.Port { return catalog.Port{HostPort: host, ContainerPort: ctr} }

func report(s *catalog.State, t *testing.T, seq uint64, c string, state container.ContainerState) {
	t.Helper()
	x, err := s.View().Container(id(c))
	require.NoError(t, err)
	x.State = state
	propose(t, s, catalog.PutContainers{NodeID: x.NodeID, Seq: seq, Containers: []catalog.Container{x}})
}

func TestNodesLeaseTheLowestFreeSlice(t *testing.T) {
	s := withNodes(t, "a", "b", "c")
	b, ok := s.View().Node("b")
	require.True(t, ok)
	require.Equal(t, netip.MustParsePrefix("10.77.1.0/24"), b.Subnet)
	propose(t, s, catalog.RemoveNode{ID: "id-b"})
	d := propose(t, s, catalog.PutNode{Node: catalog.Node{ID: "id-d", Name: "d"}}).Node
	require.Equal(t, b.Subnet, d.Subnet)
	again := propose(t, s, catalog.PutNode{Node: catalog.Node{ID: "id-d", Name: "d2"}}).Node
	require.Equal(t, b.Subnet, again.Subnet, "a node that returns keeps its slice")
	_, err := s.Propose(t.Context(), catalog.PutNode{Node: catalog.Node{ID: "id-e", Name: "a"}})
	require.ErrorIs(t, err, errdefs.ErrConflict)
	require.Len(t, s.View().Nodes(), 3)
}

func TestSubnetRunsOut(t *testing.T) {
	s := catalog.NewState()
	propose(t, s, catalog.SetSettings{Subnet: netip.MustParsePrefix("10.1.2.0/23")})
	for i, n := range []string{"a", "b"} {
		got := propose(t, s, catalog.PutNode{Node: catalog.Node{ID: n, Name: n}}).Node
		require.Equal(t, byte(2+i), got.Subnet.Addr().As4()[2])
	}
	_, err := s.Propose(t.Context(), catalog.PutNode{Node: catalog.Node{ID: "c", Name: "c"}})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestClaimsOfNames(t *testing.T) {
	s := withNodes(t, "a", "b")
	propose(t, s, claim("1", "web", "a"))
	propose(t, s, claim("1", "web", "a")) // a retry
	_, err := s.Propose(t.Context(), claim("2", "web", "b"))
	require.ErrorIs(t, err, errdefs.ErrConflict)
	require.EqualError(t, err, `Conflict. The container name "/web" is already in use by container "`+id("1")+`". You have to remove (or rename) that container to be able to reuse that name.`)

	propose(t, s, catalog.RenameContainer{ID: id("1"), Name: "old"})
	propose(t, s, claim("2", "web", "b"))
	_, err = s.Propose(t.Context(), catalog.RenameContainer{ID: id("1"), Name: "web"})
	require.ErrorIs(t, err, errdefs.ErrConflict)

	propose(t, s, catalog.RemoveContainer{ID: id("2")})
	_, err = s.Propose(t.Context(), claim("2", "web", "b"))
	require.ErrorIs(t, err, errdefs.ErrConflict, "a claim that comes late must not bring a removed container back")
}

func TestClaimsOfPorts(t *testing.T) {
	loop, lan := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")
	at := func(ip netip.Addr, p uint16) catalog.Port {
		return catalog.Port{HostIP: ip, HostPort: p, ContainerPort: 80, Proto: "tcp"}
	}
	for name, c := range map[string]struct {
		second catalog.ClaimContainer
		first  catalog.Port
		free   bool
	}{
		"same everywhere":              {claim("2", "y", "b", port(8080, 80)), port(8080, 80), false},
		"udp":                          {claim("2", "y", "b", catalog.Port{HostPort: 8080, ContainerPort: 80, Proto: "udp"}), port(8080, 80), true},
		"another port":                 {claim("2", "y", "b", port(8081, 80)), port(8080, 80), true},
		"one address under everywhere": {claim("2", "y", "b", at(lan, 8080)), port(8080, 80), false},
		"everywhere over one address":  {claim("2", "y", "b", port(8080, 80)), at(lan, 8080), false},
		"loopback of another node":     {claim("2", "y", "b", at(loop, 8080)), at(loop, 8080), true},
		"loopback of the same node":    {claim("2", "y", "a", at(loop, 8080)), at(loop, 8080), false},
		"another address":              {claim("2", "y", "a", at(lan, 8080)), at(loop, 8080), true},
	} {
		t.Run(name, func(t *testing.T) {
			s := withNodes(t, "a", "b")
			propose(t, s, claim("1", "x", "a", c.first))
			_, err := s.Propose(t.Context(), c.second)
			if c.free {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "driver failed programming external connectivity on endpoint y: Bind for ")
			require.ErrorContains(t, err, ":8080 failed: port is already allocated")
			_, err = s.View().Container("y")
			require.ErrorIs(t, err, errdefs.ErrNotFound, "all or nothing")
		})
	}
}

func TestPortsAreChosen(t *testing.T) {
	s := withNodes(t, "a")
	seen := map[uint16]bool{}
	for _, c := range []string{"1", "2", "3"} {
		r := propose(t, s, claim(c, "n"+c, "a", port(0, 80), port(0, 81)))
		again := propose(t, s, claim(c, "n"+c, "a", port(0, 80), port(0, 81)))
		require.Equal(t, r.Container.Ports, again.Container.Ports, "a retry is told the same ports")
		for _, p := range r.Container.Ports {
			require.GreaterOrEqual(t, p.HostPort, uint16(49153))
			require.False(t, seen[p.HostPort])
			seen[p.HostPort] = true
		}
	}
}

func TestPortsEndWithTheContainerAndAreTakenAgain(t *testing.T) {
	s := withNodes(t, "a")
	propose(t, s, claim("1", "x", "a", port(80, 80)))
	report(s, t, 1, "1", container.StateRunning)
	report(s, t, 2, "1", container.StateExited)
	propose(t, s, claim("2", "y", "a", port(80, 80)))
	_, err := s.Propose(t.Context(), catalog.ClaimPorts{ID: id("1")})
	require.ErrorContains(t, err, "port is already allocated")
	propose(t, s, catalog.RemoveContainer{ID: id("2")})
	propose(t, s, catalog.ClaimPorts{ID: id("1")})
	_, err = s.Propose(t.Context(), claim("3", "z", "a", port(80, 80)))
	require.ErrorContains(t, err, "port is already allocated")
}

func TestReplacementMayNameTheSamePort(t *testing.T) {
	s := withNodes(t, "a")
	propose(t, s, claim("1", "x", "a", port(80, 80)))
	next := claim("2", "tmp_x", "a", port(80, 80))
	next.Replaces = "x"
	propose(t, s, next)
	_, err := s.Propose(t.Context(), catalog.ClaimPorts{ID: id("2")})
	require.ErrorContains(t, err, "port is already allocated")
	propose(t, s, catalog.RemoveContainer{ID: id("1")})
	propose(t, s, catalog.ClaimPorts{ID: id("2")})
}

func TestReports(t *testing.T) {
	s := withNodes(t, "a", "b")
	propose(t, s, claim("1", "x", "a"))
	report(s, t, 5, "1", container.StateRunning)
	report(s, t, 4, "1", container.StateExited)
	x, err := s.View().Container("x")
	require.NoError(t, err)
	require.Equal(t, container.StateRunning, x.State, "a stale report must not win")

	adopted := catalog.Container{ID: id("7"), Name: "x", State: container.StateRunning, Summary: container.Summary{Labels: map[string]string{"k": "v"}}}
	propose(t, s, catalog.PutContainers{NodeID: "id-b", Seq: 1, Full: true, Containers: []catalog.Container{adopted}})
	got, err := s.View().Container(id("7"))
	require.NoError(t, err)
	require.Equal(t, "x-"+strings.Repeat("7", 12), got.Name)
	require.Equal(t, map[string]string{"k": "v"}, got.Tags)

	propose(t, s, catalog.PutContainers{NodeID: "id-b", Seq: 2, Full: true})
	_, err = s.View().Container(id("7"))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.Len(t, s.View().Containers(), 1, "another node's containers are none of b's business")

	propose(t, s, claim("8", "pending", "b"))
	propose(t, s, catalog.PutContainers{NodeID: "id-b", Seq: 3, Full: true})
	_, err = s.View().Container("pending")
	require.NoError(t, err, "a claim that isn't confirmed yet outlives a full report")

	propose(t, s, catalog.RemoveContainer{ID: id("1")})
	propose(t, s, catalog.PutContainers{NodeID: "id-a", Seq: 6, Containers: []catalog.Container{x}})
	_, err = s.View().Container(id("1"))
	require.ErrorIs(t, err, errdefs.ErrNotFound, "a late report must not bring a removed container back")
}

func TestLookUp(t *testing.T) {
	s := withNodes(t, "a")
	propose(t, s, claim("1", "web", "a"))
	two := claim("2", "db", "a")
	two.ID = "11ff" + two.ID[4:]
	propose(t, s, two)
	for _, ref := range []string{"web", "/web", id("1"), "111"} {
		c, err := s.View().Container(ref)
		require.NoError(t, err, ref)
		require.Equal(t, "web", c.Name)
	}
	_, err := s.View().Container("11")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = s.View().Container("nope")
	require.EqualError(t, err, "No such container: nope")
	cs := s.View().Containers()
	require.Equal(t, "db", cs[0].Name, "newest first")
}

func TestViewsDoNotChange(t *testing.T) {
	s := withNodes(t, "a")
	before := s.View()
	propose(t, s, claim("1", "web", "a"))
	require.Empty(t, before.Containers())
	require.Len(t, s.View().Containers(), 1)
}

func TestImagesAndRefs(t *testing.T) {
	s := withNodes(t, "a", "b")
	img := func(d string) catalog.Image { return catalog.Image{Digest: d} }
	propose(t, s, catalog.PutImages{NodeID: "id-a", Seq: 1, Images: []catalog.Image{img("d1"), img("d2")}})
	propose(t, s, catalog.PutImages{NodeID: "id-b", Seq: 1, Images: []catalog.Image{img("d1")}})
	propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "x:1", Digest: "d1"}})
	require.Len(t, s.View().Holders("d1"), 2)
	propose(t, s, catalog.PutImages{NodeID: "id-a", Seq: 2, Full: true, Images: []catalog.Image{img("d2")}})
	require.Len(t, s.View().Holders("d1"), 1)
	propose(t, s, catalog.DropRef{Name: "x:1", Digest: "other"})
	r, ok := s.View().Ref("x:1")
	require.True(t, ok)
	require.Equal(t, "d1", r.Digest)
	propose(t, s, catalog.DropRef{Name: "x:1"})
	_, ok = s.View().Ref("x:1")
	require.False(t, ok)
}

func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withNodes(t, "a", "b")
		propose(t, s, claim("1", "x", "a"))
		up := true
		changed := make(chan struct{})
		l := catalog.WithLiveness(s, func(n string) bool { return n != "id-a" || up }, changed)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)

		v := l.View()
		require.False(t, v.Containers()[0].Lost)
		waited := make(chan error, 1)
		go func() { waited <- l.Wait(ctx, v.Index()) }()
		synctest.Wait()
		up = false
		changed <- struct{}{}
		require.NoError(t, <-waited)
		require.True(t, l.View().Containers()[0].Lost)
		c, err := l.View().Container("x")
		require.NoError(t, err)
		require.True(t, c.Lost)
		require.False(t, s.View().Containers()[0].Lost, "the catalog's own view is untouched")

		v = l.View()
		go func() { waited <- l.Wait(ctx, v.Index()) }()
		synctest.Wait()
		propose(t, s, claim("2", "y", "b"))
		require.NoError(t, <-waited)

		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		require.ErrorIs(t, l.Wait(short, l.View().Index()), context.DeadlineExceeded)
	})
}
