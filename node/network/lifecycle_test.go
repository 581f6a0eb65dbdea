package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// A new agent finds what the one before made, and traffic doesn't notice.
func TestRestartKeepsContainers(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	cfg := Config{Root: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run")}
	before, stop := h.start(t, cfg)
	a := connect(t, before, "a", tcp(8080, 80), tcp(0, 80))
	none, err := before.Connect(context.Background(), Request{ContainerID: "none", Mode: "none"})
	require.NoError(t, err)
	l := echo(t, a.NetnsPath, ":80")
	defer l.Close()
	c := dial(t, outside.path, "192.168.50.1:8080")
	requireEcho(t, c, "before")
	stop()
	requireEcho(t, c, "between")
	require.NoError(t, before.Close())

	after := h.network(t, cfg)
	requireEcho(t, c, "after")
	got, ok := after.Endpoint("a")
	require.True(t, ok)
	require.Equal(t, a, got)
	got, ok = after.Endpoint("none")
	require.True(t, ok)
	require.Equal(t, none, got)
	b := connect(t, after, "b")
	require.NotEqual(t, a.Address, b.Address)
	requireEcho(t, dial(t, outside.path, "192.168.50.1:8080"), "new connection")
	_, err = after.Connect(context.Background(), Request{ContainerID: "c", Mode: "bridge", Ports: []Publish{tcp(8080, 80)}})
	require.ErrorContains(t, err, "port is already allocated")
}

func TestCrashLeftovers(t *testing.T) {
	h := newTestHost(t)
	cfg := Config{Root: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run")}
	crashed, stop := h.start(t, cfg)
	connect(t, crashed, "kept")
	gone := connect(t, crashed, "gone")
	_, err := crashed.prepare(netip.Addr{}, nil) // as the pool has when the agent is killed
	require.NoError(t, err)
	stop()
	require.NoError(t, crashed.Close())
	require.NoError(t, unpin(gone.NetnsPath)) // as after a reboot
	require.NoError(t, os.WriteFile(filepath.Join(cfg.Root, "endpoints", "torn.json"), []byte(`{"version":1`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(cfg.Root, tempPrefix+"1"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(cfg.RunDir, "unmounted"), nil, 0o600))

	cfg.Pool = -1
	n := h.network(t, cfg)
	_, ok := n.Endpoint("gone")
	require.False(t, ok)
	kept, ok := n.Endpoint("kept")
	require.True(t, ok)
	left, err := pins(cfg.RunDir)
	require.NoError(t, err)
	require.Equal(t, []string{kept.NetnsPath}, left)
	files, err := filepath.Glob(filepath.Join(cfg.Root, "*", "*"))
	require.NoError(t, err)
	require.Equal(t, []string{n.store.endpointFile("kept")}, files)
	require.NoFileExists(t, filepath.Join(cfg.Root, tempPrefix+"1"))
	requireLinks(t, h, n, 1)
}

func requireLinks(t *testing.T, h *testHost, n *Network, want int) {
	t.Helper()
	require.Eventually(t, func() bool {
		links, err := linksWith(h.nl, vethPrefix(n.cfg.Scope))
		return err == nil && len(links) == want
	}, time.Minute, time.Millisecond)
}

func TestTeardownLeavesNothing(t *testing.T) {
	h := newTestHost(t)
	cfg := Config{Root: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run")}
	n, stop := h.start(t, cfg)
	e := connect(t, n, "a", tcp(8080, 80))
	require.NoError(t, n.SetRoutes(context.Background(), []Route{{NodeID: "2", Host: netip.MustParseAddr("192.168.50.2"), Subnet: netip.MustParsePrefix("10.77.9.0/24")}}))
	held, err := os.Open(e.NetnsPath) // as a process of the container does that doesn't end
	require.NoError(t, err)
	defer held.Close()
	stop()
	require.NoError(t, n.Close())

	// By another process, as lab down does.
	n, err = New(h.config(t, cfg))
	require.NoError(t, err)
	require.NoError(t, n.Teardown(context.Background()))
	require.NoError(t, n.Close())
	h.nothingLeft(t, cfg.RunDir)
	files, err := os.ReadDir(cfg.Root)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestPortConflicts(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	connect(t, n, "a", tcp(8080, 80), Publish{HostPort: 53, ContainerPort: 53, Proto: "udp"})
	loopback := netip.MustParseAddr("127.0.0.1")
	connect(t, n, "lo", Publish{HostIP: loopback, HostPort: 9090, ContainerPort: 80, Proto: "tcp"})
	l := serve(t, h.path, "127.0.0.1:7070")

	for name, tt := range map[string]struct {
		ports []Publish
		text  string
	}{
		"same port":                {[]Publish{tcp(8080, 81)}, "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		"one address of all":       {[]Publish{{HostIP: loopback, HostPort: 8080, ContainerPort: 80, Proto: "tcp"}}, "Bind for 127.0.0.1:8080 failed: port is already allocated"},
		"all addresses with one":   {[]Publish{tcp(9090, 80)}, "Bind for 0.0.0.0:9090 failed: port is already allocated"},
		"twice in one request":     {[]Publish{tcp(6060, 80), tcp(6060, 81)}, "Bind for 0.0.0.0:6060 failed: port is already allocated"},
		"another program's":        {[]Publish{tcp(6060, 80), tcp(7070, 80)}, "failed to bind host port for 0.0.0.0:7070: address already in use"},
		"an address not our own":   {[]Publish{{HostIP: netip.MustParseAddr("192.0.2.9"), HostPort: 80, ContainerPort: 80, Proto: "tcp"}}, "cannot assign requested address"},
		"an IPv6 address":          {[]Publish{{HostIP: netip.IPv6Loopback(), HostPort: 80, ContainerPort: 80, Proto: "tcp"}}, "IPv4 addresses only"},
		"an unknown protocol":      {[]Publish{{HostPort: 80, ContainerPort: 80, Proto: "icmp"}}, "invalid proto: icmp"},
		"no port in the container": {[]Publish{{HostPort: 80, Proto: "tcp"}}, "invalid containerPort"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Connect(context.Background(), Request{ContainerID: "b", Name: "web", Mode: "bridge", Ports: tt.ports})
			require.ErrorContains(t, err, tt.text)
			if !errdefs.IsInvalidArgument(err) {
				require.ErrorContains(t, err, "driver failed programming external connectivity on endpoint web (")
			}
			_, ok := n.Endpoint("b")
			require.False(t, ok)
		})
	}
	t.Run("a failure takes nothing", func(t *testing.T) {
		connect(t, n, "b", tcp(6060, 80))
	})
	t.Run("other programs find the ports taken", func(t *testing.T) {
		err := inPinned(h.path, func() error {
			_, err := net.Listen("tcp4", ":8080")
			return err
		})
		require.ErrorContains(t, err, "address already in use")
	})
	t.Run("free again", func(t *testing.T) {
		require.NoError(t, l.Close())
		require.NoError(t, n.Disconnect(context.Background(), "a"))
		connect(t, n, "c", tcp(8080, 80), tcp(7070, 80))
	})
	t.Run("one container again", func(t *testing.T) {
		connect(t, n, "c", tcp(8080, 80))
		connect(t, n, "d", tcp(7070, 80))
	})
	t.Run("chosen", func(t *testing.T) {
		e := connect(t, n, "e", tcp(0, 80), tcp(0, 81), Publish{HostIP: loopback, ContainerPort: 80, Proto: "udp"})
		require.Len(t, e.Ports, 3)
		for _, p := range e.Ports {
			require.GreaterOrEqual(t, int(p.HostPort), firstChosenPort)
		}
		require.NotEqual(t, e.Ports[0].HostPort, e.Ports[1].HostPort)
	})
}

// The containers' own resolver is not in the way of a container that publishes port 53,
// and the other way round.
func TestResolverAndPublishedPort53(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	serve(t, h.path, "10.77.3.1:53")
	a, b := connect(t, n, "a", tcp(53, 53)), connect(t, n, "b")
	serve(t, a.NetnsPath, ":53")
	requireAnswer(t, b.NetnsPath, "10.77.3.1:53", b.Address.Addr().String())
	requireAnswer(t, h.path, "127.0.0.1:53", "10.77.3.1")
	require.NoError(t, n.Disconnect(context.Background(), "a"))
	serve(t, h.path, "127.0.0.1:53")
	_, err := n.Connect(context.Background(), Request{ContainerID: "a", Mode: "bridge", Ports: []Publish{tcp(53, 53)}})
	require.ErrorContains(t, err, "address already in use")
}

func TestConcurrentConnects(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			id := fmt.Sprint("c", i)
			for range 3 {
				_, err := n.Connect(context.Background(), Request{ContainerID: id, Mode: "bridge", Ports: []Publish{tcp(0, 80), tcp(uint16(8000+i), 80)}})
				if err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := n.Disconnect(context.Background(), id); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	addresses, hostPorts := map[netip.Prefix]bool{}, map[uint16]bool{}
	for i := range 30 {
		e, ok := n.Endpoint(fmt.Sprint("c", i))
		require.Equal(t, i%2 == 1, ok)
		if ok {
			require.False(t, addresses[e.Address], e.Address)
			addresses[e.Address] = true
			require.False(t, hostPorts[e.Ports[0].HostPort])
			hostPorts[e.Ports[0].HostPort] = true
			serve(t, e.NetnsPath, ":80")
			requireAnswer(t, h.path, fmt.Sprint("127.0.0.1:", 8000+i), "10.77.3.1")
		}
	}
	n.mu.Lock()
	used := len(n.ipam.used) - len(n.pool) - n.waiting
	n.mu.Unlock()
	require.Equal(t, 15, used, "addresses of containers gone are free")
}

func TestFixedAddressAndMAC(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	mac, err := net.ParseMAC("02:11:22:33:44:55")
	require.NoError(t, err)
	want := netip.MustParseAddr("10.77.3.99")
	e, err := n.Connect(context.Background(), Request{ContainerID: "a", Mode: "bridge", Address: want, MAC: mac})
	require.NoError(t, err)
	require.Equal(t, want, e.Address.Addr())
	require.NoError(t, inPinned(e.NetnsPath, func() error {
		i, err := net.InterfaceByName(containerLink)
		if err == nil {
			assert.Equal(t, mac, i.HardwareAddr)
		}
		return err
	}))
	_, err = n.Connect(context.Background(), Request{ContainerID: "b", Mode: "bridge", Address: want})
	require.True(t, errdefs.IsConflict(err), err)
	_, err = n.Connect(context.Background(), Request{ContainerID: "b", Mode: "bridge", Address: netip.MustParseAddr("10.99.0.1")})
	require.True(t, errdefs.IsInvalidArgument(err), err)
	_, err = n.Connect(context.Background(), Request{ContainerID: "../b", Mode: "bridge"})
	require.True(t, errdefs.IsInvalidArgument(err), err)
	_, err = n.Connect(context.Background(), Request{ContainerID: "b", Mode: "blue"})
	require.True(t, errdefs.IsNotFound(err), err)
}

func TestModeNone(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	e, err := n.Connect(context.Background(), Request{ContainerID: "a", Mode: "none", Ports: []Publish{tcp(80, 80)}})
	require.NoError(t, err)
	require.Empty(t, e.Ports)
	serve(t, e.NetnsPath, "127.0.0.1:80")
	requireAnswer(t, e.NetnsPath, "127.0.0.1:80", "127.0.0.1")
	require.NoError(t, inPinned(e.NetnsPath, func() error {
		links, err := net.Interfaces()
		for _, l := range links { // the kernel may add tunnels of its own, which are down
			if l.Flags&net.FlagUp != 0 {
				assert.Equal(t, "lo", l.Name)
			}
		}
		return err
	}))
	require.NoError(t, n.Disconnect(context.Background(), "a"))
	require.NoFileExists(t, e.NetnsPath)
	require.NoError(t, n.Disconnect(context.Background(), "a"))
}

// A host where there can't be a bridge still runs containers without network.
func TestDegraded(t *testing.T) {
	h := newTestHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName("test")
	inTheWay := netlink.NewVeth(attrs)
	inTheWay.PeerName = "other"
	require.NoError(t, h.nl.LinkAdd(inTheWay))
	n, err := New(h.config(t, Config{}))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, n.Teardown(context.Background()))
		require.NoError(t, n.Close())
	})
	_, err = n.Connect(ctx, Request{ContainerID: "a", Mode: "bridge"})
	require.True(t, errdefs.IsUnavailable(err), err)
	require.ErrorContains(t, err, "not a bridge")
	require.Equal(t, n.Degraded(), err)
	_, err = n.Connect(ctx, Request{ContainerID: "a", Mode: "none"})
	require.NoError(t, err)
	t.Run("until it is repaired", func(t *testing.T) {
		require.NoError(t, deleteLink(h.nl, attrs.Name))
		n.repair(ctx)
		connect(t, n, "b")
	})
}

// Somebody flushes all rules or deletes the bridge: the network comes back with everything.
func TestRepair(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	a, b := connect(t, n, "a", tcp(8080, 80)), connect(t, n, "b")
	serve(t, a.NetnsPath, ":80")
	require.True(t, n.intact())
	for name, harm := range map[string]func() error{
		"rules flushed":  n.table.remove,
		"bridge deleted": func() error { return deleteLink(h.nl, n.Info().Bridge) },
		"bridge down": func() error {
			l, err := h.nl.LinkByName(n.Info().Bridge)
			return errors.Join(err, h.nl.LinkSetDown(l))
		},
		"link deleted with the bridge": func() error {
			return errors.Join(deleteLink(h.nl, n.endpoints["a"].Link), deleteLink(h.nl, n.Info().Bridge))
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, harm())
			require.False(t, n.intact())
			n.repair(context.Background())
			require.True(t, n.intact())
			requireAnswer(t, h.path, "127.0.0.1:8080", "10.77.3.1")
			requireAnswer(t, b.NetnsPath, a.Address.Addr().String()+":80", b.Address.Addr().String())
			c := connect(t, n, "c")
			requireAnswer(t, c.NetnsPath, a.Address.Addr().String()+":80", c.Address.Addr().String())
		})
	}
}

// A node that joins a cluster gets another subnet while containers run.
func TestSetSubnet(t *testing.T) {
	h1, h2, _, n1, n2 := twoNodes(t)
	old := connect(t, n1, "old", tcp(8080, 80))
	serve(t, old.NetnsPath, ":80")
	far := connect(t, n2, "far")
	serve(t, far.NetnsPath, ":80")
	// The worst case: the old subnet is now another node's.
	require.NoError(t, n1.SetSubnet(context.Background(), netip.MustParsePrefix("10.77.5.0/24"), netip.MustParsePrefix("10.77.0.0/16")))
	require.NoError(t, n2.SetSubnet(context.Background(), netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("10.77.0.0/16")))
	join2(t, n1, n2)
	fresh, far2 := connect(t, n1, "fresh"), connect(t, n2, "far2")
	require.True(t, n1.Info().Subnet.Contains(fresh.Address.Addr()))
	serve(t, far2.NetnsPath, ":80")
	serve(t, fresh.NetnsPath, ":80")

	requireAnswer(t, h1.path, "127.0.0.1:8080", "10.77.5.1")
	requireAnswer(t, h2.path, "192.168.50.1:8080", "192.168.50.2")
	requireAnswer(t, old.NetnsPath, fresh.Address.Addr().String()+":80", old.Address.Addr().String())
	requireAnswer(t, fresh.NetnsPath, old.Address.Addr().String()+":80", fresh.Address.Addr().String())
	requireAnswer(t, fresh.NetnsPath, far2.Address.Addr().String()+":80", fresh.Address.Addr().String())
	require.Equal(t, "10.77.1.0/24", n2.Info().Subnet.String())
	require.NoError(t, n1.Disconnect(context.Background(), "old"))
	l, err := h1.nl.LinkByName(n1.Info().Bridge)
	require.NoError(t, err)
	addrs, err := h1.nl.AddrList(l, netlink.FAMILY_V4)
	require.NoError(t, err)
	require.Len(t, addrs, 1, "the old gateway goes with the last container that needs it")
	require.Error(t, n1.SetSubnet(context.Background(), netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.77.0.0/16")))
}

// dockerd and many hosts drop forwarded packets in iptables' table.
func TestIptablesDropsForwarded(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	rules := func() (n int) {
		require.NoError(t, inNamespace(h.ns, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}
			rs, err := c.GetRules(table, &nftables.Chain{Table: table, Name: "FORWARD"})
			n = len(rs)
			return err
		}))
		return n
	}
	require.NoError(t, inNamespace(h.ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		drop := nftables.ChainPolicyDrop
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
		chain := c.AddChain(&nftables.Chain{Table: table, Name: "FORWARD", Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
		return c.Flush()
	}))
	n := h.network(t, Config{})
	a := connect(t, n, "a", tcp(8080, 80))
	serve(t, a.NetnsPath, ":80")
	serve(t, outside.path, ":80")
	requireAnswer(t, outside.path, "192.168.50.1:8080", "192.168.50.2")
	requireAnswer(t, a.NetnsPath, "192.168.50.2:80", "192.168.50.1")
	require.NoError(t, n.Setup(context.Background()))
	require.Equal(t, 5, rules(), "again is not twice")
	require.NoError(t, n.Teardown(context.Background()))
	require.Equal(t, 1, rules(), "the owner's rule stays")
}
