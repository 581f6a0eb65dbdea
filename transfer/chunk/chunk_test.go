package chunk_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/transfer/chunk"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

func split(t require.TestingT, b []byte) chunk.Recipe {
	r, err := chunk.Coarse.Split(bytes.NewReader(b))
	require.NoError(t, err)
	return r
}

// TestSplit holds for all content: nothing is lost, lengths are bounded, and how the
// reader hands the bytes out makes no difference.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 1<<20).Draw(t, "size"))
		if zeros := rapid.IntRange(0, len(b)).Draw(t, "zeros"); zeros > 0 {
			clear(b[:zeros])
		}
		r := split(t, b)
		require.Equal(t, int64(len(b)), r.Size())
		at := 0
		for i, c := range r {
			require.LessOrEqual(t, int(c.Len), chunk.Max)
			if i < len(r)-1 {
				require.Greater(t, int(c.Len), chunk.Min)
			}
			require.Equal(t, chunk.SumOf(b[at:at+int(c.Len)]), c.Sum)
			at += int(c.Len)
		}
		halves, err := chunk.Coarse.Split(iotest.HalfReader(bytes.NewReader(b)))
		require.NoError(t, err)
		require.Equal(t, r, halves)
	})
}

// TestAverage keeps lengths near what the masks are made for.
func TestAverage(t *testing.T) {
	r := split(t, noise(1, 16<<20))
	mean := int(r.Size()) / len(r)
	require.Greater(t, mean, chunk.Average*3/4)
	require.Less(t, mean, chunk.Average*3/2)
}

// TestInsertion: a change anywhere, of any length, makes few new chunks.
func TestInsertion(t *testing.T) {
	base := noise(7, 2<<20)
	old := map[chunk.Sum]bool{}
	for _, c := range split(t, base) {
		old[c.Sum] = true
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(base)).Draw(t, "at")
		insert := noise(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 50_000).Draw(t, "insert"))
		drop := rapid.IntRange(0, min(50_000, len(base)-at)).Draw(t, "drop")
		changed := append(append(bytes.Clone(base[:at]), insert...), base[at+drop:]...)
		fresh := 0
		for _, c := range split(t, changed) {
			if !old[c.Sum] {
				fresh += int(c.Len)
			}
		}
		require.Less(t, fresh, len(insert)+6*chunk.Max)
	})
}

// TestCutsAreFixed: other cuts would be another protocol.
func TestCutsAreFixed(t *testing.T) {
	var lens []int
	for _, c := range split(t, noise(3, 100_000)) {
		lens = append(lens, int(c.Len))
	}
	require.Equal(t, []int{20133, 20488, 18227, 16957, 20430, 3765}, lens)
}

func TestFailingReader(t *testing.T) {
	broken := errors.New("broken")
	_, err := chunk.Coarse.Split(io.MultiReader(bytes.NewReader(noise(1, 300_000)), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)
}

func FuzzDecode(f *testing.F) {
	f.Add(split(f, noise(1, 100_000)).Append(nil))
	f.Add(make([]byte, chunk.EntrySize))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := chunk.Decode(b)
		if err != nil {
			return
		}
		require.Equal(t, b, r.Append([]byte{}))
		for _, c := range r {
			require.LessOrEqual(t, int(c.Len), chunk.Max)
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	content := noise(1, 32<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		split(b, content)
	}
}
