package transfer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
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
	"github.com/shoal-engine/shoal/transfer/chunk"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// versions are two blobs of which the second has most of the first, elsewhere.
func versions(t *testing.T) (old, next []byte) {
	old, _ = storetest.Blob(t, 12<<20)
	fresh, _ := storetest.Blob(t, 700_000)
	next = append(next, fresh[:100_000]...)
	next = append(next, old[:5<<20]...)
	next = append(next, fresh[100_000:]...)
	next = append(next, old[5<<20+1000:]...)
	next = append(next, fresh[:200_000]...) // again, which is not sent again
	return old, next
}

// total is what peers sent.
func (n *node) total() (sum int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.from {
		sum += v
	}
	return sum
}

// serveInstead makes a node serve another store than its own.
func (c *cluster) serveInstead(id string, s transfer.Store) {
	n := c.nodes[id]
	n.stop()
	l, err := n.host.Listen(transfer.Protocol)
	for err != nil {
		synctest.Wait()
		l, err = n.host.Listen(transfer.Protocol)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	c.wg.Go(func() { n.peers.Serve(ctx, l, s) })
}

func TestUpdateMovesWhatChanged(t *testing.T) {
	bubble(t, []string{"a", "a2", "b"}, func(t *testing.T, c *cluster) {
		old, next := versions(t)
		d := storetest.Put(t, c.nodes["a"].store, next)
		storetest.Put(t, c.nodes["a2"].store, next)
		storetest.Put(t, c.nodes["b"].store, old)
		c.seeds = []string{"a", "a2"}
		var reports []int64
		b := c.nodes["b"]
		require.NoError(t, b.peers.Fetch(t.Context(), b.store, d, func(n int64) { reports = append(reports, n) }))
		require.Equal(t, next, storetest.Get(t, b.store, d.Digest))
		require.Less(t, b.total(), int64(700_000+8*chunk.Max)+d.Size/32, "what changed, the chunks around it, and a sample")
		require.Equal(t, d.Size, reports[len(reports)-1])
		require.True(t, slices.IsSorted(reports))
	})
}

// TestUnlikeBlobsMoveWhole: also small, compressed and wholly different ones arrive.
func TestUnlikeBlobsMoveWhole(t *testing.T) {
	old, next := versions(t)
	other, _ := storetest.Blob(t, 3<<20)
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		require.NoError(t, err)
		_, err = z.Write(b)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return out.Bytes()
	}
	for name, v := range map[string]struct{ old, next []byte }{
		"compressed": {packed(old), packed(next)},
		"different":  {old, other},
		"small":      {old, old[:300_000]},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
				d := storetest.Put(t, c.nodes["a"].store, v.next)
				storetest.Put(t, c.nodes["b"].store, v.old)
				c.seeds = []string{"a"}
				require.NoError(t, c.nodes["b"].fetch(d))
				require.Equal(t, v.next, storetest.Get(t, c.nodes["b"].store, d.Digest))
				require.GreaterOrEqual(t, c.nodes["b"].total(), d.Size)
			})
		})
	}
}

// TestDamageIsRepaired: chunk lists and blobs that aren't what they were cost bytes,
// nothing else.
func TestDamageIsRepaired(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, c *cluster, chunks string) transfer.Store{
		"list": func(t *testing.T, c *cluster, chunks string) transfer.Store {
			require.NoError(t, filepath.WalkDir(chunks, func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				return os.WriteFile(path, []byte("rubbish"), 0o600)
			}))
			return c.nodes["b"].store
		},
		"list is gone": func(t *testing.T, c *cluster, chunks string) transfer.Store {
			require.NoError(t, os.RemoveAll(chunks))
			return c.nodes["b"].store
		},
		"blob": func(t *testing.T, c *cluster, _ string) transfer.Store {
			return damaged{c.nodes["b"].store}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
				old, next := versions(t)
				b := c.nodes["b"]
				d := storetest.Put(t, c.nodes["a"].store, next)
				_, warm := versions(t)
				w := storetest.Put(t, c.nodes["a"].store, append(warm[:1<<20:1<<20], old...))
				storetest.Put(t, b.store, old)
				c.seeds = []string{"a"}
				require.NoError(t, b.fetch(w), "makes the list")
				store := damage(t, c, b.chunks)
				require.NoError(t, b.peers.Fetch(t.Context(), store, d, nil))
				require.Equal(t, next, storetest.Get(t, b.store, d.Digest))
				require.Less(t, b.total(), d.Size/2)
				require.Empty(t, b.liars)
			})
		})
	}
}

// damaged is a store whose blobs have one wrong byte.
type damaged struct{ *storetest.Store }

func (s damaged) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := s.Store.Open(ctx, d)
	return wrongByte{b}, err
}

type wrongByte struct{ transfer.Blob }

