package transfer_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p/memory"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// node is a host, its store and its exchange.
type node struct {
	host   *memory.Host
	store  *storetest.Store
	chunks string // where it remembers how blobs are cut
	peers  *transfer.Peers
	allow  func(ctx context.Context, peer string, d digest.Digest) error // nil: everybody

	mu    sync.Mutex
	from  map[string]int64  // of the last fetch
	heard map[string]int64  // bytes by peer, told while they came
	liars map[string]string // peer -> "proven" or "unproven"
	stop  context.CancelFunc
}

// cluster is nodes that can all reach each other.
type cluster struct {
	t     *testing.T
	net   *memory.Network
	nodes map[string]*node
	seeds []string // what the locator finds
	wg    sync.WaitGroup
}

func newCluster(t *testing.T, ids ...string) *cluster {
	c := &cluster{t: t, net: memory.NewNetwork(), nodes: map[string]*node{}}
	for _, id := range ids {
		n := &node{host: c.net.Host(id), store: storetest.Memory(), chunks: filepath.Join(t.TempDir(), id), liars: map[string]string{}, heard: map[string]int64{}}
		n.peers = transfer.NewPeers(transfer.PeersConfig{
			Self: id, Chunks: n.chunks,
			Dial: func(ctx context.Context, peer string) (net.Conn, error) {
				return n.host.Dial(ctx, peer, transfer.Protocol)
			},
			Locator: c,
			Members: func() []string { return ids },
			Allow: func(ctx context.Context, peer string, d digest.Digest) error {
				if n.allow == nil {
					return nil
				}
				return n.allow(ctx, peer, d)
			},
			OnFetched: func(_ digest.Digest, _ int64, by map[string]int64, _ time.Duration) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.from = by
			},
			OnBytes: func(_ digest.Digest, peer string, bytes int64) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.heard[peer] += bytes
			},
			OnWrongBytes: func(peer string, _ digest.Digest, proven bool) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.liars[peer] = map[bool]string{true: "proven", false: "unproven"}[proven]
			},
		})
		for _, other := range ids {
			n.host.SetPeer(other, []string{"/memory/" + other})
		}
		c.nodes[id] = n
		c.serve(n)
	}
	return c
}

func (c *cluster) serve(n *node) {
	l, err := n.host.Listen(transfer.Protocol)
	require.NoError(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	c.wg.Go(func() { n.peers.Serve(ctx, l, n.store) })
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		n.stop()
	}
	c.wg.Wait()
	for _, n := range c.nodes {
		n.host.Close()
	}
}

func (c *cluster) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) {
		for _, id := range c.seeds {
			if !yield(transfer.Peer{ID: id}, nil) {
				return
			}
		}
	}
}

func (n *node) fetch(d ocispec.Descriptor) error {
	return n.peers.Fetch(context.Background(), n.store, d, nil)
}

// bubble runs a test on a cluster in a bubble.
func bubble(t *testing.T, ids []string, f func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, ids...)
		defer c.close()
		f(t, c)
	})
}

func TestFetch(t *testing.T) {
	for _, size := range []int{0, 1, 100_000, 512 << 10, 512<<10 + 1, 5_000_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
				b, d := storetest.Blob(t, size)
				storetest.Put(t, c.nodes["a"].store, b)
				c.seeds = []string{"b", "a"}
				var reports []int64
				err := c.nodes["b"].peers.Fetch(t.Context(), c.nodes["b"].store, d, func(n int64) { reports = append(reports, n) })
				require.NoError(t, err)
				require.Equal(t, b, storetest.Get(t, c.nodes["b"].store, d.Digest))
				require.True(t, slices.IsSorted(reports))
				if size > 0 {
					require.Equal(t, int64(size), reports[len(reports)-1])
					require.Equal(t, map[string]int64{"a": int64(size)}, c.nodes["b"].from)
				}
				require.NoError(t, c.nodes["b"].fetch(d), "held already")
			})
		})
	}
}

func TestNobodyHasIt(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
		_, d := storetest.Blob(t, 1000)
		require.ErrorIs(t, c.nodes["a"].fetch(d), errdefs.ErrNotFound)
		c.seeds = []string{"b", "c"}
		c.net.Host("c").Close()
		start := time.Now()
		require.ErrorIs(t, c.nodes["a"].fetch(d), errdefs.ErrNotFound)
		require.Less(t, time.Since(start), time.Second)
		d.Size = -1
		require.ErrorIs(t, c.nodes["a"].fetch(d), errdefs.ErrInvalidArgument)
	})
}

