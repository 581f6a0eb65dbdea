// Package transfer moves content-addressed blobs between hosts.
package transfer

import (
	"context"
	"io"
	"iter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store keeps blobs by digest. What it holds was verified; methods may be called
// concurrently.
type Store interface {
	// Stat describes a blob that is held whole; NotFound otherwise.
	Stat(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error)
	// Open reads a blob that is held whole; the caller closes.
	Open(ctx context.Context, d digest.Digest) (Blob, error)
	// Ingest begins, or resumes, the writing of a blob. AlreadyExists if it is held.
	// One writer per digest at a time; a second waits or fails with Unavailable.
	Ingest(ctx context.Context, want ocispec.Descriptor) (Writer, error)
}

// Blob is open for reading.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Writer takes a blob in. Nothing is visible in the store before Commit.
type Writer interface {
	io.Writer
	io.WriterAt
	// Offset is how many leading bytes an earlier, interrupted ingest left.
	Offset() int64
	// ReadAt reads back what was written, also before Commit, so that a blob can
	// be served while it arrives.
	io.ReaderAt
	// Commit verifies size and digest and makes the blob visible. Bytes that don't
	// match are dropped, and the error says so (errdefs.ErrDataLoss).
	Commit(ctx context.Context) error
	// Close keeps what was written for a later Ingest; Abort drops it. Both are no-ops
	// after Commit.
	Close() error
	Abort() error
}

// Peer is a node that may hold a blob.
type Peer struct {
	ID    string   // its peer ID
	Addrs []string // multiaddresses
}

// Locator knows who holds what.
type Locator interface {
	// Find yields peers that hold the blob whole, nearest first; an error ends it.
	Find(ctx context.Context, d digest.Digest) iter.Seq2[Peer, error]
}

// Fetcher makes a store hold a blob it lacks. Registry, peers and plugins are all
// fetchers, asked in turn.
type Fetcher interface {
	// Fetch returns once dst holds the blob. NotFound if nobody has it. progress,
	// which may be nil, is called with the bytes so far, from one goroutine.
	Fetch(ctx context.Context, dst Store, want ocispec.Descriptor, progress func(done int64)) error
}
