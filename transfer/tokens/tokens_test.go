package tokens_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"
	"testing/iotest"
	"time"

	fast "github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/transfer/chunk"
	"github.com/shoal-engine/shoal/transfer/tokens"
)

// apart reads a blob's tokens to their end.
func apart(t require.TestingT, blob []byte) (content, layout []byte) {
	z := tokens.NewReader(bytes.NewReader(blob), 100+len(blob))
	content, err := io.ReadAll(z)
	require.NoError(t, err)
	return content, z.Layout()
}

// together makes a blob of tokens that come in parts.
func together(t require.TestingT, content, layout []byte, part int) []byte {
	var out bytes.Buffer
	z := tokens.NewWriter(&out, layout)
	for b := content; len(b) > 0; {
		n := min(part, len(b))
		_, err := z.Write(b[:n])
		require.NoError(t, err)
		b = b[n:]
	}
	require.NoError(t, z.Close())
	return out.Bytes()
}

// mixture is content of several kinds, always the same for a seed.
func mixture(seed uint64, size int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < size {
		switch rnd.IntN(5) {
		case 0: // text
			for range rnd.IntN(2000) {
				fmt.Fprintf(&b, "%x %d\n", rnd.Uint32N(5000), rnd.Uint32N(100))
			}
		case 1: // noise
			for range rnd.IntN(40_000) {
				b.WriteByte(byte(rnd.Uint32()))
			}
		case 2: // runs
			b.Write(bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(100_000)))
		case 3: // what was, from anywhere
			if n := b.Len(); n > 0 {
				at := rnd.IntN(n)
				b.Write(bytes.Clone(b.Bytes()[at:min(n, at+rnd.IntN(50_000))]))
			}
		case 4: // the escape, in all company
			for range rnd.IntN(500) {
				b.Write([]byte{0xf5, byte(rnd.Uint32()), 0xf5, 0xff}[:1+rnd.IntN(4)])
			}
		}
	}
	return b.Bytes()[:size]
}

// writer is a compressor.
type writer interface {
	io.WriteCloser
	Flush() error
}

// packed compresses content in several writes, with flushes between some.
func packed(t require.TestingT, content []byte, level int, klauspost bool, flush int) []byte {
	var out bytes.Buffer
	var z writer
	var err error
	if klauspost {
		z, err = fast.NewWriterLevel(&out, level)
	} else {
		z, err = gzip.NewWriterLevel(&out, level)
	}
	require.NoError(t, err)
	for i := 0; len(content) > 0; i++ {
		n := min(len(content), 30_000)
		_, err := z.Write(content[:n])
		require.NoError(t, err)
		if flush > 0 && i%flush == 0 {
			require.NoError(t, z.Flush())
		}
		content = content[n:]
	}
	require.NoError(t, z.Close())
	return out.Bytes()
}

// TestBlobsAreMadeAgain holds for all content, compressors, levels, flushes, numbers of
// members and ways to hand the bytes over.
func TestBlobsAreMadeAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var blob []byte
		for range rapid.IntRange(1, 3).Draw(t, "members") {
			content := mixture(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 400_000).Draw(t, "size"))
			level := rapid.IntRange(flate.HuffmanOnly, flate.BestCompression).Draw(t, "level")
			blob = append(blob, packed(t, content, level, rapid.Bool().Draw(t, "klauspost"), rapid.IntRange(0, 3).Draw(t, "flush"))...)
		}
		content, layout := apart(t, blob)
		part := rapid.IntRange(1, 100_000).Draw(t, "part")
		require.True(t, bytes.Equal(blob, together(t, content, layout, part)))
		z := tokens.NewReader(iotest.HalfReader(bytes.NewReader(blob)), 100+len(blob))
		again, err := io.ReadAll(iotest.DataErrReader(z))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, again))
		require.Equal(t, layout, z.Layout())
	})
}

// TestEveryLevel of each compressor, byte by byte.
func TestEveryLevel(t *testing.T) {
	content := mixture(1, 300_000)
	for _, klauspost := range []bool{false, true} {
		for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
			blob := packed(t, content, level, klauspost, 0)
			b, layout := apart(t, blob)
			require.True(t, bytes.Equal(blob, together(t, b, layout, 1)), "level %d, klauspost: %v", level, klauspost)
		}
	}
}

