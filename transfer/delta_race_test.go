package transfer_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// sluggish is a store whose blobs take their time to be read.
type sluggish struct {
	*storetest.Store
	rate float64 // bytes a second
}

func (s sluggish) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := s.Store.Open(ctx, d)
	return sluggishBlob{b, s.rate}, err
}

type sluggishBlob struct {
	transfer.Blob
	rate float64
}

func (b sluggishBlob) ReadAt(p []byte, at int64) (int, error) {
	<-time.After(time.Duration(float64(len(p)) / b.rate * float64(time.Second)))
	return b.Blob.ReadAt(p, at)
}

// TestSearchDoesNotHoldUp: where likeness is found too late, or so late that the half is
// here, fetching takes hardly longer than without looking for it; what is found in time
// is used.
func TestSearchDoesNotHoldUp(t *testing.T) {
	fetch := func(t *testing.T, cutRate float64) (took time.Duration, moved int64) {
		bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
			old, next := versions(t)
			c.net.Shape("a", 2<<20, time.Millisecond)
			d := storetest.Put(t, c.nodes["a"].store, next)
			b := c.nodes["b"]
			if cutRate > 0 {
				storetest.Put(t, b.store, old)
			}
			c.seeds = []string{"a"}
			start := time.Now()
			require.NoError(t, b.peers.Fetch(t.Context(), sluggish{b.store, cutRate}, d, nil))
			took, moved = time.Since(start), b.total()
			require.Equal(t, next, storetest.Get(t, b.store, d.Digest))
			require.Empty(t, b.liars)
		})
		return took, moved
	}
	whole, size := fetch(t, 0)
	for name, v := range map[string]struct{ cutRate, slower, share float64 }{
		"too late":  {1 << 20, 1.15, 1.01},
		"half way":  {3 << 20, 1.15, 0.8},
		"in time":   {40 << 20, 0.5, 0.2},
		"instantly": {1 << 40, 0.2, 0.12},
	} {
		took, moved := fetch(t, v.cutRate)
		t.Logf("%s: %.2f of the time, %.2f of the bytes", name, float64(took)/float64(whole), float64(moved)/float64(size))
		require.LessOrEqual(t, float64(took)/float64(whole), v.slower, name)
		require.LessOrEqual(t, float64(moved)/float64(size), v.share, name)
	}
}

// TestPrepare: what comes to a node is cut without being asked for, and what goes is
// forgotten.
func TestPrepare(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		_, next := versions(t)
		b := c.nodes["b"]
		c.seeds = []string{"a"}
		ctx, cancel := context.WithCancel(t.Context())
		c.wg.Go(func() { b.peers.Prepare(ctx, b.store) })
		defer cancel()
		names := func() (out []string) {
			<-time.After(time.Minute)
			synctest.Wait()
			entries, err := os.ReadDir(b.chunks)
			require.True(t, err == nil || os.IsNotExist(err))
			for _, e := range entries {
				out = append(out, e.Name())
			}
			return out
		}
		require.Empty(t, names())
		gone := digest.FromString("gone").Encoded()
		require.NoError(t, os.MkdirAll(b.chunks, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(b.chunks, gone), nil, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(b.chunks, gone+".tokens"), nil, 0o600))
		d := storetest.Put(t, c.nodes["a"].store, next)
		require.NoError(t, b.fetch(d))
		require.Equal(t, []string{d.Digest.Encoded(), d.Digest.Encoded() + ".tokens"}, names())
	})
}
