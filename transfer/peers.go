package transfer

import (
	"context"
	"errors"
	"hash/crc32"
	"hash/maphash"
	"log/slog"
	"math/bits"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// banTime is for how long nothing is asked of a peer that sent wrong bytes of a blob it
// claimed to have verified.
const banTime = time.Hour

// PeersConfig describes the exchange of blobs with peers. Dial and Locator are required.
type PeersConfig struct {
	// Self is this node's own peer ID, which is never dialed.
	Self string
	// Dial opens a stream of Protocol to a peer.
	Dial    func(ctx context.Context, peerID string) (net.Conn, error)
	Locator Locator
	// DialBeside, if set, is Dial over a connection of its own. It is used where one peer
	// alone gives a large blob faster than networks of a gigabit do: there a connection
	// may be slower than the link, as each end of it uses one processor.
	DialBeside func(ctx context.Context, peerID string) (net.Conn, error)
	// Members are the IDs of all nodes that seem alive, in any order, also this one's.
	// Through asks them whose turn it is; nil stands for no others.
	Members func() []string
	// Chunks is a directory of its own for what is remembered of blobs' chunks; it is
	// made if need be, and may be removed at any time. Empty, or a store that is no
	// Lister, makes every blob move whole.
	Chunks string
	Logger *slog.Logger // nil discards
	// Allow, if set, says by a nil error that a peer may have a blob of this node. It is
	// asked when a session begins and by Review, concurrently, and must not take long.
	Allow func(ctx context.Context, peerID string, d digest.Digest) error
	// OnFetched, if set, is told of every blob that was fetched, how many bytes of it
	// each peer sent, and how long it took. It must not block.
	OnFetched func(d digest.Digest, size int64, byPeer map[string]int64, took time.Duration)
	// OnBytes, if set, is told while a blob is fetched of bytes that a peer sent, as they
	// were on the wire; an attempt that has to be repeated counts too. It must not block.
	OnBytes func(d digest.Digest, peerID string, bytes int64)
	// OnWrongBytes, if set, is told of a peer that sent bytes which aren't the blob's.
	// proven says that the peer claimed to have verified them; else it may itself have
	// been lied to. It must not block.
	OnWrongBytes func(peerID string, d digest.Digest, proven bool)
}

// Peers fetches blobs from other nodes, from many at a time, and serves to others what
// this node has, also while it is still fetching. Its methods may be called concurrently.
type Peers struct {
	cfg PeersConfig
	log *slog.Logger

	recipes  *recipes // nil: all blobs move whole
	packer   *zstd.Encoder
	thorough *zstd.Encoder // for tokens
	unpacker *zstd.Decoder

	mu       sync.Mutex
	fetches  map[digest.Digest]*fetch
	served   map[digest.Digest]*served
	banned   map[string]time.Time
	sessions map[*session]digest.Digest // that Allow was asked about

	desk desk

	due     chan struct{} // holds one token if the store may have blobs that aren't cut
	unpacks chan struct{} // holds a token for each session that unpacks a blob
}

var _ Fetcher = (*Peers)(nil)

// NewPeers starts nothing; Serve and Fetch do.
func NewPeers(cfg PeersConfig) *Peers {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Peers{
		cfg: cfg, log: cfg.Logger,
		fetches:  map[digest.Digest]*fetch{},
		served:   map[digest.Digest]*served{},
		banned:   map[string]time.Time{},
		sessions: map[*session]digest.Digest{},
		desk:     desk{queues: map[digest.Digest]*queue{}},
		due:      make(chan struct{}, 1),
		unpacks:  make(chan struct{}, maxUnpacks),
	}
	if cfg.Chunks != "" {
		p.recipes = &recipes{dir: cfg.Chunks}
		// Neither fails with options that are in range.
		p.packer, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(maxRun), zstd.WithEncoderCRC(false))
		p.thorough, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(maxRun), zstd.WithEncoderCRC(false),
			zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
		p.unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxRun))
	}
	return p
}

// fetch is one blob being fetched. Whoever asks for it meanwhile waits for it.
type fetch struct {
	p       *Peers
	digest  digest.Digest
	size    int64
	pieces  int
	bytes   map[string]int64 // by peer, as they were on the wire
	plain   bool             // don't look for likeness
	recipe  string           // whose recipe all of the blob was made by
	patched bool             // some of it was made by a recipe
	start   time.Time

	progress *progress     // guarded by p.mu; its own methods lock for themselves
	swarm    *swarm        // guarded by p.mu; nil until it runs
	done     chan struct{} // closed: err is set
	err      error
}