// TestForeignCompressors are those of the system.
func TestForeignCompressors(t *testing.T) {
	content := mixture(2, 3<<20)
	const python = `import sys, zlib
c = zlib.compressobj(%d, zlib.DEFLATED, 31, %d, %s)
d = sys.stdin.buffer.read()
o = b"".join(c.compress(d[i:i+300000]) + c.flush(zlib.Z_%s_FLUSH) for i in range(0, len(d), 300000))
sys.stdout.buffer.write(o + c.flush())`
	for _, command := range [][]string{
		{"gzip", "-1"}, {"gzip", "-6"}, {"gzip", "-9"}, {"gzip", "--rsyncable"}, {"pigz", "-p", "3"}, {"igzip"},
		{"python3", "-c", fmt.Sprintf(python, 6, 8, "zlib.Z_DEFAULT_STRATEGY", "NO")},
		{"python3", "-c", fmt.Sprintf(python, 9, 1, "zlib.Z_DEFAULT_STRATEGY", "SYNC")},
		{"python3", "-c", fmt.Sprintf(python, 4, 9, "zlib.Z_FIXED", "FULL")},
		{"python3", "-c", fmt.Sprintf(python, 6, 8, "zlib.Z_RLE", "PARTIAL")},
		{"python3", "-c", fmt.Sprintf(python, 0, 8, "zlib.Z_DEFAULT_STRATEGY", "NO")},
	} {
		t.Run(fmt.Sprint(command), func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Stdin = bytes.NewReader(content)
			blob, err := cmd.Output()
			require.NoError(t, err)
			b, layout := apart(t, blob)
			require.True(t, bytes.Equal(blob, together(t, b, layout, 64<<10)))
			t.Logf("%d bytes, %d of tokens, %d of layout", len(blob), len(b), len(layout))
		})
	}
}

// TestChangesStay: of the tokens behind a change, most are those of before.
func TestChangesStay(t *testing.T) {
	old := mixture(3, 4<<20)
	next := append(append(bytes.Clone(old[:1<<20]), mixture(4, 33_333)...), old[1<<20:]...)
	known := map[chunk.Sum]bool{}
	cut := func(content []byte) chunk.Recipe {
		b, _ := apart(t, packed(t, content, 6, false, 0))
		r, err := chunk.Fine.Split(bytes.NewReader(b))
		require.NoError(t, err)
		return r
	}
	for _, c := range cut(old) {
		known[c.Sum] = true
	}
	fresh := 0
	for _, c := range cut(next) {
		if !known[c.Sum] {
			fresh += int(c.Len)
		}
	}
	require.Less(t, fresh, 150_000)
}

// TestStable: what tokens and layout look like is on the wire.
func TestStable(t *testing.T) {
	head := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	tail := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	stored := []byte{0, 2, 0, 0xfd, 0xff, 'h', 0xf5}
	fixed := []byte{0x4b, 0x4c, 0x04, 0x02, 0x00} // last: two a, a copy of three
	blob := bytes.Join([][]byte{head, stored, fixed, tail}, nil)
	content, layout := apart(t, blob)
	require.Equal(t, []byte{'h', 0xf5, 0xff, 'a', 'a', 0xf5, 0, 0, 0}, content)
	want := bytes.Join([][]byte{{3, 10}, head, {0, 2}, {5, 3}, {3, 8}, tail}, nil)
	require.Equal(t, want, layout)
	require.Equal(t, blob, together(t, content, layout, 5))
}

// TestHeaderSize finds where the compressed data begin, however much is before.
func TestHeaderSize(t *testing.T) {
	for _, h := range []gzip.Header{
		{}, {Name: "n"}, {Comment: "c"}, {Extra: []byte("xyz")}, {Name: "name", Comment: "c", Extra: []byte{1}, ModTime: time.Unix(1, 0), OS: 3},
	} {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Header = h
		require.NoError(t, z.Flush())
		n := out.Len() - 5 // of an empty block
		require.Equal(t, n, tokens.HeaderSize(out.Bytes()))
		for i := range n {
			require.Zero(t, tokens.HeaderSize(out.Bytes()[:i]), "cut at %d", i)
		}
	}
	require.Zero(t, tokens.HeaderSize([]byte("no gzip at all")))
}

