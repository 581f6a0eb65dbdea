package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/chunk"
)

// Vouched is a blob that is read in parts before it is here: a peer that holds it whole
// has said what its chunks' sums are, so that each part can be proven by that peer's
// word. Whether the word is true only the whole blob's digest shows. Methods may be
// called concurrently.
type Vouched struct {
	f      *fetch
	peer   string
	chunks chunk.Recipe
	starts []int64 // of the chunks, and the end of the last

	mu     sync.Mutex
	idle   []*holder // sessions that nobody uses
	closed bool
}

// idleReads is how many sessions are kept for further reads.
const idleReads = 4

// Vouch asks holders of a blob for the sums of its chunks. NotFound if nobody tells
// them, as of blobs that are small, huge or compressed. The caller closes.
func (p *Peers) Vouch(ctx context.Context, want ocispec.Descriptor) (*Vouched, error) {
	pieces, err := countPieces(want.Size)
	if err != nil || p.recipes == nil || want.Size < minDelta || want.Size > maxDelta {
		return nil, api.NotFound("nobody vouches for parts of blob %s", want.Digest)
	}
	f := &fetch{p: p, digest: want.Digest, size: want.Size, pieces: pieces}
	holders, a := f.askRecipe(ctx, byContent)
	if holders == nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, api.NotFound("nobody vouches for parts of blob %s", want.Digest)
	}
	v := &Vouched{f: f, peer: a.h.id, chunks: a.recipe.chunks, idle: []*holder{a.h}}
	if a.recipe.packing.method != packedNot || len(v.chunks) == 0 {
		v.Close()
		return nil, api.NotFound("blob %s is compressed: nobody vouches for parts of it", want.Digest)
	}
	at := int64(0)
	for _, c := range v.chunks {
		v.starts = append(v.starts, at)
		at += int64(c.Len)
	}
	v.starts = append(v.starts, at)
	return v, nil
}

// Peer is who vouches.
func (v *Vouched) Peer() string { return v.peer }

// Close ends its sessions.
func (v *Vouched) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, h := range v.idle {
		h.close()
	}
	v.idle = nil
}

// Around are the chunks that a range touches, as the index of the first and of the one
// behind the last, and where they begin and end.
func (v *Vouched) Around(at, end int64) (first, last int, from, to int64) {
	first, found := slices.BinarySearch(v.starts, at)
	if !found {
		first--
	}
	last, _ = slices.BinarySearch(v.starts, end)
	first, last = max(0, min(first, len(v.chunks))), min(last, len(v.chunks))
	return first, last, v.starts[first], v.starts[last]
}

// Chunk is where a chunk begins and ends.
func (v *Vouched) Chunk(i int) (at, end int64) { return v.starts[i], v.starts[i+1] }

// Proves says whether b is what a chunk has to be.
func (v *Vouched) Proves(i int, b []byte) bool {
	c := v.chunks[i]
	return len(b) == int(c.Len) && chunk.SumOf(b) == c.Sum
}

// MaxRead is how many bytes one Read may be of.
const MaxRead = maxRun

// Read reads chunks, MaxRead bytes of them at most, and proves them. It asks one holder
// after the other.
func (v *Vouched) Read(ctx context.Context, first, last int) ([]byte, error) {
	r := read{v.starts[first], int(v.starts[last] - v.starts[first])}
	if r.len <= 0 || r.len > maxRun {
		return nil, api.InvalidArgument("read of %d bytes", r.len)
	}
	var failed []error
	for range idleReads { // sessions that were idle may have ended
		h := v.take()
		if h == nil {
			break
		}
		b, err := v.readFrom(ctx, h, r, first, last)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, err)
	}
	for _, id := range v.holders(ctx) {
		h, err := v.f.openDelta(ctx, id, delta{})
		if err == nil {
			var b []byte
			if b, err = v.readFrom(ctx, h, r, first, last); err == nil {
				return b, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, fmt.Errorf("peer %s: %w", id, err))
	}
	return nil, api.Unavailable("read %d bytes of blob %s: no peer gives them: %w", r.len, v.f.digest, errors.Join(failed...))
}

