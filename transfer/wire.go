package transfer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/chunk"
)

// Protocol is what Serve expects to listen to and PeersConfig.Dial to open. A change
// that an older peer would misread gets a new number.
const Protocol = "/shoal/blobs/3"

const (
	minPiece = 32 << 10
	maxPiece = 1 << 20

	// dataSize is how much of a piece goes in one frame and one write. News go between
	// frames, so that they don't wait for a whole piece.
	dataSize = 128 << 10

	// maxPieces bounds bitmaps to 32 KiB and blobs to 256 GiB.
	maxPieces    = 256 << 10
	maxDigestLen = 256
	maxPeerLen   = 128
	maxPeers     = 64
	maxMore      = 4096
)

// The kinds of frames; the numbers are on the wire and never get another meaning.
const (
	kindWant    = 1  // asker: flags, size, digest
	kindGet     = 2  // asker: piece
	kindNext    = 3  // asker: bitmap of pieces, any of which will do
	kindAsk     = 4  // asker, first and only: digest of a blob whose size it doesn't know
	kindDelta   = 5  // asker, first: flags, size, digest; opens a delta session
	kindRead    = 6  // asker, in a delta session: offset, length
	kindTurn    = 7  // asker, first: flags, digest; opens a session about who asks a source
	kindStand   = 8  // asker, in such a session: flags
	kindRate    = 9  // asker, in a delta session: how fast it gets bytes
	kindCheck   = 10 // asker: tell me the pieces' sums
	kindOutline = 11 // asker, first and only: size, digest; what of a tar isn't files' contents?
	kindHave    = 16
	kindMore    = 17
	kindPeers   = 18
	kindData    = 19
	kindNone    = 20
	kindSize    = 21 // answers an ask: the size of a blob that is held whole
	kindChunks  = 22 // answers a delta: flags, chunks
	kindRun     = 23 // answers a read: flags, content
	kindSums    = 24 // holder: CRC-32C of every piece, once it has read them
	kindWhose   = 26 // answers turn and stand: state, peers
	kindPacked  = 25 // holder, before sums and chunks: how the blob's content is compressed
	kindLayout  = 27 // holder, after packed: a part of the layout that goes with tokens
)

// A frame is its kind in a byte, the length of its body in four (big endian), and the
// body.
const headerSize = 5

// Want opens a session.
type want struct {
	digest   digest.Digest
	size     int64
	fetching bool // the asker passes on what it gets; others may be told
	packed   bool // in a delta: the asker can compress again
	tokens   bool // in a delta: the asker can make a blob of its tokens
}

// Have says what the holder has.
type have struct {
	state  byte
	pieces bitmap // only of stateSome
}

const (
	stateNone  = 0 // nothing, or nothing any more: the session ends
	stateSome  = 1 // the pieces of the bitmap, not verified as a whole
	stateWhole = 2 // all, verified
	stateBusy  = 3 // something, but not now: the session ends
)

// dataHead precedes the bytes of a data frame.
type dataHead struct {
	piece    uint32
	verified bool // read from a blob that is held whole
	last     bool // the piece's last frame
}

const dataHeadSize = 5

// noPiece is the piece of a none frame that answers a next.
const noPiece = ^uint32(0)

// bodyLimit is the most bytes a frame of a kind may have.
func bodyLimit(kind byte) int {
	switch kind {
	case kindWant, kindDelta:
		return 9 + maxDigestLen
	case kindOutline:
		return 8 + maxDigestLen
	case kindGet, kindNone:
		return 4
	case kindRead:
		return 12
	case kindTurn:
		return 1 + maxDigestLen
	case kindStand:
		return 1
	case kindWhose:
		return 1 + maxPeers*(1+maxPeerLen)
	case kindSums:
		return 4 * maxPieces
	case kindPacked:
		return packingSize + maxHeader
	case kindLayout:
		return layoutPart
	case kindChunks:
		return 1 + maxChunks*chunk.EntrySize
	case kindRun:
		return 1 + maxRun
	case kindCheck:
		return 0
	case kindAsk:
		return maxDigestLen
	case kindSize, kindRate:
		return 8
	case kindNext:
		return maxPieces / 8
	case kindHave:
		return 1 + maxPieces/8
	case kindMore:
		return 4 * maxMore
	case kindPeers:
		return maxPeers * (1 + maxPeerLen)
	case kindData:
		return dataHeadSize + dataSize
	}
	return -1
}

