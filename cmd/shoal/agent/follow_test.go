package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/node/network"
)

// grow is a catalog of three nodes, node "b" with containers.
func grow(t *testing.T, containers ...catalog.Container) *catalog.State {
	t.Helper()
	s := catalog.NewState()
	propose := func(c catalog.Command) {
		_, err := s.Propose(t.Context(), c)
		require.NoError(t, err)
	}
	propose(catalog.SetSettings{Name: "x", Subnet: netip.MustParsePrefix("10.77.0.0/16"), Secret: "s"})
	for i, id := range []string{"a", "b", "c"} {
		propose(catalog.PutNode{Node: catalog.Node{
			ID: id, Name: "node-" + id, Host: netip.AddrFrom4([4]byte{10, 88, 0, byte(i + 1)}), Bulk: []string{"addr-" + id},
		}})
	}
	for _, c := range containers {
		propose(catalog.PutContainers{NodeID: c.NodeID, Seq: s.View().Index() + 1, Containers: []catalog.Container{c}})
	}
	return s
}

func running(id, node, addr string, ports ...catalog.Port) catalog.Container {
	return catalog.Container{
		ID: id, Name: "c-" + id, NodeID: node, State: container.StateRunning, Healthy: true,
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Ports: ports,
	}
}

func TestPlanIsOfOtherNodesOnly(t *testing.T) {
	web := catalog.Port{HostPort: 8080, ContainerPort: 80, Proto: "tcp"}
	own := catalog.Port{HostPort: 8081, ContainerPort: 80, Proto: "tcp"}
	bound := catalog.Port{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8082, ContainerPort: 80, Proto: "tcp"}
	stopped := running("4", "b", "10.77.1.9", catalog.Port{HostPort: 8083, ContainerPort: 80, Proto: "tcp"})
	stopped.State = container.StateExited
	s := grow(t, running("1", "b", "10.77.1.2", web, bound), running("2", "a", "10.77.0.2", own), stopped)
	p := planFor(s.View(), "a")
	require.Equal(t, map[string][]string{"b": {"addr-b"}, "c": {"addr-c"}}, p.peers)
	require.Len(t, p.routes, 2)
	require.Equal(t, "b", p.routes[0].NodeID)
	require.Equal(t, []network.Forward{{
		Publish: network.Publish{HostPort: 8080, ContainerPort: 80, Proto: "tcp"},
		Target:  netip.MustParseAddrPort("10.77.1.2:80"),
	}}, p.forwards, "a node's own ports, those of one host's address and of what is stopped are no forwards")
}

// host counts what is asked of it, and fails once if told to.
type host struct {
	sync.Mutex
	routes, forwards int
	last             []network.Forward
	fail             error
	peers            map[string][]string
}

func (h *host) SetRoutes(context.Context, []network.Route) error {
	h.Lock()
	defer h.Unlock()
	h.routes++
	return nil
}

func (h *host) SetForwards(_ context.Context, f []network.Forward) error {
	h.Lock()
	defer h.Unlock()
	if err := h.fail; err != nil {
		h.fail = nil
		return err
	}
	h.forwards, h.last = h.forwards+1, f
	return nil
}

func (h *host) SetPeer(id string, addrs []string) { h.peers[id] = addrs }
func (h *host) ForgetPeer(id string)              { delete(h.peers, id) }

func TestFollowDoesWhatChangedAndTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := grow(t)
		h := &host{peers: map[string][]string{}, fail: errors.New("not now")}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- follow(ctx, s, "a", h, h, discard()) }()
		synctest.Wait()
		require.Equal(t, 1, h.routes)
		require.Len(t, h.peers, 2)

		_, err := s.Propose(ctx, catalog.PutContainers{NodeID: "b", Seq: 1, Containers: []catalog.Container{
			running("1", "b", "10.77.1.2", catalog.Port{HostPort: 80, ContainerPort: 80, Proto: "tcp"}),
		}})
		require.NoError(t, err)
		synctest.Wait()
		require.Zero(t, h.forwards, "it failed")
		require.NoError(t, s.Wait(ctx, 0))
		passes(t, func() bool {
			h.Lock()
			defer h.Unlock()
			return h.forwards == 1
		})
		require.Len(t, h.last, 1)
		require.Equal(t, 1, h.routes, "routes did not change")

		_, err = s.Propose(ctx, catalog.RemoveNode{ID: "b"})
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, map[string][]string{"c": {"addr-c"}}, h.peers)
		require.Empty(t, h.last)
		stop()
		require.NoError(t, <-done)
	})
}

func TestFrontCountsOn(t *testing.T) {
	first, second := catalog.NewState(), grow(t)
	f := newFront(nil, first)
	before := f.View().Index()
	woken := make(chan error)
	go func() { woken <- f.Wait(t.Context(), before) }()
	f.show(nil, second)
	require.NoError(t, <-woken)
	require.Greater(t, f.View().Index(), before)
	require.Len(t, f.View().Nodes(), 3)
	before = f.View().Index()
	f.show(nil, catalog.NewState())
	require.Greater(t, f.View().Index(), before, "also when what is shown is younger")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.Wait(ctx, f.View().Index()), context.Canceled)
}

func TestHostResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	require.NoError(t, os.WriteFile(path, []byte("# x\nnameserver 192.0.2.1\nsearch a b\nnameserver fe80::1\nnameserver bad\nnameserver\n"), 0o600))
	require.Equal(t, []string{"192.0.2.1:53", "[fe80::1]:53"}, hostResolvers(path))
	require.Empty(t, hostResolvers(path+"none"))
}

func TestOneAgentADirectory(t *testing.T) {
	dir := t.TempDir()
	held, err := lock(t.Context(), dir)
	require.NoError(t, err)
	_, err = lock(t.Context(), dir)
	require.ErrorContains(t, err, dir)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	held.Close()
	held, err = lock(t.Context(), dir)
	require.NoError(t, err)
	held.Close()
}

func TestScopesDiffer(t *testing.T) {
	require.Equal(t, Scope("/a/b"), Scope("/a/b/"))
	require.NotEqual(t, Scope("/a/b"), Scope("/a/c"))
}
