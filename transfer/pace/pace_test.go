package pace

import (
	"context"
	"io"
	"iter"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p/memory"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

type holder string

func (h holder) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) { yield(transfer.Peer{ID: string(h)}, nil) }
}

// fetch has nodes fetch a blob of a size from node s at once, on links of 64 MiB a second,
// with limits by node, and says how long each took.
func fetch(t *testing.T, size int, limits map[string]Limits, ids ...string) map[string]time.Duration {
	t.Helper()
	took := map[string]time.Duration{}
	synctest.Test(t, func(t *testing.T) {
		network := memory.NewNetwork()
		ctx, cancel := context.WithCancel(t.Context())
		var serving, fetching sync.WaitGroup
		defer serving.Wait()
		defer cancel()
		var mu sync.Mutex
		content, d := storetest.Blob(t, size)
		for _, id := range append([]string{"s"}, ids...) {
			host, store := network.Host(id), storetest.Memory()
			host.SetPeer("s", []string{"/memory/s"})
			network.Shape(id, 64<<20, time.Millisecond/2)
			peers := transfer.NewPeers(transfer.PeersConfig{Self: id, Locator: holder("s"), Dial: func(ctx context.Context, peer string) (net.Conn, error) {
				host.SetPeer(peer, []string{"/memory/" + peer})
				c, err := host.Dial(ctx, peer, transfer.Protocol)
				if err != nil {
					return nil, err
				}
				return limits[id].Conn(c), nil
			}})
			l, err := host.Listen(transfer.Protocol)
			require.NoError(t, err)
			serving.Go(func() { peers.Serve(ctx, limits[id].Listener(l), store) })
			if id == "s" {
				storetest.Put(t, store, content)
				continue
			}
			fetching.Go(func() {
				start := time.Now()
				if err := peers.Fetch(ctx, store, d, nil); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				took[id] = time.Since(start)
			})
		}
		fetching.Wait()
	})
	return took
}

func TestFetchUnderALimit(t *testing.T) {
	const size, rate = 8 << 20, 4 << 20
	free := fetch(t, size, nil, "a")["a"]
	require.InDelta(t, 8.0/64, free.Seconds(), 0.03, "what has no limit is as fast as its link")
	for name, limits := range map[string]map[string]Limits{
		"upload":   {"s": {Up: New(rate)}},
		"download": {"a": {Down: New(rate)}},
	} {
		took := fetch(t, size, limits, "a")["a"]
		require.InDelta(t, float64(size)/rate, took.Seconds(), 0.05*float64(size)/rate, name)
	}
	require.Less(t, fetch(t, size, map[string]Limits{"s": {Down: New(rate)}, "a": {Up: New(rate)}}, "a")["a"], free*3/2,
		"the other direction has hardly anything to send")
	// A slow limit doesn't look like a peer that is lost, however many share it.
	for id, took := range fetch(t, 256<<10, map[string]Limits{"s": {Up: New(64 << 10)}}, "a", "b", "c", "d", "e") {
		require.Less(t, took, 10*time.Second, id)
	}
}

// TestPeersShareALimit: one with many streams gets as much as one with one.
func TestPeersShareALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(1 << 20)
		stop := make(chan struct{})
		passed := map[string]*int{"greedy": new(int), "modest": new(int)}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 9 {
			peer := "greedy"
			if i == 8 {
				peer = "modest"
			}
			wg.Go(func() {
				for l.wait(stop, peer, l.segment) {
					mu.Lock()
					*passed[peer] += l.segment
					mu.Unlock()
				}
			})
		}
		time.Sleep(10 * time.Second) // fake time: how long the shares are measured
		start := time.Now()
		require.True(t, l.wait(stop, "greedy", small))
		require.Zero(t, time.Since(start), "what is small doesn't wait")
		close(stop)
		wg.Wait()
		require.InDelta(t, 5<<20, *passed["greedy"], 0.02*(5<<20))
		require.InDelta(t, 5<<20, *passed["modest"], 0.02*(5<<20))
		require.Empty(t, l.lines)
		require.Empty(t, l.queue)
	})
}

func TestClosedAndLateStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		l := Limits{Up: New(minRate)}
		c := l.Conn(near)
		require.Equal(t, near, Limits{}.Conn(near), "without limits it is the stream itself")
		go io.Copy(io.Discard, far)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
		start := time.Now()
		n, err := c.Write(make([]byte, 10*minRate))
		require.NoError(t, err, "waiting for the limit is no peer's fault")
		require.Equal(t, 10*minRate, n)
		require.InDelta(t, 10, time.Since(start).Seconds(), 0.5)
		go func() {
			time.Sleep(time.Second) // fake time: into the middle of a write that takes ten
			c.Close()
		}()
		_, err = c.Write(make([]byte, 10*minRate))
		require.Error(t, err)

		near, far = net.Pipe()
		defer far.Close()
		c = l.Conn(near)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(time.Second)))
		_, err = c.Write([]byte("nobody reads"))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "100mbit": 12_500_000, " 1.5 Gbit ": 187_500_000, "64kbit": 8000, "12.5MB": 12_500_000, "500kb": 500_000, "1gb": 1e9} {
		got, err := Parse(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"100", "mbit", "-1mbit", "nanmb", "infgb", "1kbit", "1 m", "9999999gb"} {
		_, err := Parse(s)
		require.Error(t, err, s)
	}
}