// TestSwarm: eight nodes fetch from one that has the blob, on links of one rate. One
// after the other from the one would take seven times size/rate.
func TestSwarm(t *testing.T) {
	for _, size := range []int{8 << 20, 32 << 20} {
		t.Run(fmt.Sprintf("%dMiB", size>>20), func(t *testing.T) {
			ids := []string{"s", "1", "2", "3", "4", "5", "6", "7"}
			bubble(t, ids, func(t *testing.T, c *cluster) {
				const rate = 12 << 20
				for _, id := range ids {
					c.net.Shape(id, rate, 500*time.Microsecond)
				}
				b, d := storetest.Blob(t, size)
				storetest.Put(t, c.nodes["s"].store, b)
				c.seeds = []string{"s"}
				start := time.Now()
				var wg sync.WaitGroup
				for _, id := range ids[1:] {
					wg.Go(func() {
						if err := c.nodes[id].fetch(d); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				took := time.Since(start)
				ideal := time.Duration(float64(size) / rate * float64(time.Second))
				var seeded int64
				for _, id := range ids[1:] {
					require.Equal(t, d.Digest, digest.FromBytes(storetest.Get(t, c.nodes[id].store, d.Digest)))
					seeded += c.nodes[id].from["s"]
				}
				t.Logf("%v, %.2f x size/rate; the seed gave %.2f copies", took, float64(took)/float64(ideal), float64(seeded)/float64(size))
				require.Less(t, float64(took)/float64(ideal), 1.5)
			})
		})
	}
}

func TestPeerDiesMidway(t *testing.T) {
	for name, kill := range map[string]func(c *cluster, id string){
		"process": func(c *cluster, id string) { c.net.Host(id).Close() },
		"cable":   func(c *cluster, id string) { c.net.Isolate(id) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
				for id := range c.nodes {
					c.net.Shape(id, 8<<20, time.Millisecond)
				}
				b, d := storetest.Blob(t, 16<<20)
				storetest.Put(t, c.nodes["a"].store, b)
				storetest.Put(t, c.nodes["b"].store, b)
				c.seeds = []string{"a", "b"}
				time.AfterFunc(500*time.Millisecond, func() { kill(c, "a") })
				start := time.Now()
				require.NoError(t, c.nodes["c"].fetch(d))
				require.Less(t, time.Since(start), 2*time.Second+time.Second, "size/rate, and under a second to replace it")
				require.Equal(t, []string{"a", "b"}, slices.Sorted(maps.Keys(c.nodes["c"].from)))
				require.Equal(t, c.nodes["c"].from, c.nodes["c"].heard)
			})
		})
	}
}

func TestLostSourceIsResumed(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		for id := range c.nodes {
			c.net.Shape(id, 8<<20, time.Millisecond)
		}
		b, d := storetest.Blob(t, 16<<20)
		storetest.Put(t, c.nodes["a"].store, b)
		c.seeds = []string{"a"}
		time.AfterFunc(time.Second, func() { c.nodes["a"].host.Close() })
		require.ErrorIs(t, c.nodes["b"].fetch(d), errdefs.ErrUnavailable)

		n := c.nodes["a"]
		n.stop()
		n.host = c.net.Host("a")
		c.serve(n)
		require.NoError(t, c.nodes["b"].fetch(d))
		require.Less(t, c.nodes["b"].from["a"], int64(10<<20), "what came the first time isn't asked for again")
	})
}

// TestSwarmOutlivesItsSource: the seed dies when everything has left it at least once.
func TestSwarmOutlivesItsSource(t *testing.T) {
	ids := []string{"s", "1", "2", "3"}
	bubble(t, ids, func(t *testing.T, c *cluster) {
		for _, id := range ids {
			c.net.Shape(id, 8<<20, time.Millisecond)
		}
		c.net.Shape("1", 2<<20, time.Millisecond) // a straggler, which the others can help
		b, d := storetest.Blob(t, 16<<20)
		storetest.Put(t, c.nodes["s"].store, b)
		c.seeds = []string{"s"}
		var wg sync.WaitGroup
		for _, id := range ids[1:] {
			wg.Go(func() {
				if err := c.nodes[id].fetch(d); err != nil {
					t.Error(id, err)
				}
				if id == "2" {
					c.nodes["s"].host.Close()
				}
			})
		}
		wg.Wait()
		require.Equal(t, b, storetest.Get(t, c.nodes["1"].store, d.Digest))
	})
}

// liar is a store that corrupts what it holds.
type liar struct{ transfer.Store }

type lie struct{ transfer.Blob }

func (l liar) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := l.Store.Open(ctx, d)
	return lie{b}, err
}

func (l lie) ReadAt(p []byte, at int64) (int, error) {
	n, err := l.Blob.ReadAt(p, at)
	if n > 0 {
		p[0] ^= 0xff
	}
	return n, err
}

func TestWrongBytes(t *testing.T) {
	bubble(t, []string{"good", "liar", "c"}, func(t *testing.T, c *cluster) {
		for id := range c.nodes {
			c.net.Shape(id, 8<<20, time.Millisecond)
		}
		b, d := storetest.Blob(t, 8<<20)
		storetest.Put(t, c.nodes["good"].store, b)
		storetest.Put(t, c.nodes["liar"].store, b)
		n := c.nodes["liar"]
		n.stop()
		l, err := n.host.Listen(transfer.Protocol)
		for err != nil {
			synctest.Wait()
			l, err = n.host.Listen(transfer.Protocol)
		}
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		c.wg.Go(func() { n.peers.Serve(ctx, l, liar{n.store}) })

		c.seeds = []string{"liar", "good"}
		require.NoError(t, c.nodes["c"].fetch(d))
		require.Equal(t, b, storetest.Get(t, c.nodes["c"].store, d.Digest))
		require.Equal(t, map[string]string{"liar": "proven"}, c.nodes["c"].liars)

		// It isn't asked again, also not for another blob.
		b, d = storetest.Blob(t, 1<<20)
		storetest.Put(t, n.store, b)
		c.seeds = []string{"liar"}
		require.ErrorIs(t, c.nodes["c"].fetch(d), errdefs.ErrNotFound)
	})
}

