package scale

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// content is the one blob of a test. Nodes keep no copies of it: a thousand would not
// fit into memory.
type content struct {
	desc  ocispec.Descriptor
	bytes []byte
}

// store knows how much of the content a node has. What is written is compared with it at
// once, which is as good as a digest.
type store struct {
	c *content

	mu     sync.Mutex
	whole  bool
	came   int64 // bytes, each written once
	writes map[int64]bool
}

func (s *store) Stat(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d != s.c.desc.Digest || !s.whole {
		return ocispec.Descriptor{}, api.NotFound("blob %s: not held", d)
	}
	return s.c.desc, nil
}

func (s *store) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	if _, err := s.Stat(ctx, d); err != nil {
		return nil, err
	}
	return blob{bytes.NewReader(s.c.bytes)}, nil
}

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (b blob) Size() int64 { return b.Reader.Size() }

func (s *store) Ingest(context.Context, ocispec.Descriptor) (transfer.Writer, error) {
	return &writer{s}, nil
}

type writer struct{ s *store }

func (w *writer) Write([]byte) (int, error) { return 0, errors.New("pieces come by WriteAt") }

func (w *writer) WriteAt(b []byte, at int64) (int, error) {
	if !bytes.Equal(b, w.s.c.bytes[at:at+int64(len(b))]) {
		return 0, errors.New("wrong bytes")
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.writes[at] {
		return 0, errors.New("written twice")
	}
	w.s.writes[at] = true
	w.s.came += int64(len(b))
	return len(b), nil
}

func (w *writer) ReadAt(b []byte, at int64) (int, error) {
	return copy(b, w.s.c.bytes[at:]), nil
}

func (w *writer) Commit(context.Context) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.came != w.s.c.desc.Size {
		return errors.New("pieces are missing")
	}
	w.s.whole = true
	return nil
}

func (w *writer) Offset() int64 { return 0 }
func (w *writer) Close() error  { return nil }
func (w *writer) Abort() error  { return nil }
