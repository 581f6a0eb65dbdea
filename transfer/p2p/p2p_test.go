package p2p

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

const proto = "/test/1"

func newHost(t testing.TB, allow func(peer, protocol string) bool) *Host {
	t.Helper()
	return newHostWith(t, Config{Allow: allow})
}

func newHostWith(t testing.TB, cfg Config) *Host {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	if cfg.Key, cfg.Listen = key, []string{"127.0.0.1:0"}; cfg.Allow == nil {
		cfg.Allow = func(string, string) bool { return true }
	}
	h, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	require.Equal(t, PeerID(key.Public().(ed25519.PublicKey)), h.ID())
	return h
}

// pair is two hosts that know each other, the second listening.
func pair(t testing.TB) (a, b *Host, l net.Listener) {
	a, b = newHost(t, nil), newHost(t, nil)
	a.SetPeer(b.ID(), b.Addrs())
	b.SetPeer(a.ID(), a.Addrs())
	l, err := b.Listen(proto)
	require.NoError(t, err)
	return a, b, l
}

// streams is one stream, seen from both its ends.
func streams(t testing.TB, a, b *Host, l net.Listener) (from, to net.Conn) {
	from, err := a.Dial(t.Context(), b.ID(), proto)
	require.NoError(t, err)
	to, err = l.Accept()
	require.NoError(t, err)
	return from, to
}