func (w wrongByte) ReadAt(p []byte, at int64) (int, error) {
	n, err := w.Blob.ReadAt(p, at)
	if i := 3_000_000 - at; i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	return n, err
}

// TestWrongRecipe: whoever describes another blob than the one asked for is found out,
// and the blob comes from the others.
func TestWrongRecipe(t *testing.T) {
	bubble(t, []string{"liar", "good", "b"}, func(t *testing.T, c *cluster) {
		old, next := versions(t)
		d := storetest.Put(t, c.nodes["good"].store, next)
		storetest.Put(t, c.nodes["liar"].store, next)
		storetest.Put(t, c.nodes["b"].store, old)
		c.serveInstead("liar", damaged{c.nodes["liar"].store})
		c.seeds = []string{"liar"}
		require.Error(t, c.nodes["b"].fetch(d), "nobody else has it")
		require.Equal(t, map[string]string{"liar": "proven"}, c.nodes["b"].liars)
		c.seeds = []string{"liar", "good"}
		require.NoError(t, c.nodes["b"].fetch(d))
		require.Equal(t, next, storetest.Get(t, c.nodes["b"].store, d.Digest))
	})
}

// TestDeltaHolderDies: another holder, or the next attempt, goes on.
func TestDeltaHolderDies(t *testing.T) {
	old, next := versions(t)
	for _, after := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			bubble(t, []string{"a", "a2", "b"}, func(t *testing.T, c *cluster) {
				for id := range c.nodes {
					c.net.Shape(id, 2<<20, time.Millisecond)
				}
				d := storetest.Put(t, c.nodes["a"].store, next)
				storetest.Put(t, c.nodes["a2"].store, next)
				storetest.Put(t, c.nodes["b"].store, old)
				c.seeds = []string{"a", "a2"}
				time.AfterFunc(after, func() { c.nodes["a"].host.Close() })
				require.NoError(t, c.nodes["b"].fetch(d))
				require.Equal(t, next, storetest.Get(t, c.nodes["b"].store, d.Digest))
				require.Less(t, c.nodes["b"].total(), d.Size/2)
			})
		})
	}
}

// TestDeltaInterrupted: what came is kept, and the rest is made of what is here.
func TestDeltaInterrupted(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		old, next := versions(t)
		c.net.Shape("a", 1<<20, time.Millisecond)
		d := storetest.Put(t, c.nodes["a"].store, next)
		storetest.Put(t, c.nodes["b"].store, old)
		c.seeds = []string{"a"}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, c.nodes["b"].peers.Fetch(ctx, c.nodes["b"].store, d, nil), context.DeadlineExceeded)
		_, err := c.nodes["b"].store.Stat(t.Context(), d.Digest)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.NoError(t, c.nodes["b"].fetch(d))
		require.Equal(t, next, storetest.Get(t, c.nodes["b"].store, d.Digest))
		require.Less(t, c.nodes["b"].total(), d.Size/4)
	})
}

// TestFaults: of eleven nodes that fetch, three are killed on the way, one of those that
// have the blob sends wrong bytes, and one is all but stuck. All others finish, in at
// most 1.6 times what it takes without that.
func TestFaults(t *testing.T) {
	calm, rough := fanOut(t, false), fanOut(t, true)
	t.Logf("undisturbed %v, with faults %v: %.2f x", calm, rough, float64(rough)/float64(calm))
	require.Less(t, float64(rough)/float64(calm), 1.6)
}

func fanOut(t *testing.T, faults bool) (took time.Duration) {
	ids := []string{"s1", "s2", "liar", "slow"}
	var cold []string
	for i := range 10 {
		cold = append(cold, fmt.Sprint("n", i))
	}
	bubble(t, append(ids, cold...), func(t *testing.T, c *cluster) {
		for id := range c.nodes {
			c.net.Shape(id, 8<<20, time.Millisecond)
		}
		b, _ := storetest.Blob(t, 16<<20)
		var d ocispec.Descriptor
		for _, id := range ids {
			d = storetest.Put(t, c.nodes[id].store, b)
		}
		c.seeds = ids
		if faults {
			c.serveInstead("liar", liar{c.nodes["liar"].store})
			c.net.Shape("slow", 1<<10, time.Millisecond)
			time.AfterFunc(800*time.Millisecond, func() {
				for _, id := range cold[:3] {
					c.nodes[id].host.Close()
				}
			})
		}
		start := time.Now()
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i, id := range cold {
			wg.Go(func() {
				err := c.nodes[id].fetch(d)
				if faults && i < 3 {
					return // it was killed
				}
				mu.Lock()
				took = max(took, time.Since(start))
				mu.Unlock()
				if err != nil {
					t.Error(id, err)
					return
				}
				if got := storetest.Get(t, c.nodes[id].store, d.Digest); digest.FromBytes(got) != d.Digest {
					t.Error("other bytes")
				}
			})
		}
		wg.Wait()
	})
	return took
}
