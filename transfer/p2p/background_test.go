package p2p

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBackground(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	if err := background(c); err != nil {
		require.ErrorIs(t, err, unix.ENOENT, "only the congestion control may be unknown to a kernel")
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
		require.NoError(t, err)
		require.Equal(t, unsent, n)
		n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY)
		require.NoError(t, err)
		require.Equal(t, bulkPriority, n)
	}))
	near, _ := net.Pipe()
	require.Error(t, background(near))
}

// BenchmarkBackground is BenchmarkThroughput with hosts in the background.
func BenchmarkBackground(b *testing.B) {
	x, y := newHostWith(b, Config{Background: true}), newHostWith(b, Config{Background: true})
	x.SetPeer(y.ID(), y.Addrs())
	l, err := y.Listen(proto)
	require.NoError(b, err)
	from, to := streams(b, x, y, l)
	pump(b, from, to)
}
