package transfer_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

func TestVouchedReads(t *testing.T) {
	bubble(t, []string{"a", "a2", "b"}, func(t *testing.T, c *cluster) {
		blob, _ := storetest.Blob(t, 5<<20)
		d := storetest.Put(t, c.nodes["a"].store, blob)
		storetest.Put(t, c.nodes["a2"].store, blob)
		c.seeds = []string{"a", "a2"}
		v, err := c.nodes["b"].peers.Vouch(t.Context(), d)
		require.NoError(t, err)
		defer v.Close()
		require.Contains(t, []string{"a", "a2"}, v.Peer())
		first, last, from, to := v.Around(1<<20, 1<<20+100_000)
		require.LessOrEqual(t, from, int64(1<<20))
		require.GreaterOrEqual(t, to, int64(1<<20+100_000))
		b, err := v.Read(t.Context(), first, last)
		require.NoError(t, err)
		require.Equal(t, blob[from:to], b)
		at, end := v.Chunk(first)
		require.True(t, v.Proves(first, blob[at:end]))
		require.False(t, v.Proves(first, blob[at+1:end+1]))
		_, last, _, to = v.Around(d.Size-1, d.Size)
		require.Equal(t, d.Size, to)
		_, end = v.Chunk(last - 1)
		require.Equal(t, d.Size, end)

		// Who vouched goes, another one gives.
		c.nodes[v.Peer()].stop()
		b, err = v.Read(t.Context(), first, first+1)
		require.NoError(t, err)
		require.Equal(t, blob[at:at+int64(len(b))], b)
	})
}

// TestNobodyVouches: for what is compressed, small or nowhere.
func TestNobodyVouches(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		small, _ := storetest.Blob(t, 100_000)
		d := storetest.Put(t, c.nodes["a"].store, small)
		c.seeds = []string{"a"}
		_, err := c.nodes["b"].peers.Vouch(t.Context(), d)
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		d.Size, d.Digest = 2<<20, digest.FromString("nowhere")
		_, err = c.nodes["b"].peers.Vouch(t.Context(), d)
		require.True(t, errdefs.IsNotFound(err), "%v", err)
	})
}

// TestVouchedLies: a chunk that isn't what its sum says is not believed, and who sent it
// against its own word is named.
func TestVouchedLies(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		blob, _ := storetest.Blob(t, 3<<20)
		d := storetest.Put(t, c.nodes["a"].store, blob)
		c.seeds = []string{"a"}
		v, err := c.nodes["b"].peers.Vouch(t.Context(), d)
		require.NoError(t, err)
		defer v.Close()
		v.Close() // the session reads from what was there
		other := append([]byte(nil), blob...)
		other[2<<20] ^= 1
		c.serveInstead("a", changed{c.nodes["a"].store, d.Digest, other})
		first, last, from, to := v.Around(0, 10_000)
		b, err := v.Read(t.Context(), first, last)
		require.NoError(t, err)
		require.Equal(t, blob[from:to], b)
		first, last, _, _ = v.Around(2<<20, 2<<20+1)
		_, err = v.Read(t.Context(), first, last)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
	})
}

// changed has other bytes under a digest.
type changed struct {
	transfer.Store
	digest digest.Digest
	bytes  []byte
}

func (s changed) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := s.Store.Open(ctx, d)
	if err == nil && d == s.digest {
		b = changedBlob{b, s.bytes}
	}
	return b, err
}

type changedBlob struct {
	transfer.Blob
	bytes []byte
}

func (b changedBlob) ReadAt(p []byte, off int64) (int, error) { return copy(p, b.bytes[off:]), nil }