// TestDamaged: what is cut off, or has another layout, is an error.
func TestDamaged(t *testing.T) {
	blob := packed(t, mixture(5, 50_000), 6, false, 1)
	for i := range len(blob) {
		_, err := io.ReadAll(tokens.NewReader(bytes.NewReader(blob[:i]), len(blob)))
		if i > 0 {
			require.Error(t, err, "cut at %d", i)
		}
	}
	_, err := io.ReadAll(tokens.NewReader(bytes.NewReader(blob), 5))
	require.Error(t, err, "the layout is longer")
	content, layout := apart(t, blob)
	for _, v := range []struct{ content, layout []byte }{
		{content[:len(content)-1], layout}, {append(bytes.Clone(content), 'x'), layout},
		{content, layout[:len(layout)/2]}, {content, nil},
	} {
		z := tokens.NewWriter(io.Discard, v.layout)
		_, err := z.Write(v.content)
		if err == nil {
			err = z.Close()
		}
		require.Error(t, err)
	}
}

// TestPlanes holds for all tokens, also those that begin and end within a copy.
func TestPlanes(t *testing.T) {
	content, _ := apart(t, packed(t, mixture(6, 1<<20), 6, false, 0))
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(content)).Draw(t, "at")
		b := content[at : at+rapid.IntRange(0, min(len(content)-at, 20_000)).Draw(t, "length")]
		p := tokens.Split(b)
		again, err := tokens.Join(p, len(b))
		require.NoError(t, err)
		require.True(t, bytes.Equal(b, again))
		_, err = tokens.Join(p, len(b)+1)
		require.Error(t, err)
	})
}

// FuzzReader takes apart what anybody may have made: what it takes, becomes the same
// again.
func FuzzReader(f *testing.F) {
	for level := flate.HuffmanOnly; level <= 9; level++ {
		f.Add(packed(f, mixture(uint64(level+9), 3000), level, level%2 == 0, 0))
	}
	f.Add(bytes.Repeat(packed(f, []byte("x"), 0, false, 1), 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		z := tokens.NewReader(bytes.NewReader(b), len(b))
		content, err := io.ReadAll(z)
		require.LessOrEqual(t, len(content), 32*len(b)+16)
		if err == nil {
			require.True(t, bytes.Equal(b, together(t, content, z.Layout(), 1000)))
		}
	})
}

// FuzzWriter gets a layout and tokens from anybody.
func FuzzWriter(f *testing.F) {
	for level := flate.HuffmanOnly; level <= 9; level++ {
		content, layout := apart(f, packed(f, mixture(uint64(level+9), 3000), level, false, 0))
		f.Add(layout, content, 100)
	}
	f.Add([]byte{5, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, []byte{0xf5, 0x7f, 0xff, 0xff}, 1)
	f.Fuzz(func(t *testing.T, layout, content []byte, part int) {
		var out bytes.Buffer
		z := tokens.NewWriter(&out, layout)
		for len(content) > 0 {
			n := min(len(content), max(part, 1))
			if _, err := z.Write(content[:n]); err != nil {
				return
			}
			content = content[n:]
		}
		_ = z.Close()
	})
}

// FuzzJoin gets planes from anybody.
func FuzzJoin(f *testing.F) {
	p := tokens.Split([]byte{'a', 0xf5, 0xff, 0xf5, 1, 2, 3, 'b', 0xf5, 4})
	f.Add(p.Gaps, p.Literals, p.Lengths, p.Upper, p.Lower, p.Rest, 10)
	f.Add([]byte{255, 255}, []byte("ab"), []byte{1}, []byte{2}, []byte{3}, []byte{}, 600)
	f.Fuzz(func(t *testing.T, gaps, literals, lengths, upper, lower, rest []byte, n int) {
		n &= 0xffff
		b, err := tokens.Join(tokens.Planes{Gaps: gaps, Literals: literals, Lengths: lengths, Upper: upper, Lower: lower, Rest: rest}, n)
		if err == nil {
			require.Len(t, b, n)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	blob := packed(b, mixture(7, 8<<20), 6, false, 0)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		_, err := io.Copy(io.Discard, tokens.NewReader(bytes.NewReader(blob), len(blob)))
		require.NoError(b, err)
	}
}

func BenchmarkWriter(b *testing.B) {
	blob := packed(b, mixture(7, 8<<20), 6, false, 0)
	content, layout := apart(b, blob)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		z := tokens.NewWriter(io.Discard, layout)
		_, err := z.Write(content)
		require.NoError(b, err)
		require.NoError(b, z.Close())
	}
}
