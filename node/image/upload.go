package image

import (
	"context"
	"errors"
	"hash"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// Upload is a blob that is arriving and whose digest nobody has told yet, as when a
// registry's client sends it. One goroutine at a time may use it. An agent that ends
// drops it.
type Upload struct {
	s    *Store
	f    *os.File
	size int64
	hash hash.Hash
	done bool
}

// Begin makes room for a blob whose digest is told at its end. The caller commits or
// aborts.
func (s *Store) Begin() (*Upload, error) {
	f, err := os.CreateTemp(s.path("ingest"), spoolPrefix)
	if err != nil {
		return nil, api.Internal("begin an upload: %w", err)
	}
	return &Upload{s: s, f: f, hash: digest.SHA256.Hash()}, nil
}

// Write appends. What it says was written counts, also if it fails.
func (u *Upload) Write(b []byte) (int, error) {
	n, err := u.f.WriteAt(b, u.size)
	u.hash.Write(b[:n])
	u.size += int64(n)
	if err != nil {
		return n, api.Internal("store an upload: %w", err)
	}
	return n, nil
}

// Size is how many bytes are there.
func (u *Upload) Size() int64 { return u.size }

// Commit makes what was written the blob want, on the disk when it returns. Bytes of
// another digest are dropped (errdefs.ErrDataLoss). The caller holds the digest if it
// wants to keep the blob before an image needs it.
func (u *Upload) Commit(_ context.Context, want digest.Digest) error {
	if err := checkDigest(want); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, u.hash); got != want {
		return errors.Join(api.Errorf(errdefs.ErrDataLoss, "blob %s: what came has digest %s", want, got), u.Abort())
	}
	u.done = true
	if err := u.f.Close(); err != nil {
		return errors.Join(blobError(want, err), u.remove())
	}
	if err := u.s.adopt(spooled{path: u.f.Name(), digest: want}); err != nil {
		return errors.Join(err, u.remove())
	}
	return nil
}

// Abort drops what was written; after Commit it does nothing.
func (u *Upload) Abort() error {
	if u.done {
		return nil
	}
	u.done = true
	return errors.Join(u.f.Close(), u.remove())
}

func (u *Upload) remove() error {
	if err := os.Remove(u.f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.Internal("drop an upload: %w", err)
	}
	return nil
}

// Free removes a blob, unless something needs it: Conflict then.
func (s *Store) Free(_ context.Context, d digest.Digest) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.live()[d]; ok {
		return api.Conflict("blob %s is part of something that is kept", d)
	}
	return s.removeBlob(d)
}

// Hold keeps blobs from being swept until release is called, whether or not they are
// here yet.
func (s *Store) Hold(ds ...digest.Digest) (release func()) {
	l := s.lease()
	l.hold(ds...)
	return l.release
}
