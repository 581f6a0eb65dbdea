package transfer

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// calm is how long nothing may have changed before blobs are cut ahead: who has got an
// image starts containers of it first, and others may still be fetching it.
const calm = 10 * time.Second

// Prepare cuts the blobs of a store ahead, so that updates find what is alike at once.
// It takes one thread that yields to others. It returns when ctx ends.
func (p *Peers) Prepare(ctx context.Context, store Store) {
	lister, ok := store.(Lister)
	if !ok || p.recipes == nil {
		return
	}
	for {
		if err := p.prepare(ctx, store, lister); err != nil && ctx.Err() == nil {
			p.log.Warn("cut blobs into chunks ahead", "err", err)
		}
		select {
		case <-p.due:
		case <-ctx.Done():
			return
		}
		for quiet := false; !quiet; {
			select {
			case <-p.due:
			case <-time.After(calm):
				quiet = true
			case <-ctx.Done():
				return
			}
		}
	}
}

// Changed says that the store may hold other blobs than before. It doesn't block.
func (p *Peers) Changed() {
	select {
	case p.due <- struct{}{}:
	default:
	}
}

// prepare cuts what isn't cut, and forgets what is gone.
func (p *Peers) prepare(ctx context.Context, store Store, lister Lister) error {
	held := map[digest.Digest]int64{}
	for b, err := range lister.Blobs(ctx) {
		if err != nil {
			return err
		}
		held[b.Digest] = b.Size
	}
	if err := p.recipes.prune(held); err != nil {
		return err
	}
	for d, size := range held {
		for _, by := range []form{byTokens, byContent} {
			if size < minDelta || size > maxDelta || p.recipes.made(d, by) {
				continue
			}
			if _, err := p.recipes.of(ctx, store, d, by); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				p.log.Debug("cut a blob into chunks ahead", "digest", d.String(), "err", err)
			}
		}
	}
	return nil
}