// take is a session that is idle, or nil.
func (v *Vouched) take() *holder {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := len(v.idle) - 1
	if k < 0 {
		return nil
	}
	h := v.idle[k]
	v.idle = v.idle[:k]
	return h
}

// leave keeps a session for the next read.
func (v *Vouched) leave(h *holder) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || len(v.idle) == idleReads {
		h.close()
		return
	}
	v.idle = append(v.idle, h)
}

// holders are the peers to ask, the one that vouches first.
func (v *Vouched) holders(ctx context.Context) []string {
	var ids []string
	for peer, err := range v.f.p.cfg.Locator.Find(ctx, v.f.digest) {
		if err != nil || len(ids) == maxAsked {
			break
		}
		if peer.ID != v.f.p.cfg.Self && !v.f.p.isBanned(peer.ID) && !slices.Contains(ids, peer.ID) {
			ids = append(ids, peer.ID)
		}
	}
	slices.SortStableFunc(ids, func(a, b string) int {
		return cmp.Compare(boolInt(a != v.peer), boolInt(b != v.peer))
	})
	return ids
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// readFrom reads from one holder; the session is kept if that went well.
func (v *Vouched) readFrom(ctx context.Context, h *holder, r read, first, last int) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { h.conn.Close() })
	b, err := v.exchange(h, r)
	if stop() && err == nil {
		if err = v.prove(h.id, b, first, last); err == nil {
			v.leave(h)
			return b, nil
		}
	}
	h.close()
	return b, cmp.Or(err, ctx.Err())
}

func (v *Vouched) exchange(h *holder, r read) ([]byte, error) {
	h.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := h.conn.Write(r.encode()); err != nil {
		return nil, err
	}
	body, err := h.readRunBody(silence)
	if err != nil {
		return nil, err
	}
	return decodeRun(v.f.p.unpacker, body, r.len)
}

// prove compares what a holder sent with the chunks' sums. Who contradicts its own word
// is shunned; of two who contradict each other it isn't known who lies.
func (v *Vouched) prove(id string, b []byte, first, last int) error {
	for i := first; i < last; i++ {
		n := int(v.chunks[i].Len)
		if !v.Proves(i, b[:n]) {
			v.f.wrongBytes(id, id == v.peer)
			return errors.New("a chunk isn't what the chunk list says")
		}
		b = b[n:]
	}
	return nil
}

// Blame reports who vouched, once the whole blob has shown that the word was false.
func (v *Vouched) Blame() { v.f.wrongBytes(v.peer, true) }

// Arrived tells the fetch of a blob, if one is under way, that a range of it was written
// by another way, so that it needn't be fetched.
func (p *Peers) Arrived(d digest.Digest, at, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fetches[d]
	if f == nil || f.progress == nil {
		return
	}
	size := pieceSize(f.size)
	for i := int((at + size - 1) / size); i < f.pieces && pieceAt(f.size, i)+int64(pieceLen(f.size, i)) <= end; i++ {
		f.progress.addOutside(i)
	}
}

// wantedBeyond is how much behind a range that is being read the swarm leaves alone, too:
// who reads on gets there before pieces that are asked for now.
const wantedBeyond = 2 << 20

// Wanted tells the fetch of a blob that a range of it is being read by another way, so
// that it fetches other pieces first.
func (p *Peers) Wanted(d digest.Digest, at, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fetches[d]
	if f == nil || f.progress == nil || end <= at {
		return
	}
	size := pieceSize(f.size)
	f.progress.spare(int(at/size), min(f.pieces, int((end+wantedBeyond+size-1)/size)))
}

// onHere notes a piece that is here without having been sent by a peer of the swarm.
func (s *swarm) onHere(piece int) {
	if !s.missing.has(piece) {
		return
	}
	s.missing.unset(piece)
	s.left--
	s.top = max(s.top, piece+1)
	s.done += int64(pieceLen(s.f.size, piece))
	s.lastNews = time.Now()
}
