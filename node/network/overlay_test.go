package network

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// twoNodes are two hosts on a LAN, joined by the overlay, with a client beside.
func twoNodes(t *testing.T) (h1, h2, client *testHost, n1, n2 *Network) {
	h1, h2, client = newTestHost(t), newTestHost(t), newTestHost(t)
	cable(t, h1, h2, "lan", "192.168.50.1/24", "192.168.50.2/24")
	cable(t, client, h2, "lan2", "192.168.60.9/24", "192.168.60.2/24")
	cluster := netip.MustParsePrefix("10.77.0.0/16")
	n1 = h1.network(t, Config{Scope: "one", Subnet: netip.MustParsePrefix("10.77.1.0/24"), ClusterSubnet: cluster})
	n2 = h2.network(t, Config{Scope: "two", Subnet: netip.MustParsePrefix("10.77.2.0/24"), ClusterSubnet: cluster})
	return h1, h2, client, n1, n2
}

func join2(t *testing.T, n1, n2 *Network) {
	t.Helper()
	require.NoError(t, n1.SetRoutes(context.Background(), []Route{{NodeID: "2", Host: netip.MustParseAddr("192.168.50.2"), Subnet: n2.Info().Subnet}}))
	require.NoError(t, n2.SetRoutes(context.Background(), []Route{{NodeID: "1", Host: netip.MustParseAddr("192.168.50.1"), Subnet: n1.Info().Subnet}}))
}

func TestOverlay(t *testing.T) {
	h1, h2, client, n1, n2 := twoNodes(t)
	a := connect(t, n1, "a", tcp(8080, 80))
	b := connect(t, n2, "b")
	serve(t, a.NetnsPath, ":80")
	serve(t, b.NetnsPath, ":80")
	_, err := ask(b.NetnsPath, a.Address.Addr().String()+":80")
	require.Error(t, err, "there is no overlay yet")

	join2(t, n1, n2)
	require.Equal(t, 1450, n1.Info().MTU)
	requireAnswer(t, b.NetnsPath, a.Address.Addr().String()+":80", b.Address.Addr().String())
	requireAnswer(t, a.NetnsPath, b.Address.Addr().String()+":80", a.Address.Addr().String())
	requireAnswer(t, h2.path, a.Address.Addr().String()+":80", "10.77.2.0")
	_ = h1

	require.NoError(t, n2.SetForwards(context.Background(), []Forward{{Publish: tcp(8080, 80), Target: netip.AddrPortFrom(a.Address.Addr(), 80)}}))
	t.Run("forward answers from outside", func(t *testing.T) {
		requireAnswer(t, client.path, "192.168.60.2:8080", "10.77.2.0")
	})
	t.Run("forward answers the host", func(t *testing.T) {
		requireAnswer(t, h2.path, "192.168.60.2:8080", "10.77.2.0")
		requireAnswer(t, h2.path, "127.0.0.1:8080", "10.77.2.0")
	})
	t.Run("forward answers a container, with its address", func(t *testing.T) {
		requireAnswer(t, b.NetnsPath, "192.168.60.2:8080", b.Address.Addr().String())
	})
	t.Run("only peers may send", func(t *testing.T) {
		require.NoError(t, n1.SetRoutes(context.Background(), []Route{{NodeID: "2", Host: netip.MustParseAddr("192.168.50.77"), Subnet: n2.Info().Subnet}}))
		_, err := ask(b.NetnsPath, a.Address.Addr().String()+":80")
		require.Error(t, err)
		join2(t, n1, n2)
		requireAnswer(t, b.NetnsPath, a.Address.Addr().String()+":80", b.Address.Addr().String())
	})
}
