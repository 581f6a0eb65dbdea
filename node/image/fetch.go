package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// allowed asks whether this host may hold an image.
func (s *Store) allowed(ctx context.Context, image digest.Digest) error {
	if s.cfg.Allow == nil {
		return nil
	}
	return s.cfg.Allow(ctx, image)
}

// fetch makes the store hold a blob, which the caller has leased, by asking every
// fetcher in turn. NotFound if none has it. Callers that want a blob at once share
// the transfer.
func (s *Store) fetch(ctx context.Context, want ocispec.Descriptor) error {
	return s.fetchOr(ctx, want, nil)
}

// fetchOr is fetch that at last asks one fetcher more, which may be nil. If the
// transfer of another caller fails, who may have had less to show to a registry, a
// caller tries for itself.
func (s *Store) fetchOr(ctx context.Context, want ocispec.Descriptor, last transfer.Fetcher) error {
	if err := checkDigest(want.Digest); err != nil {
		return err
	}
	for {
		if s.has(want.Digest) {
			return nil
		}
		var mine atomic.Bool
		err := s.fetches.do(ctx, want.Digest, func(ctx context.Context) error {
			mine.Store(true)
			return s.fetchNow(ctx, want, last)
		})
		if err == nil || mine.Load() || last == nil || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Store) fetchNow(ctx context.Context, want ocispec.Descriptor, last transfer.Fetcher) error {
	fetchers := s.cfg.Fetchers
	if last != nil && s.cfg.Through != nil {
		last = s.cfg.Through(last)
	}
	if last != nil {
		fetchers = append(slices.Clone(fetchers), last)
	}
	var failed []error
	for i, f := range fetchers {
		if s.has(want.Digest) {
			return nil
		}
		err := f.Fetch(ctx, s, want, func(n int64) { s.watched.tell(want.Digest, n) })
		switch {
		case err == nil && !s.has(want.Digest):
			err = api.Internal("fetcher %d says that it fetched blob %s, but it is not here", i, want.Digest)
		case err == nil || errdefs.IsAlreadyExists(err):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errdefs.IsNotFound(err):
			continue
		}
		s.log.Warn("fetch failed", "blob", want.Digest, "fetcher", i, "error", err)
		failed = append(failed, err)
	}
	if s.has(want.Digest) { // came by another way meanwhile
		return nil
	}
	if len(failed) > 0 {
		return fmt.Errorf("fetch blob %s: %w", want.Digest, errors.Join(failed...))
	}
	return api.NotFound("nobody has blob %s", want.Digest)
}

// watchers are told how far blobs are that are being fetched. What they do must not
// block.
type watchers struct {
	mu sync.Mutex
	m  map[digest.Digest]map[*func(int64)]struct{}
}

// add makes f be told; the function returned ends that.
func (w *watchers) add(d digest.Digest, f func(int64)) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[digest.Digest]map[*func(int64)]struct{}{}
	}
	if w.m[d] == nil {
		w.m[d] = map[*func(int64)]struct{}{}
	}
	w.m[d][&f] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.m[d], &f)
		if len(w.m[d]) == 0 {
			delete(w.m, d)
		}
	}
}

func (w *watchers) tell(d digest.Digest, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.m[d] {
		(*f)(n)
	}
}

// arriving reads a blob while it is fetched, from its first bytes on.
type arriving struct{ *follower }

// arrival is a blob that one pull fetches.
type arrival struct {
	once  sync.Once
	begun chan struct{} // closed: there are bytes to read, or the fetch ended
	ended chan struct{} // closed: err is set
	err   error
}

func newArrival() *arrival {
	return &arrival{begun: make(chan struct{}), ended: make(chan struct{})}
}

// begin says that there are bytes to read.
func (a *arrival) begin() { a.once.Do(func() { close(a.begun) }) }

// end says how the fetch ended.
func (a *arrival) end(err error) {
	a.err = err
	close(a.ended)
	a.begin()
}

// open waits until there is something to read and reads it: as it arrives if that is
// possible, else whole.
func (a *arrival) open(ctx context.Context, s *Store, d digest.Digest) (io.ReadCloser, error) {
	select {
	case <-a.begun:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if p := s.following(d); p != nil {
		if f := p.follow(ctx); f != nil {
			return &arriving{f}, nil
		}
	}
	select {
	case <-a.ended:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.err != nil {
		return nil, a.err
	}
	return s.open(d)
}
