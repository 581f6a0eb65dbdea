package transfer_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"
	"time"

	fast "github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer/chunk"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// gzipped is content as a tool of the world packs it.
func gzipped(t *testing.T, content []byte, level int) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, level)
	require.NoError(t, err)
	_, err = z.Write(content)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.Bytes()
}

// texts are versions of something that compresses, not much longer than what deltas are
// for: compressing takes long with the race detector.
func texts(t *testing.T) (old, next []byte) {
	t.Helper()
	const size, some = 5 << 18, 1 << 20
	noise := make([]byte, size+100_000) // always the same, as what moves depends on where it is cut
	_, err := rand.NewChaCha8([32]byte{3}).Read(noise)
	require.NoError(t, err)
	plain, fresh := noise[:size:size], noise[size:]
	return []byte(hex.EncodeToString(plain)), []byte(hex.EncodeToString(slices.Concat(fresh, plain[:some-len(fresh)], plain[some:])))
}

// update makes b, which has old, fetch next from a over a slow link.
func update(t *testing.T, old, next []byte, more ...func(c *cluster)) (moved int64, liars map[string]string) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		d := storetest.Put(t, c.nodes["a"].store, next)
		storetest.Put(t, c.nodes["b"].store, old)
		c.net.Shape("a", 1<<20, time.Millisecond)
		c.seeds = []string{"a"}
		for _, f := range more {
			f(c)
		}
		require.NoError(t, c.nodes["b"].fetch(d))
		require.Equal(t, next, storetest.Get(t, c.nodes["b"].store, d.Digest))
		moved, liars = c.nodes["b"].total(), c.nodes["b"].liars
	})
	return moved, liars
}

// zlib is content as gzip(1) packs it.
func zlib(t *testing.T, content []byte) []byte {
	cmd := exec.CommandContext(t.Context(), "gzip", "-6")
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	require.NoError(t, err)
	return out
}

// TestUpdateOfCompressed: the digest is that of the compressed blob, and what moves is
// what changed of its content, whatever the old version was packed with.
func TestUpdateOfCompressed(t *testing.T) {
	old, next := texts(t)
	named := func(content []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Name, z.Comment, z.Extra, z.ModTime = "layer.tar", "of today", []byte("extra"), time.Unix(1e9, 0)
		_, err := z.Write(content)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return out.Bytes()
	}
	other := func(content []byte) []byte {
		var out bytes.Buffer
		z, err := fast.NewWriterLevel(&out, 5)
		require.NoError(t, err)
		_, err = z.Write(content)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return out.Bytes()
	}
	packedOld, packedNext := gzipped(t, old, -1), gzipped(t, next, -1)
	members := func(content []byte) (out []byte) { // of parts as files are, so that they stay the same
		parts, err := chunk.Coarse.Split(bytes.NewReader(content))
		require.NoError(t, err)
		for _, p := range parts {
			out = append(out, gzipped(t, content[:p.Len], -1)...)
			content = content[p.Len:]
		}
		return out
	}
	for name, v := range map[string]struct{ old, next []byte }{
		"by zlib":        {zlib(t, old), zlib(t, next)},
		"in members":     {members(old), members(next)},
		"as docker does": {packedOld, packedNext},
		"level 1":        {gzipped(t, old, 1), gzipped(t, next, 1)},
		"level 9":        {packedOld, gzipped(t, next, 9)},
		"header":         {packedOld, named(next)},
		"from plain":     {old, packedNext},
		"to plain":       {packedOld, next},
		"klauspost":      {other(old), other(next)},
	} {
		t.Run(name, func(t *testing.T) {
			moved, liars := update(t, v.old, v.next)
			t.Logf("%d of %d bytes", moved, len(v.next))
			require.Less(t, moved, int64(len(v.next)/3))
			require.Empty(t, liars)
		})
	}
}

// TestUnknownCompressor: what begins like a known one's, or like none's, moves whole,
// and nobody is blamed.
func TestUnknownCompressor(t *testing.T) {
	old, next := texts(t)
	noise, _ := storetest.Blob(t, 1<<20)
	var bomb []byte
	for part := range slices.Chunk(noise, 32) {
		bomb = append(append(bomb, part...), make([]byte, 2<<10)...)
	}
	packed := gzipped(t, old, -1)
	a, b := gzipped(t, next[:len(next)/2], -1), gzipped(t, next[len(next)/2:], 1)
	for name, next := range map[string][]byte{
		"changes later": append(a, b...),
		"bomb":          gzipped(t, bomb, 1),
		"garbage":       append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, old...),
	} {
		t.Run(name, func(t *testing.T) {
			require.Greater(t, len(next), 1<<20)
			_, liars := update(t, packed, next)
			require.Empty(t, liars)
		})
	}
}

// TestFastLinkMovesWhole: where compressing takes longer than moving, that is what
// happens.
func TestFastLinkMovesWhole(t *testing.T) {
	old, next := texts(t)
	packed := gzipped(t, next, -1)
	moved, _ := update(t, gzipped(t, old, -1), packed, func(c *cluster) { c.net.Shape("a", 1<<30, time.Microsecond) })
	require.GreaterOrEqual(t, moved, int64(len(packed)))
}