func TestOnlyLiars(t *testing.T) {
	bubble(t, []string{"liar", "c"}, func(t *testing.T, c *cluster) {
		b, d := storetest.Blob(t, 1<<20)
		storetest.Put(t, c.nodes["liar"].store, b)
		n := c.nodes["liar"]
		l, err := n.host.Listen("/lies")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		c.wg.Go(func() { n.peers.Serve(ctx, l, liar{n.store}) })
		p := transfer.NewPeers(transfer.PeersConfig{Locator: c, Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return c.nodes["c"].host.Dial(ctx, id, "/lies")
		}})
		c.seeds = []string{"liar"}
		err = p.Fetch(t.Context(), c.nodes["c"].store, d, nil)
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		_, err = c.nodes["c"].store.Stat(t.Context(), d.Digest)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	})
}

// TestTruncated: a peer that ends its stream at any point is left for another.
func TestTruncated(t *testing.T) {
	for _, after := range []int{0, 3, 6, 100, 140_000, 700_000} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			bubble(t, []string{"good", "short", "c"}, func(t *testing.T, c *cluster) {
				b, d := storetest.Blob(t, 4<<20)
				storetest.Put(t, c.nodes["good"].store, b)
				storetest.Put(t, c.nodes["short"].store, b)
				c.seeds = []string{"short", "good"}
				host := c.nodes["c"].host
				p := transfer.NewPeers(transfer.PeersConfig{Locator: c, Dial: func(ctx context.Context, id string) (net.Conn, error) {
					conn, err := host.Dial(ctx, id, transfer.Protocol)
					if id == "short" && err == nil {
						conn = &short{conn, io.LimitReader(conn, int64(after))}
					}
					return conn, err
				}})
				require.NoError(t, p.Fetch(t.Context(), c.nodes["c"].store, d, nil))
				require.Equal(t, b, storetest.Get(t, c.nodes["c"].store, d.Digest))
			})
		})
	}
}

// short is a connection that ends early.
type short struct {
	net.Conn
	r io.Reader
}

func (s *short) Read(p []byte) (int, error) { return s.r.Read(p) }

func TestSecondFetchWaitsForTheFirst(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		c.net.Shape("a", 8<<20, 0)
		b, d := storetest.Blob(t, 8<<20)
		storetest.Put(t, c.nodes["a"].store, b)
		c.seeds = []string{"a"}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		first := make(chan error)
		go func() { first <- c.nodes["b"].peers.Fetch(ctx, c.nodes["b"].store, d, nil) }()
		synctest.Wait()
		require.NoError(t, c.nodes["b"].fetch(d), "goes on when the first gives up")
		require.ErrorIs(t, <-first, context.DeadlineExceeded)
	})
}

// TestUnknownSize: whoever pulls by digest doesn't know how long a manifest is.
func TestUnknownSize(t *testing.T) {
	bubble(t, []string{"none", "gone", "liar", "good", "c"}, func(t *testing.T, c *cluster) {
		b, d := storetest.Blob(t, 3000)
		storetest.Put(t, c.nodes["good"].store, b)
		longer, _ := storetest.Blob(t, 4000)
		c.nodes["liar"].stop()
		n := c.nodes["liar"]
		l, err := n.host.Listen(transfer.Protocol)
		for err != nil {
			synctest.Wait()
			l, err = n.host.Listen(transfer.Protocol)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		lied := storetest.Memory()
		storetest.Put(t, lied, longer)
		c.wg.Go(func() { n.peers.Serve(ctx, l, renamed{lied, d.Digest, digest.FromBytes(longer)}) })
		c.net.Host("gone").Close()
		c.seeds = []string{"none", "gone", "liar", "good"}
		unsized := d
		unsized.Size = 0
		require.NoError(t, c.nodes["c"].fetch(unsized))
		require.Equal(t, b, storetest.Get(t, c.nodes["c"].store, d.Digest))

		_, d = storetest.Blob(t, 500)
		d.Size = 0
		require.ErrorIs(t, c.nodes["c"].fetch(d), errdefs.ErrNotFound)
	})
}

// renamed says that it holds one blob where it holds another.
type renamed struct {
	transfer.Store
	says, has digest.Digest
}

func (r renamed) Stat(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	if d == r.says {
		d = r.has
	}
	return r.Store.Stat(ctx, d)
}

func (r renamed) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	if d == r.says {
		d = r.has
	}
	return r.Store.Open(ctx, d)
}
