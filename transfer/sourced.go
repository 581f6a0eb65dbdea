package transfer

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// skipOver is how much that is here already makes it worth to end a request to a source
// and to make another one behind it.
const skipOver = 4 << 20

// maxIdle is how often a source may say that it gave the blob while a piece is missing:
// it may be one that a peer is just sending, but not for long.
const maxIdle = 20

// ask asks the source for what is missing until nothing is.
func (k *taker) ask(ctx context.Context) error {
	idle := 0
	for gap := -1; ; {
		before := gap
		if gap = k.s.progress.gap(0); gap == k.f.pieces || ctx.Err() != nil {
			return ctx.Err()
		}
		if idle++; gap != before {
			idle = 0
		}
		if idle == maxIdle {
			return api.Internal("the source says that it gave blob %s, but piece %d of it is not here", k.f.digest, gap)
		}
		if idle > 0 && !wait(ctx, tick) {
			return ctx.Err()
		}
		one, cancel := context.WithCancel(ctx)
		a := &asked{Store: k.dst, k: k, ctx: ctx, cancel: cancel}
		err := k.source.Fetch(one, a, k.want, nil)
		cancel()
		if err != nil && !a.skipped && ctx.Err() == nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// asked is the store as a source sees it: the blob is missing from its first gap on.
// What the source writes is known to peers piece by piece. It may end a request by
// cancelling its context.
type asked struct {
	Store
	k       *taker
	ctx     context.Context // of all requests
	cancel  context.CancelFunc
	skipped bool
}

// Ingest implements Store.
func (a *asked) Ingest(ctx context.Context, want ocispec.Descriptor) (Writer, error) {
	if want.Digest != a.k.f.digest {
		return a.Store.Ingest(ctx, want)
	}
	gap := a.k.s.progress.gap(0)
	if gap == a.k.f.pieces {
		return nil, api.Errorf(errdefs.ErrAlreadyExists, "blob %s is already here", want.Digest)
	}
	at := pieceAt(a.k.f.size, gap)
	return &sourced{asked: a, offset: at, pos: at, piece: -1}, nil
}

// sourced writes what comes from a source into a fetch under way.
type sourced struct {
	*asked
	offset, pos int64
	piece       int   // being written, or -1
	to          int64 // up to where it is
}

// Offset implements Writer, as do the other methods.
func (w *sourced) Offset() int64 { return w.offset }

func (w *sourced) ReadAt(b []byte, off int64) (int, error) { return w.k.s.w.ReadAt(b, off) }

func (w *sourced) Write(b []byte) (int, error) {
	n, err := w.WriteAt(b, w.pos)
	w.pos += int64(n)
	return n, err
}

// WriteAt leaves out pieces that are here, and those of which only the end comes.
func (w *sourced) WriteAt(b []byte, off int64) (int, error) {
	size := w.k.f.size
	if off < 0 || off+int64(len(b)) > size {
		return 0, api.InvalidArgument("blob %s: has more than %d bytes", w.k.f.digest, size)
	}
	w.k.came.Add(int64(len(b)))
	done := 0
	for done < len(b) {
		at := off + int64(done)
		piece := int(at / pieceSize(size))
		n := int(min(int64(len(b)-done), pieceAt(size, piece)+int64(pieceLen(size, piece))-at))
		if err := w.writeIn(piece, b[done:done+n], at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// writeIn writes within one piece.
func (w *sourced) writeIn(piece int, b []byte, at int64) error {
	g, size := w.k.s.progress, w.k.f.size
	start := pieceAt(size, piece)
	if at == start {
		w.piece, w.to = piece, start
		if g.has(piece) {
			w.piece = -1
			return w.skip(piece)
		}
	}
	if w.piece != piece || w.to != at {
		return nil
	}
	if _, err := w.k.s.w.WriteAt(b, at); err != nil {
		return w.k.s.post(w.ctx, func() { w.k.s.fail(err) })
	}
	if w.to += int64(len(b)); w.to < start+int64(pieceLen(size, piece)) {
		return nil
	}
	w.piece = -1
	if !g.claim(piece) {
		return nil // a peer's copy is being written, or was
	}
	g.add(piece)
	return w.k.s.post(w.ctx, func() { w.k.s.onSourced(piece) })
}

// skip ends the request if what comes next is here for long.
func (w *sourced) skip(piece int) error {
	gap := w.k.s.progress.gap(piece)
	if gap < w.k.f.pieces && int64(gap-piece)*pieceSize(w.k.f.size) < skipOver {
		return nil
	}
	w.skipped = true
	w.cancel()
	return context.Canceled
}

// Commit leaves it to the fetch to verify the blob.
func (w *sourced) Commit(context.Context) error { return nil }

// Close and Abort leave what was written to the fetch.
func (w *sourced) Close() error { return nil }
func (w *sourced) Abort() error { return nil }
