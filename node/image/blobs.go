package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

var _ transfer.Store = (*Store)(nil)

// ingests are the blobs that are arriving, one writer each.
type ingests struct {
	mu    sync.Mutex
	m     map[digest.Digest]*partial
	early map[digest.Digest]*earlyBlob // those that containers read already
}

// blobPath is where a blob lies once it is held whole.
func (s *Store) blobPath(d digest.Digest) string {
	return filepath.Join(s.cfg.Root, "blobs", "sha256", d.Encoded())
}

// ingestPath is where a blob lies while it arrives; with ingests.mu held.
func (s *Store) ingestPath(d digest.Digest) string {
	if s.ingests.early[d] != nil {
		return s.earlyPath(d, "data")
	}
	return filepath.Join(s.cfg.Root, "ingest", d.Encoded())
}

// checkDigest refuses what can't name a blob here.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return api.InvalidArgument("invalid digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return api.InvalidArgument("invalid digest %q: only sha256 is kept", d)
	}
	return nil
}

// Stat describes a blob that is held whole; NotFound otherwise.
func (s *Store) Stat(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	if err := checkDigest(d); err != nil {
		return ocispec.Descriptor{}, err
	}
	fi, err := os.Stat(s.blobPath(d))
	if err != nil {
		return ocispec.Descriptor{}, blobError(d, err)
	}
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: fi.Size()}, nil
}

// has says whether a blob is held whole.
func (s *Store) has(d digest.Digest) bool {
	_, err := s.Stat(context.Background(), d)
	return err == nil
}

// Open reads a blob that is held whole; the caller closes. A blob that is removed
// meanwhile stays readable.
func (s *Store) Open(_ context.Context, d digest.Digest) (transfer.Blob, error) {
	return s.open(d)
}

func (s *Store) open(d digest.Digest) (*blob, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return nil, blobError(d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, blobError(d, err)
	}
	return &blob{f, fi.Size()}, nil
}

// read returns a whole blob of at most limit bytes.
func (s *Store) read(d digest.Digest, limit int64) ([]byte, error) {
	b, err := s.open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.size > limit {
		return nil, api.InvalidArgument("blob %s: %d bytes are more than the %d allowed", d, b.size, limit)
	}
	buf := make([]byte, b.size)
	if _, err := b.ReadAt(buf, 0); err != nil && b.size > 0 {
		return nil, blobError(d, err)
	}
	return buf, nil
}

// blobError names the blob and gives the error its class.
func blobError(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return api.NotFound("blob %s is not here", d)
	}
	return api.Internal("blob %s: %w", d, err)
}

type blob struct {
	*os.File
	size int64
}

func (b *blob) Size() int64 { return b.size }

// Ingest begins, or resumes, the writing of a blob; see transfer.Store. A size of 0
// is an unknown one: such a blob may have as many bytes as a manifest may. A second
// writer of one digest waits for the first to finish.
func (s *Store) Ingest(ctx context.Context, want ocispec.Descriptor) (transfer.Writer, error) {
	return s.ingest(ctx, want)
}

func (s *Store) ingest(ctx context.Context, want ocispec.Descriptor) (*partial, error) {
	if err := checkDigest(want.Digest); err != nil {
		return nil, err
	}
	if want.Size < 0 {
		return nil, api.InvalidArgument("blob %s: invalid size %d", want.Digest, want.Size)
	}
	for {
		s.ingests.mu.Lock()
		other := s.ingests.m[want.Digest]
		if other == nil {
			defer s.ingests.mu.Unlock()
			return s.beginIngest(want)
		}
		s.ingests.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, api.Unavailable("blob %s: is being written: %w", want.Digest, context.Cause(ctx))
		}
	}
}

// beginIngest is called with ingests.mu held.
func (s *Store) beginIngest(want ocispec.Descriptor) (*partial, error) {
	if s.has(want.Digest) {
		return nil, api.Errorf(errdefs.ErrAlreadyExists, "blob %s is already here", want.Digest)
	}
	f, err := os.OpenFile(s.ingestPath(want.Digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, blobError(want.Digest, err)
	}
	p, err := newPartial(f, want, s.ingests.early[want.Digest], s.finishIngest)
	if err != nil {
		f.Close()
		return nil, blobError(want.Digest, err)
	}
	s.ingests.m[want.Digest] = p
	return p, nil
}

// finishIngest ends a partial: its file is made a blob, kept or removed.
func (s *Store) finishIngest(p *partial, how outcome) error {
	d := p.want.Digest
	s.ingests.mu.Lock()
	defer s.ingests.mu.Unlock()
	delete(s.ingests.m, d)
	path := s.ingestPath(d)
	if p.early != nil && how != kept { // it is no ingest any more, whatever follows
		delete(s.ingests.early, d)
	}
	var err error
	switch how {
	case committed:
		if err = os.Rename(path, s.blobPath(d)); err == nil {
			err = syncDir(filepath.Dir(s.blobPath(d)))
		}
		if err == nil && p.early != nil {
			p.early.whole()
		}
	case dropped:
		err = os.Remove(path)
		if p.early != nil {
			p.early.wrong()
		}
	case kept:
	}
	if err != nil {
		return fmt.Errorf("finish blob %s: %w", d, err)
	}
	return nil
}

// following is a reader of the blob d while it arrives; nil if nobody writes it.
func (s *Store) following(d digest.Digest) *partial {
	s.ingests.mu.Lock()
	defer s.ingests.mu.Unlock()
	return s.ingests.m[d]
}
