package memory

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

const proto = "/test/1"

// pair is two hosts that know each other and a stream between them.
func pair(t *testing.T) (n *Network, from, to net.Conn) {
	n = NewNetwork()
	a, b := n.Host("a"), n.Host("b")
	a.SetPeer("b", b.Addrs())
	b.SetPeer("a", a.Addrs())
	l, err := b.Listen(proto)
	require.NoError(t, err)
	from, err = a.Dial(t.Context(), "b", proto)
	require.NoError(t, err)
	to, err = l.Accept()
	require.NoError(t, err)
	require.Equal(t, "a", to.RemoteAddr().String())
	return n, from, to
}

func TestHalfCloseAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, from, to := pair(t)
		from.Write([]byte("question"))
		require.NoError(t, from.(interface{ CloseWrite() error }).CloseWrite())
		got, err := io.ReadAll(to)
		require.NoError(t, err)
		require.Equal(t, "question", string(got))
		to.Write([]byte("answer"))
		require.NoError(t, to.Close())
		got, err = io.ReadAll(from)
		require.NoError(t, err)
		require.Equal(t, "answer", string(got))
		_, err = to.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestWriterOfAClosedPeerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, from, to := pair(t)
		failed := make(chan error)
		go func() {
			_, err := from.Write(make([]byte, 2*window))
			failed <- err
		}()
		synctest.Wait()
		to.Close()
		require.ErrorIs(t, <-failed, errdefs.ErrUnavailable)
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, from, to := pair(t)
		start := time.Now()
		from.SetReadDeadline(start.Add(time.Minute))
		_, err := from.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(start))
		from.SetReadDeadline(time.Time{})
		to.Write([]byte("x"))
		_, err = from.Read(make([]byte, 1))
		require.NoError(t, err)
		to.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := to.Write(make([]byte, 2*window))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, window, n)
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, from, to := pair(t)
		gone := make(chan string, 2)
		n.Host("a").OnDisconnect(func(id string) { gone <- id })
		n.Host("b").OnDisconnect(func(id string) { gone <- id })

		n.Partition([]string{"a"}, []string{"b"})
		from.Write([]byte("late"))
		time.Sleep(lostAfter / 2) // fake time: a cut too short to end a connection
		n.Heal()
		buf := make([]byte, 9)
		k, err := to.Read(buf)
		require.NoError(t, err, "a short cut only delays")
		require.Equal(t, "late", string(buf[:k]))

		n.Isolate("b")
		start := time.Now()
		_, err = to.Read(buf)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.Equal(t, lostAfter, time.Since(start))
		require.ElementsMatch(t, []string{"a", "b"}, []string{<-gone, <-gone})
		require.False(t, n.Host("a").Connected("b"))
		_, err = n.Host("a").Dial(t.Context(), "b", proto)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		n.Heal()
		_, err = n.Host("a").Dial(t.Context(), "b", proto)
		require.NoError(t, err)
	})
}

func TestHostEndsAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, from, _ := pair(t)
		gone := make(chan string, 1)
		n.Host("a").OnDisconnect(func(id string) { gone <- id })
		n.Host("b").Close()
		require.Equal(t, "b", <-gone)
		_, err := from.Read(make([]byte, 1))
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		_, err = n.Host("a").Dial(t.Context(), "b", proto)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		n.Host("b") // anew
		_, err = n.Host("a").Dial(t.Context(), "b", proto)
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied, "it serves nothing yet")
	})
}

func TestDialNeedsAddressAndPermission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		a, b := n.Host("a"), n.Host("b")
		l, err := b.Listen(proto)
		require.NoError(t, err)
		_, err = a.Dial(t.Context(), "b", proto)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		a.SetPeer("b", b.Addrs())
		b.SetAllow(func(peer, p string) bool { return peer != "a" || p != proto })
		_, err = a.Dial(t.Context(), "b", proto)
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
		require.NoError(t, l.Close())
		_, err = l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, from, to := pair(t)
		n.Shape("a", 1<<20, 100*time.Millisecond)
		start := time.Now()
		go func() { from.Write(bytes.Repeat([]byte("x"), 8<<20)); from.Close() }()
		got, err := io.ReadAll(to)
		require.NoError(t, err)
		require.Len(t, got, 8<<20)
		require.InDelta(t, 8.1, time.Since(start).Seconds(), 1)
	})
}

// TestStreamsShareARate: what is little isn't kept waiting by what is much.
func TestStreamsShareARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, from, to := pair(t)
		n.Shape("a", 1<<20, 0)
		l, err := n.Host("b").Listen("/other")
		require.NoError(t, err)
		other, err := n.Host("a").Dial(t.Context(), "b", "/other")
		require.NoError(t, err)
		end, err := l.Accept()
		require.NoError(t, err)
		go from.Write(make([]byte, window))
		synctest.Wait()
		start := time.Now()
		other.Write([]byte("x"))
		_, err = end.Read(make([]byte, 1))
		require.NoError(t, err)
		require.Less(t, time.Since(start), 50*time.Millisecond, "two segments are 31 ms")
		_, err = io.ReadFull(to, make([]byte, window))
		require.NoError(t, err)
		require.InDelta(t, 0.25, time.Since(start).Seconds(), 0.05)
	})
}
