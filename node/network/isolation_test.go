package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func addRoute(t *testing.T, h *testHost, to, via string) {
	t.Helper()
	require.NoError(t, h.nl.RouteAdd(&netlink.Route{Dst: toIPNet(netip.MustParsePrefix(to)), Gw: net.ParseIP(via)}))
}

// Somebody outside who routes the subnet to the host gets no further than published ports.
func TestNoWayInButPublishedPorts(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	addRoute(t, outside, "10.77.3.0/24", "192.168.50.1")
	n := h.network(t, Config{})
	loopback := netip.MustParseAddr("127.0.0.1")
	a := connect(t, n, "a", tcp(8080, 80), Publish{HostIP: loopback, HostPort: 9090, ContainerPort: 80, Proto: "tcp"})
	serve(t, a.NetnsPath, ":80")
	requireAnswer(t, outside.path, "192.168.50.1:8080", "192.168.50.2")
	_, err := ask(outside.path, a.Address.Addr().String()+":80")
	require.ErrorContains(t, err, "timeout")

	t.Run("nor to ports of the loopback", func(t *testing.T) {
		requireAnswer(t, h.path, "127.0.0.1:9090", "10.77.3.1")
		_, err := ask(outside.path, "192.168.50.1:9090")
		require.ErrorContains(t, err, "refused")
		sendLoopbackOut(t, outside.path, "lan", netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("192.168.50.2"))
		_, err = ask(outside.path, "127.0.0.1:9090")
		require.ErrorContains(t, err, "timeout")
	})
}

// sendLoopbackOut makes a namespace send packets for 127.0.0.0/8 to a gateway, as only its
// administrator can.
func sendLoopbackOut(t *testing.T, netns, link string, gw, src netip.Addr) {
	t.Helper()
	require.NoError(t, inPinned(netns, func() error {
		nl, err := openHandle(netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		defer nl.Close()
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		l, err := nl.LinkByName(link)
		if err != nil {
			return err
		}
		loopback := toIPNet(netip.MustParsePrefix("127.0.0.0/8"))
		local := toIPNet(netip.MustParsePrefix("127.0.0.1/8"))
		return errors.Join(
			sysctl("ipv4/conf/"+link+"/route_localnet", "1"),
			nl.AddrDel(lo, &netlink.Addr{IPNet: local}), // takes the kernel's own routes along
			nl.RouteAdd(&netlink.Route{Dst: loopback, LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Src: src.AsSlice()}))
	}))
}

func TestHostLoopbackIsClosedToContainers(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	a := connect(t, n, "a")
	serve(t, h.path, "127.0.0.1:7070")
	sendLoopbackOut(t, a.NetnsPath, containerLink, a.Gateway, a.Address.Addr())
	_, err := ask(a.NetnsPath, "127.0.0.1:7070")
	require.ErrorContains(t, err, "timeout")
}

// A slice that no node has is unreachable at once, and nothing of it leaves the host.
func TestUnknownSliceIsUnreachable(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	addRoute(t, h, "0.0.0.0/0", "192.168.50.2")
	n := h.network(t, Config{ClusterSubnet: netip.MustParsePrefix("10.77.0.0/16")})
	a := connect(t, n, "a")
	_, err := ask(a.NetnsPath, "10.77.200.1:80")
	require.ErrorContains(t, err, "no route to host")
}

// Who still knows the address of a container that is gone learns soon that nobody is there:
// the kernel's own 3 s would be more than a dial here may take.
func TestGoneContainerIsUnreachableSoon(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	near, gone := connect(t, n, "near"), connect(t, n, "gone")
	require.NoError(t, n.Disconnect(t.Context(), "gone"))
	addr := netip.AddrPortFrom(gone.Address.Addr(), 80).String()
	dial := func() error {
		c, err := net.DialTimeout("tcp4", addr, 2900*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	}
	require.ErrorContains(t, inPinned(near.NetnsPath, dial), "no route to host", "from a neighbour")
	require.ErrorContains(t, inPinned(h.path, dial), "no route to host", "from the host")
}

// A UDP client that never changes its port gets to the container of today.
func TestUDPFollowsTheContainer(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	n := h.network(t, Config{})
	var client net.Conn
	require.NoError(t, inPinned(outside.path, func() (err error) {
		client, err = net.Dial("udp4", "192.168.50.1:5353")
		return err
	}))
	defer client.Close()
	_, err := client.Write([]byte("nobody there")) // makes a flow that leads nowhere
	require.NoError(t, err)
	for _, id := range []string{"first", "second"} {
		e := connect(t, n, id, Publish{HostPort: 5353, ContainerPort: 53, Proto: "udp"})
		serveUDP(t, e.NetnsPath, id)
		got := make([]byte, 64)
		require.Eventually(t, func() bool {
			client.SetDeadline(time.Now().Add(200 * time.Millisecond))
			client.Write([]byte("?")) // refused while the answer to an earlier one is on its way
			k, err := client.Read(got)
			return err == nil && string(got[:k]) == id
		}, time.Minute, time.Millisecond)
		require.NoError(t, n.Disconnect(context.Background(), id))
	}
}

func serveUDP(t *testing.T, netns, answer string) {
	t.Helper()
	var c net.PacketConn
	require.NoError(t, inPinned(netns, func() (err error) {
		c, err = net.ListenPacket("udp4", ":53")
		return err
	}))
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo([]byte(answer), from)
		}
	}()
}