// readHeader reads a frame's header; a length beyond its kind's is an error.
func readHeader(r io.Reader) (kind byte, size int, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, err
	}
	kind = h[0]
	n := binary.BigEndian.Uint32(h[1:])
	limit := bodyLimit(kind)
	if limit < 0 {
		return 0, 0, api.InvalidArgument("frame of unknown kind %d", kind)
	}
	if n > uint32(limit) {
		return 0, 0, api.InvalidArgument("frame of kind %d has %d bytes, at most %d are allowed", kind, n, limit)
	}
	return kind, int(n), nil
}

// readFrame reads a frame that isn't data.
func readFrame(r *bufio.Reader) (kind byte, body []byte, err error) {
	kind, n, err := readHeader(r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, unexpected(err)
	}
	return kind, body, nil
}

// unexpected makes an end inside a frame an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// frame puts a header before a body.
func frame(kind byte, body ...byte) []byte {
	b := make([]byte, headerSize, headerSize+len(body))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(len(body)))
	return append(b, body...)
}

func (w want) encode() []byte {
	b := make([]byte, 9, 9+len(w.digest))
	if w.fetching {
		b[0] = 1
	}
	if w.packed {
		b[0] |= 2
	}
	if w.tokens {
		b[0] |= 4
	}
	binary.BigEndian.PutUint64(b[1:], uint64(w.size))
	return frame(kindWant, append(b, w.digest...)...)
}

func decodeWant(b []byte) (want, error) {
	if len(b) < 9 {
		return want{}, api.InvalidArgument("want frame of %d bytes", len(b))
	}
	w := want{
		fetching: b[0]&1 != 0, packed: b[0]&2 != 0, tokens: b[0]&4 != 0,
		size: int64(binary.BigEndian.Uint64(b[1:])), digest: digest.Digest(b[9:]),
	}
	if err := w.digest.Validate(); err != nil {
		return want{}, api.InvalidArgument("want frame: digest: %w", err)
	}
	if _, err := countPieces(w.size); err != nil {
		return want{}, fmt.Errorf("want frame: %w", err)
	}
	return w, nil
}

func encodePiece(kind byte, piece uint32) []byte {
	return frame(kind, binary.BigEndian.AppendUint32(nil, piece)...)
}

func decodePiece(b []byte) (uint32, error) {
	if len(b) != 4 {
		return 0, api.InvalidArgument("piece number of %d bytes", len(b))
	}
	return binary.BigEndian.Uint32(b), nil
}

func (h have) encode() []byte {
	return frame(kindHave, append([]byte{h.state}, h.pieces...)...)
}

func decodeHave(b []byte, pieces int) (have, error) {
	if len(b) == 0 || b[0] > stateBusy {
		return have{}, api.InvalidArgument("have frame without a known state")
	}
	h := have{state: b[0]}
	if h.state != stateSome {
		return h, nil
	}
	var err error
	h.pieces, err = decodeBitmap(b[1:], pieces)
	return h, err
}

func encodeMore(pieces []uint32) []byte {
	b := make([]byte, 0, 4*len(pieces))
	for _, p := range pieces {
		b = binary.BigEndian.AppendUint32(b, p)
	}
	return frame(kindMore, b...)
}

func decodeMore(b []byte, pieces int) ([]int, error) {
	if len(b)%4 != 0 {
		return nil, api.InvalidArgument("more frame of %d bytes", len(b))
	}
	out := make([]int, 0, len(b)/4)
	for ; len(b) > 0; b = b[4:] {
		p := binary.BigEndian.Uint32(b)
		if p >= uint32(pieces) {
			return nil, api.InvalidArgument("more frame: piece %d of %d", p, pieces)
		}
		out = append(out, int(p))
	}
	return out, nil
}

func decodeSums(b []byte, pieces int) ([]uint32, error) {
	if len(b) != 4*pieces {
		return nil, api.InvalidArgument("sums frame of %d bytes for %d pieces", len(b), pieces)
	}
	out := make([]uint32, pieces)
	for i := range out {
		out[i] = binary.BigEndian.Uint32(b[4*i:])
	}
	return out, nil
}

