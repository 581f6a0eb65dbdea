package transfer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer/chunk"
	"github.com/shoal-engine/shoal/transfer/tokens"
)

// roundTrip reads back one encoded frame.
func roundTrip(t *testing.T, encoded []byte) (byte, []byte) {
	t.Helper()
	kind, body, err := readFrame(bufio.NewReader(bytes.NewReader(encoded)))
	require.NoError(t, err)
	return kind, body
}

func TestFrames(t *testing.T) {
	w := want{digest: digest.FromString("x"), size: 12345, fetching: true}
	kind, body := roundTrip(t, w.encode())
	require.Equal(t, byte(kindWant), kind)
	got, err := decodeWant(body)
	require.NoError(t, err)
	require.Equal(t, w, got)

	m := newBitmap(11)
	m.set(0)
	m.set(10)
	kind, body = roundTrip(t, have{state: stateSome, pieces: m}.encode())
	require.Equal(t, byte(kindHave), kind)
	h, err := decodeHave(body, 11)
	require.NoError(t, err)
	require.Equal(t, have{state: stateSome, pieces: m}, h)
	_, err = decodeHave(body, 20)
	require.Error(t, err)
	_, err = decodeHave(body, 10)
	require.Error(t, err, "a piece beyond the blob")
	_, err = decodeHave([]byte{9}, 11)
	require.Error(t, err)

	_, body = roundTrip(t, encodeMore([]uint32{3, 7}))
	more, err := decodeMore(body, 8)
	require.NoError(t, err)
	require.Equal(t, []int{3, 7}, more)
	_, err = decodeMore(body, 7)
	require.Error(t, err)

	ids := make([]string, maxPeers+5)
	for i := range ids {
		ids[i] = "peer"
	}
	_, body = roundTrip(t, encodePeers(ids))
	peers, err := decodePeers(body)
	require.NoError(t, err)
	require.Equal(t, ids[:maxPeers], peers)

	_, body = roundTrip(t, encodePiece(kindGet, 77))
	p, err := decodePiece(body)
	require.NoError(t, err)
	require.Equal(t, uint32(77), p)
}

func TestFramesAreBounded(t *testing.T) {
	_, _, err := readHeader(bytes.NewReader([]byte{kindData, 0xff, 0xff, 0xff, 0xff}))
	require.Error(t, err)
	_, _, err = readHeader(bytes.NewReader([]byte{99, 0, 0, 0, 0}))
	require.Error(t, err)
	_, _, err = readFrame(bufio.NewReader(bytes.NewReader([]byte{kindGet, 0, 0, 0, 4, 1})))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, _, err = readFrame(bufio.NewReader(bytes.NewReader(nil)))
	require.ErrorIs(t, err, io.EOF)
}

func TestPieces(t *testing.T) {
	for _, size := range []int64{0, 1, minPiece, minPiece + 1, 33 << 20, 1 << 30, 3 << 30, maxPieces * maxPiece} {
		n, err := countPieces(size)
		require.NoError(t, err)
		require.LessOrEqual(t, n, maxPieces)
		var sum int64
		for i := range n {
			require.Equal(t, sum, pieceAt(size, i))
			sum += int64(pieceLen(size, i))
		}
		require.Equal(t, size, sum)
	}
	for _, size := range []int64{-1, maxPieces*maxPiece + 1} {
		_, err := countPieces(size)
		require.Error(t, err)
	}
}

