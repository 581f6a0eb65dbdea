// Package transfer moves content-addressed blobs between hosts.
//
// Peers is a Fetcher that takes a blob from many nodes at once and passes on what it
// has meanwhile, so that the first pull by all nodes of a cluster takes about as long
// as one. storetest holds what every Store must do; p2p carries the streams.
//
// # Protocol
//
// A session is one stream, about one blob, from the node that fetches (the asker) to
// one that has something of it (the holder). Frames are a byte of kind, four bytes of
// length (big endian; each kind has a bound) and a body. Blobs are cut into pieces
// whose size follows from the blob's: pieceSize. Bitmaps have the first piece in the
// lowest bit of the first byte.
//
//	 1 want   asker   flags (1: I pass on what I get), size (8 bytes), digest; first,
//	                  once
//	 2 get    asker   piece (4 bytes)
//	 3 next   asker   bitmap: send any one of these
//	 4 ask    asker   digest of a blob whose size isn't known; first and only
//	 5 delta  asker   flags (1: send the chunks first; 2: I can compress again), size,
//	                  digest; first, once
//	 6 read   asker   offset (8 bytes), length (4); after a delta
//	 7 turn   asker   flags (1: I ask the source; 2: I can't; 4: I get something; 8: I
//	                  have all), digest: who asks a source for it? First, once
//	 8 stand  asker   flags as of turn, now
//	 9 rate   asker   bytes a second that it gets (8 bytes); after a delta
//	10 check  asker   tell me the pieces' sums
//	11 outline asker  size, digest: what is in the tar besides files' contents? First
//	                  and only; answered by size and runs
//	16 have   holder  state (0 nothing, end; 1 bitmap follows; 2 all; 3 busy, end);
//	                  first, and anew when a fetch of the holder's has ended
//	17 more   holder  pieces (4 bytes each) that have come since
//	18 peers  holder  IDs (a byte of length each) of others that fetch the blob: ask them
//	19 data   holder  piece, flags (1: of a verified blob; 2: the piece's last frame),
//	                  up to 128 KiB of content; a piece's frames follow each other
//	20 none   holder  piece asked for, or ffffffff for a next or a delta: not to be had
//	21 size   holder  answers ask
//	22 chunks holder  flags (1: the last), how the blob is cut; answers delta
//	23 run    holder  flags (1: zstd; 2: tokens in planes), content; answers read
//	24 sums   holder  CRC-32C of every piece (4 bytes each), once, of a blob held whole
//	25 packed holder  how the content is compressed; before sums and chunks
//	27 layout holder  a part of what goes with tokens; after packed
//	26 whose  holder  answers turn: state (0 nobody's; 1 yours; 2 others'), IDs as in
//	                  peers: get it from these
//
// docs/transfer.md says all of this at length.
//
// A holder answers get and next in their order, and sends have, more and peers whenever
// there is news, also between the frames of a piece.
//
// # How a blob spreads
//
// Whoever holds all of it answers next with the piece it has sent least often. Askers
// ask it only for pieces that they have seen nowhere else, so each piece leaves it
// about once, to one asker or another, and these get the rest from each other, rarest
// first. There is no tracker: holders tell askers of each other. Each serves a few only,
// and sends others on to these.
//
// # What nobody has
//
// Of those who want a blob from outside the cluster at once, one asks (Peers.Through).
// Whose turn it is one of the members knows, the first in an order that follows from the
// digest, from what those who want it tell while they do. The others fetch from the one
// that asks, which passes on what has arrived.
//
// # Updates
//
// A node that has blobs of about the size asks a holder how the blob is cut by its
// content (package chunk), copies the chunks that it finds in its own, and reads the
// others. Pieces that are complete so are served on; what fails is left to the swarm,
// which also begins beside a search that takes long. A blob that is compressed is cut
// and assembled as its content, and compressed again by what compressed it.
//
// # Who is believed
//
// Nobody. Pieces that more holders' sums contradict than confirm are fetched again from
// others, and Store.Commit verifies the whole blob. If it doesn't match, the blob is
// fetched again from one holder at a time until it does; what each peer had sent the
// first time is then compared with the truth. A peer that sent wrong bytes of a blob it
// called verified is reported and not asked again for an hour. One that passed on what
// it was still fetching may have been lied to, and is only reported.
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