func TestStreamHalfClose(t *testing.T) {
	a, b, l := pair(t)
	from, to := streams(t, a, b, l)
	require.Equal(t, a.ID(), to.RemoteAddr().String())
	require.Equal(t, "p2p", to.RemoteAddr().Network())
	require.Equal(t, b.ID(), from.RemoteAddr().String())

	_, err := from.Write([]byte("question"))
	require.NoError(t, err)
	require.NoError(t, from.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(to)
	require.NoError(t, err)
	require.Equal(t, "question", string(got))
	_, err = to.Write([]byte("answer"))
	require.NoError(t, err)
	require.NoError(t, to.Close())
	got, err = io.ReadAll(from)
	require.NoError(t, err)
	require.Equal(t, "answer", string(got))
	require.NoError(t, from.Close())
	require.True(t, a.Connected(b.ID()))
}

func TestCloseDeliversThenRefuses(t *testing.T) {
	a, b, l := pair(t)
	from, to := streams(t, a, b, l)
	_, err := to.Write([]byte("last words"))
	require.NoError(t, err)
	require.NoError(t, to.Close())
	got, err := io.ReadAll(from)
	require.NoError(t, err)
	require.Equal(t, "last words", string(got))
	require.NoError(t, from.SetWriteDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 1<<20)
	for err == nil { // more than any window: a peer that is gone must not block us
		_, err = from.Write(buf)
	}
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = to.Read(buf)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestDeadlines(t *testing.T) {
	a, b, l := pair(t)
	from, to := streams(t, a, b, l)
	require.NoError(t, from.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := from.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	require.True(t, errors.As(err, &ne) && ne.Timeout())
	require.NoError(t, from.SetReadDeadline(time.Time{}))
	_, err = to.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(from, make([]byte, 1))
	require.NoError(t, err)

	done := make(chan error)
	go func() { _, err := from.Read(make([]byte, 1)); done <- err }()
	require.NoError(t, from.Close())
	require.ErrorIs(t, <-done, net.ErrClosed)
}

func TestStrangerIsRefused(t *testing.T) {
	a := newHost(t, nil)
	b := newHost(t, func(_, p string) bool { return p == "/join/1" })
	a.SetPeer(b.ID(), b.Addrs())
	for _, p := range []string{proto, "/join/1"} {
		_, err := b.Listen(p)
		require.NoError(t, err)
	}
	_, err := a.Dial(t.Context(), b.ID(), proto)
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	require.ErrorContains(t, err, b.ID())
	require.ErrorContains(t, err, proto)
	c, err := a.Dial(t.Context(), b.ID(), "/join/1")
	require.NoError(t, err)
	c.Close()

	_, err = a.Dial(t.Context(), b.ID(), "/unserved")
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
}

func TestStrangersStreamsAreBounded(t *testing.T) {
	a, b := newHost(t, nil), newHost(t, nil)
	a.SetPeer(b.ID(), b.Addrs())
	_, err := b.Listen(proto)
	require.NoError(t, err)
	for range maxStrangerStreams {
		_, err := a.Dial(t.Context(), b.ID(), proto)
		require.NoError(t, err)
	}
	_, err = a.Dial(t.Context(), b.ID(), proto)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	b.SetPeer(a.ID(), nil)
	_, err = a.Dial(t.Context(), b.ID(), proto)
	require.NoError(t, err, "a known peer may open more")
}

// TestIdleStrangerIsCutOff: a stranger's connection lasts only while it has a stream
// open; that of a known peer stays.
func TestIdleStrangerIsCutOff(t *testing.T) {
	a, b := newHost(t, nil), newHost(t, nil)
	a.SetPeer(b.ID(), b.Addrs())
	l, err := b.Listen(proto)
	require.NoError(t, err)
	gone := make(chan string, 1)
	a.OnDisconnect(func(id string) { gone <- id })
	from, to := streams(t, a, b, l)
	b.mu.Lock() // short only now: a busy machine may take longer to open a stream
	b.idle = 20 * time.Millisecond
	for _, timer := range b.watched {
		timer.Reset(b.idle)
	}
	b.mu.Unlock()
	tick := time.NewTicker(b.idle)
	defer tick.Stop()
	for range 5 {
		<-tick.C
		_, err := from.Write([]byte("x"))
		require.NoError(t, err)
	}
	require.NoError(t, to.Close())
	require.NoError(t, from.Close())
	require.Equal(t, b.ID(), <-gone)
	require.Eventually(t, func() bool { return len(b.store.PeersWithKeys()) == 1 }, time.Minute, time.Millisecond, "nothing is kept of it")

	b.SetPeer(a.ID(), nil)
	from, _ = streams(t, a, b, l)
	require.NoError(t, from.Close())
	for range 5 {
		<-tick.C
		require.True(t, a.Connected(b.ID()))
	}
}

func TestUnreachable(t *testing.T) {
	a, b, _ := pair(t)
	gone := make(chan string, 1)
	a.OnDisconnect(func(id string) { gone <- id })
	c, err := a.Dial(t.Context(), b.ID(), proto)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	require.Equal(t, b.ID(), <-gone)
	_, err = io.ReadAll(c)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	for range 3 { // also without a back-off that hides the cause
		_, err = a.Dial(t.Context(), b.ID(), proto)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, b.ID())
		require.ErrorContains(t, err, proto)
		require.ErrorContains(t, err, "connection refused")
	}
	_, err = a.Dial(t.Context(), "rubbish", proto)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.Dial(ctx, b.ID(), proto)
	require.ErrorIs(t, err, context.Canceled)
}

func TestForgetPeer(t *testing.T) {
	a, b, l := pair(t)
	from, _ := streams(t, a, b, l)
	b.ForgetPeer(a.ID())
	_, err := io.ReadAll(from)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	a.ForgetPeer(b.ID())
	_, err = a.Dial(t.Context(), b.ID(), proto)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestWrongIdentity(t *testing.T) {
	a, b, _ := pair(t)
	other := newHost(t, nil)
	a.SetPeer(other.ID(), b.Addrs())
	_, err := a.Dial(t.Context(), other.ID(), proto)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestListener(t *testing.T) {
	_, b, l := pair(t)
	_, err := b.Listen(proto)
	require.ErrorIs(t, err, errdefs.ErrConflict)
	require.NoError(t, l.Close())
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = b.Listen(proto)
	require.NoError(t, err)
}

func TestPortInUse(t *testing.T) {
	a := newHost(t, nil)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	addr := strings.Split(a.Addrs()[0], "/")
	_, err := New(Config{Key: key, Listen: []string{net.JoinHostPort(addr[2], addr[4])}, Allow: a.allow})
	require.ErrorContains(t, err, "address already in use")
}

func TestCloseEndsEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	a, b, l := pair(t)
	from, to := streams(t, a, b, l)
	from.Close()
	_ = to
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
		}
	}
}

// A connection of one stream carries it both ways, ends with it, and is no connection that
// others use.
func TestDialBeside(t *testing.T) {
	a, b, l := pair(t)
	lost := make(chan string, 1)
	a.OnDisconnect(func(id string) { lost <- id })
	back, err := a.Listen(proto)
	require.NoError(t, err)
	first, _ := streams(t, a, b, l)
	beside := func() (near, far net.Conn) {
		near, err := a.DialBeside(t.Context(), b.ID(), proto)
		require.NoError(t, err)
		far, err = l.Accept()
		require.NoError(t, err)
		return near, far
	}
	near, far := beside()
	require.Equal(t, a.ID(), far.RemoteAddr().String(), "it is proven, too")
	require.Equal(t, b.ID(), near.RemoteAddr().String())
	require.Len(t, b.swarm.ConnsToPeer(a.id), 1)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		sent := bytes.Repeat([]byte("hello"), 100_000)
		go way[0].Write(sent)
		got := make([]byte, len(sent))
		_, err = io.ReadFull(way[1], got)
		require.NoError(t, err)
		require.Equal(t, sent, got)
	}
	require.NoError(t, near.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = near.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	for range 2 {
		_, err = b.Dial(t.Context(), a.ID(), proto)
		require.NoError(t, err)
		s, err := back.Accept()
		require.NoError(t, err)
		require.NoError(t, s.Close())
	}

	require.NoError(t, near.Close())
	_, err = near.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = far.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, far.Close())
	for _, h := range []*Host{a, b} {
		require.Zero(t, h.openBares(), "nothing is kept of it")
	}
	require.True(t, a.Connected(b.ID()))
	_, err = first.Write([]byte("hello"))
	require.NoError(t, err, "the first connection stays")
	require.Empty(t, lost)

	near, far = beside()
	b.Disconnect(a.ID())
	require.Equal(t, b.ID(), <-lost)
	for _, s := range []net.Conn{near, far} {
		_, err = s.Read(make([]byte, 1))
		require.Error(t, err)
	}
	near, _ = beside()
	require.NoError(t, b.Close())
	_, err = near.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, a.Close())
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.Error(t, err)
}