// TestRun holds for content that compresses and content that doesn't.
func TestRun(t *testing.T) {
	pack, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	unpack, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxRun))
	require.NoError(t, err)
	noise := make([]byte, maxRun)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for _, content := range [][]byte{noise, make([]byte, maxRun), {1}} {
		kind, body := roundTrip(t, encodeRun(pack, content))
		require.Equal(t, byte(kindRun), kind)
		require.LessOrEqual(t, len(body), len(content)+1)
		got, err := decodeRun(unpack, body, len(content))
		require.NoError(t, err)
		require.Equal(t, content, got)
		_, err = decodeRun(unpack, body, len(content)-1)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	bomb := append([]byte{1}, pack.EncodeAll(make([]byte, 64<<20), nil)...)
	_, err = decodeRun(unpack, bomb, maxRun)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// TestPlanesInRuns: tokens are shorter in planes, and come back.
func TestPlanesInRuns(t *testing.T) {
	pack, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	require.NoError(t, err)
	unpack, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxRun))
	require.NoError(t, err)
	z := tokens.NewReader(bytes.NewReader(gzipOf(t, stableText())), 1<<20)
	content, err := io.ReadAll(z)
	require.NoError(t, err)
	for _, b := range [][]byte{content, content[1 : len(content)-3]} {
		kind, body := roundTrip(t, encodePlanes(pack, pack, b))
		require.Equal(t, byte(kindRun), kind)
		require.Less(t, len(body), len(encodeRun(pack, b)))
		got, err := decodeRun(unpack, body, len(b))
		require.NoError(t, err)
		require.Equal(t, b, got)
		_, err = decodeRun(unpack, body, len(b)-1)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = decodeRun(unpack, body[:len(body)-1], len(b))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	noise := make([]byte, maxRun)
	rand.NewChaCha8([32]byte{}).Read(noise)
	require.LessOrEqual(t, len(encodePlanes(pack, pack, noise)), headerSize+1+maxRun)
	require.Empty(t, encodePlanes(pack, pack, []byte{0xf5}), "no use")
}

func gzipOf(t testing.TB, content []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(content)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return out.Bytes()
}

func TestRecipeFile(t *testing.T) {
	plain := recipe{chunks: chunk.Recipe{{Len: 5}, {Sum: chunk.Sum{1}, Len: chunk.Max}}, packing: packing{header: []byte{}, layout: []byte{}}}
	r := plain.chunks
	packed := recipe{chunks: r, packing: packing{method: packedGo, level: 6, header: make([]byte, gzipHead), layout: []byte{1, 2, 3}}}
	got, err := decodeRecipe(encodeRecipe(packed, 9), 9)
	require.NoError(t, err)
	require.Equal(t, packed, got)
	raw := encodeRecipe(plain, r.Size())
	got, err = decodeRecipe(raw, r.Size())
	require.NoError(t, err)
	require.Equal(t, plain, got)
	_, err = decodeRecipe(raw, r.Size()+1)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		_, err := decodeRecipe(bad, r.Size())
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "byte %d", i)
		_, err = decodeRecipe(raw[:i], r.Size())
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "cut at %d", i)
	}
}

func FuzzRecipeFile(f *testing.F) {
	f.Add(encodeRecipe(recipe{chunks: chunk.Recipe{{Len: 5}}}, 5), int64(5))
	f.Add(encodeRecipe(recipe{packing: packing{method: packedOdd}}, 5), int64(5))
	f.Add(encodeRecipe(recipe{packing: packing{method: packedTokens, layout: []byte{1}}, chunks: chunk.Recipe{{Len: 5}}}, 9), int64(9))
	f.Add([]byte(recipeMagic), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if r, err := decodeRecipe(b, size); err == nil && r.packing.method == packedNot {
			require.Equal(t, size, r.chunks.Size())
		}
	})
}

