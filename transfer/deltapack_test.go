package transfer

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// memory is a blob.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// stableText is content that compresses, always the same.
func stableText() []byte {
	rnd := rand.New(rand.NewChaCha8([32]byte{1}))
	var b bytes.Buffer
	for b.Len() < 300_000 {
		fmt.Fprintf(&b, "%x %d\n", rnd.Uint32N(5000), rnd.Uint32N(100))
	}
	return b.Bytes()
}

// TestPackersAreStable: blobs of nodes with other versions of Shoal can be made again
// only while the compressors' output stays what it is. If this fails after a change of
// toolchain or library, the methods need new numbers, and the old ones an implementation.
func TestPackersAreStable(t *testing.T) {
	sums := ""
	for _, method := range []byte{packedGo, packedFast} {
		for level := int8(1); level <= 9; level++ {
			var out bytes.Buffer
			z, err := packing{method: method, level: level, header: make([]byte, gzipHead)}.open(&out)
			require.NoError(t, err)
			_, err = z.Write(stableText())
			require.NoError(t, err)
			require.NoError(t, z.Close())
			sums += digest.FromBytes(out.Bytes()).Encoded()[:8] + " "
		}
	}
	require.Equal(t, "ade8586a 09098e09 941d6c18 657a03bc d255b14f e326f9e4 e326f9e4 e326f9e4 e326f9e4 a8629ee9 eb76f6ba 53481b6f 516d77cc b34318b9 3f35dca4 0be15626 d364454a 1018daa7 ", sums)
}

// FuzzContent opens and recognises blobs that anybody may have made.
func FuzzContent(f *testing.F) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Name = "n"
	_, err := z.Write(bytes.Repeat([]byte("content"), 1000))
	require.NoError(f, err)
	require.NoError(f, z.Close())
	f.Add(out.Bytes())
	pack, err := zstd.NewWriter(nil)
	require.NoError(f, err)
	f.Add(pack.EncodeAll(make([]byte, 1<<20), nil))
	f.Add([]byte{0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff})
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, b []byte) {
		blob := memory{bytes.NewReader(b)}
		p := recognise(t.Context(), blob)
		content, err := openContent(blob, p)
		if err != nil {
			return
		}
		defer content.Close()
		n, err := io.Copy(io.Discard, content)
		if p.method == packedNot {
			require.NoError(t, err)
			require.EqualValues(t, len(b), n)
			return
		}
		require.LessOrEqual(t, n, maxContent(int64(len(b))))
		if p.method == packedOdd || err != nil {
			return
		}
		_, rest, err := decodePacking(p.append(nil))
		require.NoError(t, err)
		require.Empty(t, rest)
	})
}