func (h *Host) openBares() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.bares.open)
}

// What the side that accepted says last arrives.
func TestBesideDeliversThenEnds(t *testing.T) {
	a, b, l := pair(t)
	for range 50 {
		near, err := a.DialBeside(t.Context(), b.ID(), proto)
		require.NoError(t, err)
		far, err := l.Accept()
		require.NoError(t, err)
		_, err = far.Write([]byte("goodbye"))
		require.NoError(t, err)
		require.NoError(t, far.Close())
		got, err := io.ReadAll(near)
		require.NoError(t, err)
		require.Equal(t, "goodbye", string(got))
		require.NoError(t, near.Close())
	}
}

// Who isn't allowed gets nothing over a connection of its own either, nor do strangers,
// nor anybody a ninth one.
func TestDialBesideIsGated(t *testing.T) {
	a, b := newHost(t, nil), newHost(t, func(string, string) bool { return false })
	a.SetPeer(b.ID(), b.Addrs())
	_, err := b.Listen(proto)
	require.NoError(t, err)
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.True(t, errdefs.IsUnavailable(err), "a stranger: %v", err)
	b.SetPeer(a.ID(), nil)
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	b.ForgetPeer(a.ID())
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.True(t, errdefs.IsUnavailable(err), "a stranger again: %v", err)

	a, b, l := pair(t)
	var near, far net.Conn
	for range maxBare {
		near, err = a.DialBeside(t.Context(), b.ID(), proto)
		require.NoError(t, err)
		far, err = l.Accept()
		require.NoError(t, err)
	}
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.NoError(t, near.Close())
	_, err = far.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, far.Close())
	_, err = a.DialBeside(t.Context(), b.ID(), proto)
	require.NoError(t, err)
}
