package network

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

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
	_, h2, client, n1, n2 := twoNodes(t)
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
}

// Only what comes from a peer's address gets into the overlay.
func TestOverlayTakesPacketsOfPeersOnly(t *testing.T) {
	h1, h2, stranger, n1, n2 := twoNodes(t)
	cable(t, stranger, h1, "lan3", "192.168.70.9/24", "192.168.70.1/24")
	a := connect(t, n1, "a")
	join2(t, n1, n2)
	var c net.PacketConn
	require.NoError(t, inPinned(a.NetnsPath, func() (err error) {
		c, err = net.ListenPacket("udp4", ":9")
		return err
	}))
	defer c.Close()
	send := func(from *testHost, to, text string) {
		t.Helper()
		require.NoError(t, inNamespace(from.ns, func() error {
			s, err := net.Dial("udp4", to+":4789")
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Write(encapsulated(n1.cfg.VNI, n1.Info().Subnet, netip.MustParseAddr("10.77.2.5"), a.Address.Addr(), text))
			return err
		}))
	}
	send(stranger, "192.168.70.1", "from a stranger")
	send(h2, "192.168.50.1", "from a peer")
	b := make([]byte, 64)
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	k, _, err := c.ReadFrom(b)
	require.NoError(t, err)
	require.Equal(t, "from a peer", string(b[:k]), "the first one to arrive")
}

// encapsulated is a VXLAN packet with a UDP packet to port 9 inside.
func encapsulated(vni uint32, to netip.Prefix, src, dst netip.Addr, text string) []byte {
	b := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(append(b, vtepMACOf(to)...), 0x0e, 0, 0, 0, 0, 1, 8, 0)
	ip := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(28+len(text)))
	ip = append(ip, 0, 1, 0, 0, 64, 17, 0, 0)
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum&0xffff+sum>>16))
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, 1000)
	b = binary.BigEndian.AppendUint16(b, 9)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	return append(append(b, 0, 0), text...)
}
