package transfer

import (
	"encoding/binary"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/chunk"
	"github.com/shoal-engine/shoal/transfer/tokens"
)

// maxRun is the most content of one answer to a read.
const maxRun = 1 << 20

// maxChunks is how many chunks one chunks frame has at most.
const maxChunks = 3200

// delta opens a session about a blob of which the asker has something like it.
type delta struct {
	digest digest.Digest
	size   int64
	recipe bool // send the chunks first
	packed bool // the asker can compress as the blob was
	tokens bool // it can make the blob of its tokens, which is preferred
}

func (d delta) encode() []byte {
	w := want{digest: d.digest, size: d.size, fetching: d.recipe, packed: d.packed, tokens: d.tokens}.encode() // the same flags
	w[0] = kindDelta
	return w
}

func decodeDelta(b []byte) (delta, error) {
	w, err := decodeWant(b)
	if err == nil && (w.size < minDelta || w.size > maxDelta) {
		err = api.InvalidArgument("delta frame: blobs of %d bytes move whole", w.size)
	}
	return delta{w.digest, w.size, w.fetching, w.packed, w.tokens}, err
}

// read asks for bytes of the blob.
type read struct {
	at  int64
	len int
}

func (r read) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.at))
	return frame(kindRead, binary.BigEndian.AppendUint32(b, uint32(r.len))...)
}

func decodeRead(b []byte, size int64) (read, error) {
	if len(b) != 12 {
		return read{}, api.InvalidArgument("read frame of %d bytes", len(b))
	}
	at, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
	if n == 0 || n > maxRun || at > uint64(size) || uint64(n) > uint64(size)-at {
		return read{}, api.InvalidArgument("read frame: %d bytes at %d of %d", n, at, size)
	}
	return read{int64(at), int(n)}, nil
}

// decodePacked reads how a blob of a size is packed.
func decodePacked(b []byte) (packing, error) {
	p, rest, err := decodePacking(b)
	if err == nil && (len(rest) > 0 || p.method == packedNot) {
		err = api.InvalidArgument("packed frame of method %d and %d bytes too many", p.method, len(rest))
	}
	if err == nil {
		_, err = p.open(io.Discard)
	}
	return p, err
}

// layoutPart is the most of a layout in one frame.
const layoutPart = 64 << 10

// encodeLayout makes the frames of a layout.
func encodeLayout(layout []byte) (out [][]byte) {
	for part := range slices.Chunk(layout, layoutPart) {
		out = append(out, frame(kindLayout, part...))
	}
	return out
}

// encodeChunks makes the frames of a recipe; the last one says so.
func encodeChunks(r chunk.Recipe) [][]byte {
	var out [][]byte
	for {
		n := min(len(r), maxChunks)
		last := byte(0)
		if n == len(r) {
			last = 1
		}
		out = append(out, frame(kindChunks, r[:n].Append([]byte{last})...))
		if r = r[n:]; last == 1 {
			return out
		}
	}
}

func decodeChunks(b []byte) (r chunk.Recipe, last bool, err error) {
	if len(b) == 0 {
		return nil, false, api.InvalidArgument("empty chunks frame")
	}
	r, err = chunk.Decode(b[1:])
	return r, b[0]&1 != 0, err
}

func encodeRate(bytes float64) []byte {
	return frame(kindRate, binary.BigEndian.AppendUint64(nil, uint64(max(bytes, 0)))...)
}

func decodeRate(b []byte) (float64, error) {
	if len(b) != 8 {
		return 0, api.InvalidArgument("rate frame of %d bytes", len(b))
	}
	return float64(binary.BigEndian.Uint64(b)), nil
}

// The first byte of a run says how its content is packed.
const (
	runZstd   = 1
	runPlanes = 2 // tokens in planes, each of them: its length (4 bytes), zstd
)

// encodePlanes packs tokens; it returns nothing if that is no use.
// The thorough encoder is for the planes where it gains more than it costs.
func encodePlanes(thorough, quick *zstd.Encoder, content []byte) []byte {
	p := tokens.Split(content)
	b := frame(kindRun, runPlanes)
	for _, plane := range []struct {
		z       *zstd.Encoder
		content []byte
	}{{quick, p.Gaps}, {thorough, p.Literals}, {quick, p.Lengths}, {thorough, p.Upper}, {quick, p.Lower}, {quick, p.Rest}} {
		at := len(b)
		b = plane.z.EncodeAll(plane.content, append(b, 0, 0, 0, 0))
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	n := len(b) - headerSize
	if n > 1+len(content) {
		return nil
	}
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	return b
}

// decodePlanes unpacks n bytes of tokens.
func decodePlanes(z *zstd.Decoder, b []byte, n int) ([]byte, error) {
	var p tokens.Planes
	for _, plane := range []*[]byte{&p.Gaps, &p.Literals, &p.Lengths, &p.Upper, &p.Lower, &p.Rest} {
		if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, api.InvalidArgument("run frame: planes are cut off")
		}
		end := 4 + binary.BigEndian.Uint32(b)
		var err error
		if *plane, err = z.DecodeAll(b[4:end], nil); err != nil {
			return nil, api.InvalidArgument("run frame: %w", err)
		}
		b = b[end:]
	}
	content, err := tokens.Join(p, n)
	if err != nil || len(b) > 0 {
		return nil, api.InvalidArgument("run frame: planes that don't fit each other, %d bytes too many: %w", len(b), err)
	}
	return content, nil
}

// encodeRun packs what a read asked for, compressed if that is shorter. Without an
// encoder it is sent as it is.
func encodeRun(z *zstd.Encoder, content []byte) []byte {
	b := frame(kindRun, make([]byte, 1, 1+len(content))...)
	if z != nil {
		b = z.EncodeAll(content, b)
	}
	if n := len(b) - headerSize - 1; n > 0 && n < len(content) {
		b[headerSize] = runZstd
	} else {
		b = append(b[:headerSize+1], content...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-headerSize))
	return b
}

// decodeRun unpacks the answer to a read of n bytes.
func decodeRun(z *zstd.Decoder, b []byte, n int) ([]byte, error) {
	if len(b) == 0 {
		return nil, api.InvalidArgument("empty run frame")
	}
	content := b[1:]
	var err error
	switch b[0] & (runZstd | runPlanes) {
	case runPlanes:
		return decodePlanes(z, content, n)
	case runZstd:

		if content, err = z.DecodeAll(content, make([]byte, 0, n)); err != nil {
			return nil, api.InvalidArgument("run frame: %w", err)
		}
	case runZstd | runPlanes:
		return nil, api.InvalidArgument("run frame packed in two ways")
	}
	if len(content) != n {
		return nil, api.InvalidArgument("run frame of %d bytes, %d were asked for", len(content), n)
	}
	return content, nil
}
