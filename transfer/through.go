package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// through is a source that the members of a cluster ask one at a time.
type through struct {
	p      *Peers
	source Fetcher
}

// Through makes a fetcher of a source that is outside of the cluster, such as a
// registry: of all nodes that want a blob at once, one asks the source, and the others
// get from it what has arrived so far. If it fails, another goes on where it ended. Each
// node asks its own source, with its own rights; what its source answered is the error
// if nobody else gets the blob either.
//
// It is for blobs that peers were asked for in vain. Those whose size isn't known are
// asked of the source directly.
func (p *Peers) Through(source Fetcher) Fetcher { return &through{p, source} }

// Fetch implements Fetcher.
func (t *through) Fetch(ctx context.Context, dst Store, want ocispec.Descriptor, progress func(done int64)) error {
	if want.Size <= 0 || want.Digest.Validate() != nil || !t.p.hasOthers() {
		return t.source.Fetch(ctx, dst, want, progress)
	}
	pieces, err := countPieces(want.Size)
	if err != nil {
		return api.InvalidArgument("fetch blob %s: %w", want.Digest, err)
	}
	for {
		f, first := t.p.begin(want, pieces)
		if first {
			f.err = t.fetch(ctx, f, dst, want, progress)
			t.p.finish(f)
			return f.err
		}
		select {
		case <-f.done:
			if f.err == nil {
				return nil
			}
			// Whoever fetched it may have had less to show to the source.
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hasOthers says whether there is anybody to take turns with.
func (p *Peers) hasOthers() bool {
	return p.cfg.Members != nil && slices.ContainsFunc(p.cfg.Members(), func(id string) bool { return id != p.cfg.Self })
}

// deskOrder is in which order members are asked whose turn it is, the same on all nodes
// that see the same members.
func deskOrder(d digest.Digest, members []string) []string {
	rank := make(map[string]uint64, len(members))
	for _, id := range members {
		sum := sha256.Sum256([]byte(string(d) + " " + id))
		rank[id] = binary.BigEndian.Uint64(sum[:])
	}
	order := slices.Clone(members)
	slices.SortFunc(order, func(a, b string) int { return cmp.Or(cmp.Compare(rank[b], rank[a]), cmp.Compare(a, b)) })
	return slices.Compact(order)
}

// fetch takes the blob from peers and, in its turn, from the source.
func (t *through) fetch(ctx context.Context, f *fetch, dst Store, want ocispec.Descriptor, report func(int64)) error {
	w, err := dst.Ingest(ctx, want)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	g, resumed := f.open(w)
	defer g.end()
	s := newSwarm(f, g, w, "", report, f.newNotes(resumed))
	s.awaits = true
	k := newTaker(t, f, s, dst, want)
	err = k.during(ctx, func() error {
		if err := s.run(ctx); err != nil {
			return err
		}
		k.arrived()
		return w.Commit(ctx)
	})
	switch {
	case err == nil:
		for id, verified := range s.notes.rejected {
			f.wrongBytes(id, verified)
		}
	case errdefs.IsDataLoss(err) && k.failed == nil:
		// Peers are no help with this blob.
		f.p.log.Warn("a blob from peers doesn't match its digest; asking its source", "digest", f.digest.String(), "err", err)
		if err = t.source.Fetch(ctx, dst, want, report); err == nil {
			err = f.blame(ctx, dst, s.notes)
		}
	case k.failed != nil && ctx.Err() == nil:
		err = k.failed
	}
	return err
}

// during runs fetch with the taker beside it.
func (k *taker) during(ctx context.Context, fetch func() error) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.run(ctx) })
	err := fetch()
	k.end(err == nil)
	return err
}
