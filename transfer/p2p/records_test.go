package p2p

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// record is one of n bytes.
func record(n int) []byte {
	b := make([]byte, recordHead+n)
	b[0] = 23
	binary.BigEndian.PutUint16(b[3:], uint16(n))
	return b
}

func TestRecords(t *testing.T) {
	var r records
	r.pass(record(100))
	require.Zero(t, r.left)
	r.pass(record(16_400)[:10])
	require.Equal(t, 16_395, r.left)
	r.pass(make([]byte, 16_394))
	require.Equal(t, 1, r.left)
	r.pass(append([]byte{0}, record(3000)[:4]...))
	require.Zero(t, r.left, "how long the next one is isn't known yet")
	r.pass(record(3000)[4:5])
	require.Equal(t, 3000, r.left)
	r.pass(append(make([]byte, 3000), record(recordMost+1)...))
	require.True(t, r.other)
	require.Zero(t, r.left, "nothing is waited for in what TLS will refuse")
}

// FuzzRecords: it doesn't matter in what parts bytes come, and nobody can make a reader
// wait for more than a record.
func FuzzRecords(f *testing.F) {
	f.Add(append(record(100), record(16_000)[:50]...), 7)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 3)
	f.Add(append(record(0), record(recordMost)...), 4096)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		var whole, parts records
		whole.pass(b)
		step = max(step, 1)
		for rest := b; len(rest) > 0; rest = rest[min(step, len(rest)):] {
			parts.pass(rest[:min(step, len(rest))])
			if parts.left < 0 || parts.left > recordMost || parts.got >= recordHead {
				t.Fatalf("%+v", parts)
			}
		}
		if whole != parts {
			t.Fatalf("%+v at once, %+v in parts of %d", whole, parts, step)
		}
	})
}

// socketPair is a connection over TCP, its first end as libp2p makes them.
func socketPair(t *testing.T) (manet.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { far.Close() })
	near, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { near.Close() })
	c, err := manet.WrapNetConn(near)
	require.NoError(t, err)
	return c, far
}

// A reader is woken by the rest of a record, by the end of the stream, and by its
// deadline, but not by each packet.
func TestPatience(t *testing.T) {
	near, far := socketPair(t)
	g := &gatherer{Conn: near, patience: newPatience(near)}
	lowest := func() (n int) {
		require.NoError(t, g.patience.raw.Control(func(fd uintptr) {
			var err error
			n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
			require.NoError(t, err)
		}))
		return n
	}
	b := record(6000)
	_, _ = rand.Read(b[recordHead:]) // never fails
	buf := make([]byte, len(b))
	_, err := far.Write(b[:100])
	require.NoError(t, err)
	_, err = io.ReadFull(g, buf[:100])
	require.NoError(t, err)
	require.Equal(t, len(b)-100, lowest())
	_, err = far.Write(b[100:])
	require.NoError(t, err)
	_, err = io.ReadFull(g, buf[100:])
	require.NoError(t, err)
	require.True(t, bytes.Equal(b, buf))
	require.Equal(t, 1, lowest(), "the next message may be short")

	_, err = far.Write(record(recordSize)[:100])
	require.NoError(t, err)
	_, err = io.ReadFull(g, buf[:100])
	require.NoError(t, err)
	require.Equal(t, mostWaiting, lowest())
	g.patience.window = &window{size: leastWindow}
	g.patience.came(nil)
	require.Equal(t, leastWindow/windowShare, lowest(), "the sender can go on")
	require.NoError(t, g.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err = g.Read(buf)
	require.ErrorContains(t, err, "timeout")
	require.NoError(t, g.SetReadDeadline(time.Time{}))
	_, err = far.Write([]byte("rest"))
	require.NoError(t, err)
	require.NoError(t, far.Close())
	rest, err := io.ReadAll(g)
	require.NoError(t, err)
	require.Equal(t, "rest", string(rest))
}

// libp2p finds of a background connection what it sets up.
func TestWindowedIsASocket(t *testing.T) {
	near, _ := socketPair(t)
	c, ok := keepWindow(near, &sending{since: map[*windowed]time.Time{}}).(*windowed)
	require.True(t, ok)
	require.NoError(t, c.SetKeepAlive(true))
	require.NoError(t, c.SetLinger(0))
	require.Same(t, &c.w, newPatience(c).window)
}