// FuzzFrames feeds a stream of bytes to every decoder, as a peer could.
func FuzzFrames(f *testing.F) {
	f.Add(want{digest: digest.FromString("x"), size: 1 << 20}.encode())
	f.Add(have{state: stateSome, pieces: newBitmap(8)}.encode())
	f.Add(encodeMore([]uint32{1, 2}))
	f.Add(encodePeers([]string{"a", "b"}))
	f.Add(encodePiece(kindNone, noPiece))
	f.Add(frame(kindSums, make([]byte, 32)...))
	f.Add(frame(kindNext, newBitmap(8)...))
	f.Add(frame(kindCheck))
	f.Add(encodeAsk(digest.FromString("x")))
	f.Add(encodeSize(noSize))
	f.Add(delta{digest: digest.FromString("x"), size: 1 << 20, recipe: true}.encode())
	f.Add(frame(kindPacked, packing{method: packedGo, level: 6, header: make([]byte, gzipHead)}.append(nil)...))
	f.Add(encodeOutline(digest.FromString("x"), 1<<20))
	f.Add(encodeRate(1e6))
	f.Add(read{at: 5, len: 10}.encode())
	f.Add(encodeChunks(chunk.Recipe{{Len: 3}, {Len: 4}})[0])
	pack, err := zstd.NewWriter(nil)
	require.NoError(f, err)
	unpack, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRun))
	require.NoError(f, err)
	f.Add(encodeRun(pack, make([]byte, 1000)))
	f.Add(encodeRun(pack, []byte("noise")))
	f.Add(encodePlanes(pack, pack, stableText()[:1000]))
	f.Add(encodeLayout([]byte{1, 2, 3})[0])
	f.Add(delta{digest: digest.FromString("x"), size: 1 << 20, recipe: true, tokens: true}.encode())
	data := make([]byte, headerSize+dataHeadSize+3)
	putDataHead(data, dataHead{piece: 1, last: true}, 3)
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		const pieces = 8
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			kind, size, err := readHeader(r)
			if err != nil {
				return
			}
			if kind == kindData {
				head, n, err := readDataHead(r, size, pieces)
				if err != nil {
					return
				}
				require.Less(t, head.piece, uint32(pieces))
				require.LessOrEqual(t, n, dataSize)
				if _, err := r.Discard(n); err != nil {
					return
				}
				continue
			}
			body := make([]byte, size)
			if _, err := io.ReadFull(r, body); err != nil {
				return
			}
			switch kind {
			case kindWant:
				if w, err := decodeWant(body); err == nil {
					_, again := roundTrip(t, w.encode())
					again[0] = body[0] // unknown flags are ignored
					require.Equal(t, body, again)
				}
			case kindAsk:
				if d, err := decodeAsk(body); err == nil {
					_, again := roundTrip(t, encodeAsk(d))
					require.Equal(t, body, again)
				}
			case kindDelta:
				if d, err := decodeDelta(body); err == nil {
					require.LessOrEqual(t, d.size, int64(maxDelta))
				}
			case kindOutline:
				if d, size, err := decodeOutline(body); err == nil {
					_, again := roundTrip(t, encodeOutline(d, size))
					require.Equal(t, body, again)
				}
			case kindRead:
				if r, err := decodeRead(body, 1<<20); err == nil {
					_, again := roundTrip(t, r.encode())
					require.Equal(t, body, again)
					require.LessOrEqual(t, r.at+int64(r.len), int64(1<<20))
				}
			case kindRate:
				if n, err := decodeRate(body); err == nil {
					require.GreaterOrEqual(t, n, 0.0)
				}
			case kindPacked:
				if p, err := decodePacked(body); err == nil {
					require.Equal(t, body, p.append(nil))
				}
			case kindChunks:
				if r, _, err := decodeChunks(body); err == nil {
					require.LessOrEqual(t, len(r), maxChunks)
				}
			case kindRun:
				if content, err := decodeRun(unpack, body, 1000); err == nil {
					require.Len(t, content, 1000)
				}
			case kindSize:
				if n, err := decodeSize(body); err == nil {
					_, again := roundTrip(t, encodeSize(n))
					require.Equal(t, body, again)
				}
			case kindHave:
				if h, err := decodeHave(body, pieces); err == nil && h.state == stateSome {
					require.LessOrEqual(t, h.pieces.count(), pieces)
				}
			case kindMore:
				if more, err := decodeMore(body, pieces); err == nil {
					require.Len(t, more, len(body)/4)
				}
			case kindPeers:
				if ids, err := decodePeers(body); err == nil {
					_, again := roundTrip(t, encodePeers(ids))
					require.Equal(t, body, again)
				}
			case kindSums:
				if sums, err := decodeSums(body, pieces); err == nil {
					require.Len(t, sums, pieces)
				}
			case kindNext:
				decodeBitmap(body, pieces)
			default:
				decodePiece(body)
			}
		}
	})
}