func encodePeers(ids []string) []byte {
	var b []byte
	for _, id := range ids[:min(len(ids), maxPeers)] {
		if len(id) > 0 && len(id) <= maxPeerLen {
			b = append(append(b, byte(len(id))), id...)
		}
	}
	return frame(kindPeers, b...)
}

func decodePeers(b []byte) ([]string, error) {
	var out []string
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 || n > maxPeerLen || len(b) < 1+n || len(out) == maxPeers {
			return nil, api.InvalidArgument("peers frame: bad entry")
		}
		out = append(out, string(b[1:1+n]))
		b = b[1+n:]
	}
	return out, nil
}

// putDataHead fills the header and head of a data frame with n bytes of content.
func putDataHead(b []byte, d dataHead, n int) {
	b[0] = kindData
	binary.BigEndian.PutUint32(b[1:], uint32(dataHeadSize+n))
	binary.BigEndian.PutUint32(b[headerSize:], d.piece)
	b[headerSize+4] = 0
	if d.verified {
		b[headerSize+4] |= 1
	}
	if d.last {
		b[headerSize+4] |= 2
	}
}

// readDataHead reads what precedes the content of a data frame of size bytes.
func readDataHead(r io.Reader, size, pieces int) (dataHead, int, error) {
	var b [dataHeadSize]byte
	if size <= dataHeadSize {
		return dataHead{}, 0, api.InvalidArgument("data frame of %d bytes", size)
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return dataHead{}, 0, unexpected(err)
	}
	d := dataHead{piece: binary.BigEndian.Uint32(b[:]), verified: b[4]&1 != 0, last: b[4]&2 != 0}
	if d.piece >= uint32(pieces) {
		return dataHead{}, 0, api.InvalidArgument("data frame: piece %d of %d", d.piece, pieces)
	}
	return d, size - dataHeadSize, nil
}

// manyPieces is how many whole pieces a blob has at most, unless even pieces of maxPiece
// are more.
const manyPieces = 1024

// pieceSize is the unit in which a blob is asked for and passed on; both sides must
// come to the same. Small pieces spread sooner, large ones cost fewer requests: there
// shall be some hundreds of a blob that is worth the trouble.
func pieceSize(size int64) int64 {
	unit := int64(minPiece)
	for unit < maxPiece && size/unit > manyPieces {
		unit *= 2
	}
	return unit
}

// countPieces is into how many pieces a blob is cut.
func countPieces(size int64) (int, error) {
	if size < 0 || size > maxPieces*maxPiece {
		return 0, api.InvalidArgument("blob of %d bytes: at most %d can be transferred", size, int64(maxPieces*maxPiece))
	}
	unit := pieceSize(size)
	return int((size + unit - 1) / unit), nil
}

// pieceAt is where in the blob a piece begins.
func pieceAt(size int64, piece int) int64 { return int64(piece) * pieceSize(size) }

// pieceLen is the length of a piece; the last may be shorter.
func pieceLen(size int64, piece int) int {
	return int(min(pieceSize(size), size-pieceAt(size, piece)))
}

// bitmap is a set of pieces, the first in the lowest bit of the first byte.
type bitmap []byte

func newBitmap(pieces int) bitmap { return make(bitmap, (pieces+7)/8) }

func decodeBitmap(b []byte, pieces int) (bitmap, error) {
	if len(b) != (pieces+7)/8 {
		return nil, api.InvalidArgument("bitmap of %d bytes for %d pieces", len(b), pieces)
	}
	if rest := pieces % 8; rest != 0 && b[len(b)-1]>>rest != 0 {
		return nil, api.InvalidArgument("bitmap has pieces beyond %d", pieces)
	}
	return bitmap(b), nil
}

func (b bitmap) has(i int) bool { return b[i/8]>>(i%8)&1 != 0 }
func (b bitmap) set(i int)      { b[i/8] |= 1 << (i % 8) }
func (b bitmap) unset(i int)    { b[i/8] &^= 1 << (i % 8) }

func (b bitmap) count() int {
	n := 0
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}
