package image

import (
	"context"
	"iter"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/transfer"
)

var _ transfer.Lister = (*Store)(nil)

// Blobs yields the blobs that are held whole; see transfer.Lister. Those that come or
// go meanwhile may be missed.
func (s *Store) Blobs(ctx context.Context) iter.Seq2[ocispec.Descriptor, error] {
	return func(yield func(ocispec.Descriptor, error) bool) {
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "blobs", "sha256"))
		if err != nil {
			yield(ocispec.Descriptor{}, err)
			return
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				continue
			}
			d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			desc, err := s.Stat(ctx, d)
			if err == nil && !yield(desc, nil) {
				return
			}
		}
	}
}