// Fetch implements Fetcher. Errors are NotFound if no peer has the blob, Unavailable if
// those that had it were lost (what came is kept for the next attempt) and DataLoss if
// all of them sent something else. A second Fetch of a blob waits for the first. A
// size of 0 means that the caller knows the digest only; such blobs are small.
func (p *Peers) Fetch(ctx context.Context, dst Store, want ocispec.Descriptor, progress func(done int64)) error {
	if want.Size == 0 && !isEmpty(want.Digest) {
		return p.fetchUnsized(ctx, dst, want, progress)
	}
	pieces, err := countPieces(want.Size)
	if err == nil {
		err = want.Digest.Validate()
	}
	if err != nil {
		return api.InvalidArgument("fetch blob %s: %w", want.Digest, err)
	}
	for {
		f, first := p.begin(want, pieces)
		if first {
			f.err = f.run(ctx, dst, want, progress)
			p.finish(f)
			return f.err
		}
		select {
		case <-f.done:
			if f.err == nil || !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
				return f.err
			}
			// Whoever fetched it gave up, not the peers: it is our turn.
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin joins the fetch of a blob or makes one.
func (p *Peers) begin(want ocispec.Descriptor, pieces int) (f *fetch, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.fetches[want.Digest]; f != nil {
		return f, false
	}
	f = &fetch{
		p: p, digest: want.Digest, size: want.Size, pieces: pieces,
		start: time.Now(), done: make(chan struct{}),
	}
	p.fetches[want.Digest] = f
	return f, true
}

func (p *Peers) finish(f *fetch) {
	p.mu.Lock()
	delete(p.fetches, f.digest)
	p.mu.Unlock()
	close(f.done)
	p.Changed()
	if f.err == nil && p.cfg.OnFetched != nil {
		p.cfg.OnFetched(f.digest, f.size, f.bytes, time.Since(f.start))
	}
}

// run fetches from everybody at once, and if that gave wrong bytes, from one peer after
// the other, which shows who sent them.
func (f *fetch) run(ctx context.Context, dst Store, want ocispec.Descriptor, report func(int64)) error {
	notes, err := f.attempt(ctx, dst, want, report, "")
	if errdefs.IsDataLoss(err) && f.patched {
		if f.recipe != "" { // every chunk was what the recipe says, so the recipe is wrong
			f.wrongBytes(f.recipe, true)
		}
		f.plain = true
		notes, err = f.attempt(ctx, dst, want, report, "")
	}
	if !errdefs.IsDataLoss(err) {
		return err
	}
	f.p.log.Warn("a blob from peers doesn't match its digest; trying one peer at a time", "digest", f.digest.String())
	for _, id := range notes.whole {
		one, again := f.attempt(ctx, dst, want, report, id)
		switch {
		case again == nil:
			return f.blame(ctx, dst, notes)
		case errdefs.IsDataLoss(again) && one.resumed == 0:
			f.wrongBytes(id, true)
		case ctx.Err() != nil:
			return again
		}
	}
	return err
}

// attempt fetches the blob once, from the peer named only or from all, and commits it.
func (f *fetch) attempt(ctx context.Context, dst Store, want ocispec.Descriptor, report func(int64), only string) (*notes, error) {
	w, err := dst.Ingest(ctx, want)
	if errdefs.IsAlreadyExists(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer w.Close()
	g, resumed := f.open(w)
	defer g.end() // after the commit, so that who is served finds the blob whole

	n := f.newNotes(resumed)
	f.recipe, f.patched = "", false
	if only == "" && !f.plain {
		giver, err := f.delta(ctx, dst, w, g, report, n)
		if err != nil {
			return n, err
		}
		if have, _ := g.snapshot(); resumed == 0 && have.count() == f.pieces && !n.any() {
			f.recipe = giver
		}
		f.patched = giver != ""
	}
	if err := newSwarm(f, g, w, only, report, n).run(ctx); err != nil {
		return n, err
	}
	err = w.Commit(ctx)
	if err == nil {
		for id, verified := range n.rejected {
			f.wrongBytes(id, verified)
		}
	}
	return n, err
}

// count notes what came from a peer.
func (f *fetch) count(peer string, bytes int64) {
	f.bytes[peer] += bytes
	if f.p.cfg.OnBytes != nil {
		f.p.cfg.OnBytes(f.digest, peer, bytes)
	}
}

// open makes known what there is of the blob, and that more is to come. The caller must
// end the progress.
func (f *fetch) open(w Writer) (g *progress, resumed int) {
	f.bytes = map[string]int64{}
	g = newProgress(w, f.pieces)
	resumed = int(w.Offset() / pieceSize(f.size))
	if w.Offset() >= f.size {
		resumed = f.pieces
	}
	for i := range resumed {
		g.add(i)
	}
	f.p.mu.Lock()
	f.progress = g
	f.p.mu.Unlock()
	return g, resumed
}

// notes are what has to be remembered of an attempt to tell who lied.
type notes struct {
	seed    maphash.Seed
	sums    []pieceNote // by piece; who sent it and what
	whole   []string    // peers that claimed to hold the blob whole
	resumed int         // pieces that an earlier attempt left

	rejected map[string]bool // who sent pieces that weren't believed, and whether as verified
}

func (f *fetch) newNotes(resumed int) *notes {
	return &notes{seed: maphash.MakeSeed(), sums: make([]pieceNote, f.pieces), resumed: resumed, rejected: map[string]bool{}}
}

// any says whether any piece came from a peer as such.
func (n *notes) any() bool {
	return slices.ContainsFunc(n.sums, func(p pieceNote) bool { return p.peer != "" })
}

// pieceNote is who sent a piece and what it was.
type pieceNote struct {
	peer     string
	sum      uint64 // by which nobody else can forge
	crc      uint32
	summed   int  // bytes that the sums are of
	unsummed bool // there are no sums: all pieces of this kind are of one peer
	verified bool
}

// sumStep is how many bytes are summed at a time: while they are in the cache.
const sumStep = 64 << 10

// add sums what has come of a piece; last says that this is all.
func (n *pieceNote) add(seed maphash.Seed, b []byte, last bool) {
	if n.unsummed {
		return
	}
	for len(b)-n.summed >= sumStep || last && len(b) > n.summed {
		part := b[n.summed:min(n.summed+sumStep, len(b))]
		n.sum = bits.RotateLeft64(n.sum, 1) ^ maphash.Bytes(seed, part)
		n.crc = crc32.Update(n.crc, castagnoli, part)
		n.summed += len(part)
	}
}

// blame compares what peers sent in an earlier attempt with the blob, now verified.
func (f *fetch) blame(ctx context.Context, dst Store, n *notes) error {
	b, err := dst.Open(ctx, f.digest)
	if err != nil {
		return err
	}
	defer b.Close()
	buf := make([]byte, maxPiece)
	guilty := map[string]bool{} // and whether it is proven
	suspect := ""
	for i, note := range n.sums {
		if note.unsummed {
			suspect = note.peer
		}
		if note.peer == "" || note.unsummed {
			continue
		}
		piece := buf[:pieceLen(f.size, i)]
		if err := readFull(b, piece, pieceAt(f.size, i)); err != nil {
			return err
		}
		var truth pieceNote
		if truth.add(n.seed, piece, true); truth.sum != note.sum {
			guilty[note.peer] = guilty[note.peer] || note.verified
		}
	}
	if len(guilty) == 0 && suspect != "" {
		guilty[suspect] = true // who else?
	}
	for id, proven := range guilty {
		f.wrongBytes(id, proven)
	}
	return nil
}

// wrongBytes reports a peer, and shuns it if it can't have been lied to itself.
func (f *fetch) wrongBytes(id string, proven bool) {
	f.p.log.Warn("peer sent wrong bytes", "peer", id, "digest", f.digest.String(), "claimed to be verified", proven)
	if proven {
		f.p.mu.Lock()
		f.p.banned[id] = time.Now()
		f.p.mu.Unlock()
	}
	if f.p.cfg.OnWrongBytes != nil {
		f.p.cfg.OnWrongBytes(id, f.digest, proven)
	}
}

// isBanned also forgets bans that are over.
func (p *Peers) isBanned(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.banned[id]
	if ok && time.Since(at) > banTime {
		delete(p.banned, id)
		ok = false
	}
	return ok
}