func TestProbe(t *testing.T) {
	needRoot(t)
	for _, f := range Probe() {
		require.True(t, f.OK, f)
	}
}

func TestLocalPublishWinsOverForward(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	elsewhere := connect(t, n, "elsewhere") // stands for a container of another node
	serve(t, elsewhere.NetnsPath, ":80")
	ctx := context.Background()
	serve(t, h.path, "127.0.0.1:7070")
	to := netip.AddrPortFrom(elsewhere.Address.Addr(), 80)
	require.NoError(t, n.SetForwards(ctx, []Forward{{Publish: tcp(8080, 80), Target: to}, {Publish: tcp(7070, 80), Target: to}}))
	requireAnswer(t, h.path, "127.0.0.1:8080", "10.77.3.1")
	requireAnswer(t, h.path, "127.0.0.1:7070", "127.0.0.1") // the host's own server is left alone

	a := connect(t, n, "a", tcp(8080, 81))
	_, err := ask(h.path, "127.0.0.1:8080")
	require.ErrorContains(t, err, "refused", "the container here doesn't listen")
	serve(t, a.NetnsPath, ":81")
	requireAnswer(t, h.path, "127.0.0.1:8080", "10.77.3.1")
	require.NoError(t, n.Disconnect(ctx, "a"))
	requireAnswer(t, h.path, "127.0.0.1:8080", "10.77.3.1")
	require.NoError(t, n.SetForwards(ctx, nil))
	_, err = ask(h.path, "127.0.0.1:8080")
	require.ErrorContains(t, err, "refused")
	connect(t, n, "b", tcp(8080, 80))
}

// A process may outlive its container and keep the namespace: nothing is heard of it.
func TestDisconnectSilencesWhoStays(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{Pool: -1})
	a := connect(t, n, "a")
	l := serve(t, a.NetnsPath, ":80")
	held, err := os.Open(a.NetnsPath)
	require.NoError(t, err)
	defer held.Close()
	requireAnswer(t, h.path, a.Address.Addr().String()+":80", "10.77.3.1")
	require.NoError(t, n.Disconnect(context.Background(), "a"))
	_, err = ask(h.path, a.Address.Addr().String()+":80")
	require.Error(t, err)
	require.NoError(t, errors.Join(l.Close(), held.Close()))
	requireLinks(t, h, n, 0)
}
