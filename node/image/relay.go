package image

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/transfer"
)

// Fetch makes the store hold one blob, which whole, a manifest or an index, is or
// leads to; NotFound if nobody has it, and Config.Allow's error if this host may not. No image keeps it: it is swept like the
// left-overs of a transfer unless it is held.
func (s *Store) Fetch(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) error {
	if whole == "" {
		whole = want.Digest
	}
	if err := s.allowed(ctx, whole); err != nil {
		return err
	}
	release := s.Hold(want.Digest)
	defer release()
	return s.fetch(transfer.PartOf(ctx, whole), bare(want))
}

// Relay is Fetch for whoever wants to read the blob from its first byte on while it
// comes. What is read is not verified before it ends with io.EOF. The caller closes,
// which ends the fetch unless others wait for the blob.
func (s *Store) Relay(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) (io.ReadCloser, error) {
	if s.has(want.Digest) {
		return s.open(want.Digest)
	}
	ctx, cancel := context.WithCancel(ctx)
	a := newArrival()
	unwatch := s.watched.add(want.Digest, func(int64) { a.begin() })
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		defer unwatch()
		a.end(s.Fetch(ctx, want, whole))
	}()
	stop := func() {
		cancel()
		<-fetched
	}
	r, err := a.open(ctx, s, want.Digest)
	if err != nil {
		stop()
		return nil, err
	}
	return &relay{r, stop}, nil
}

// relay ends its fetch when it is closed.
type relay struct {
	io.ReadCloser
	stop func()
}

func (r *relay) Close() error {
	err := r.ReadCloser.Close()
	r.stop()
	return err
}
