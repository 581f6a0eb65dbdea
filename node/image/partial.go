package image

import (
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

var _ transfer.Writer = (*partial)(nil)

// maxManifest bounds blobs whose size nobody told: manifests and indexes.
const maxManifest = 4 << 20

// outcome is how the writing of a blob ended.
type outcome int

const (
	kept outcome = iota
	committed
	dropped
)

// span is a range of bytes, end exclusive.
type span struct{ start, end int64 }

// partial is a blob that is arriving. Methods may be called concurrently, Write
// only by one.
type partial struct {
	want   ocispec.Descriptor
	limit  int64 // bytes it may have at most
	f      *os.File
	offset int64 // leading bytes found at the beginning
	finish func(*partial, outcome) error
	done   chan struct{} // closed: nobody writes any more

	io sync.RWMutex // held for reading while bytes are written, for writing while the end is decided

	mu     sync.Mutex    // taken after io, before ingests.mu
	refs   int           // who needs f: the writer and each follower
	pos    int64         // where Write goes on
	have   []span        // what is there, sorted, never touching
	sparse bool          // there is, or was, something behind a gap
	noted  int64         // what the note says
	hash   hash.Hash     // of the bytes before hashed
	hashed int64         //
	busy   int64         // up to where somebody hashes, without mu; 0 if nobody does
	again  bool          // bytes before busy were overwritten meanwhile
	sent   int64         // leading bytes that the kernel was asked to write to disk
	grown  chan struct{} // closed and replaced when have or ended changes
	full   bool          // the disk had no room for some of it
	ended  bool
	how    outcome

	// early, if it isn't nil, writes in place of this: containers read the blob already.
	early *earlyBlob
}

func newPartial(f *os.File, want ocispec.Descriptor, e *earlyBlob, finish func(*partial, outcome) error) (*partial, error) {
	p := &partial{
		want: want, limit: want.Size, f: f, finish: finish, early: e,
		done: make(chan struct{}), grown: make(chan struct{}), hash: digest.SHA256.Hash(), refs: 1,
	}
	if p.limit == 0 {
		p.limit = maxManifest
	}
	if e != nil {
		p.resume(e.judge(false))
		return p, nil
	}
	n, err := leading(f)
	if err != nil {
		return nil, err
	}
	if n > p.limit {
		n = 0
	}
	if err := f.Truncate(n); err != nil {
		return nil, err
	}
	if err := dropNote(f.Name()); err != nil {
		return nil, err
	}
	if n > 0 {
		p.have = []span{{0, n}}
	}
	p.offset, p.pos = n, n
	return p, nil
}

// prefixSuffix is added to the name of a partial's file for a note of how many of its
// leading bytes were written. There is one only while there are others behind them.
const prefixSuffix = ".prefix"

// noteEvery is how many further leading bytes make a new note.
const noteEvery = 1 << 20

// leading is how many bytes of an interrupted ingest can be taken as written.
func leading(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(f.Name() + prefixSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return fi.Size(), nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || n < 0 || n > fi.Size() {
		return 0, nil // a torn note
	}
	return n, nil
}

// note writes down how many leading bytes are there; with mu held.
func (p *partial) note() error {
	p.noted = p.prefix()
	err := os.WriteFile(p.f.Name()+prefixSuffix, strconv.AppendInt(nil, p.noted, 10), 0o600)
	if err != nil {
		return api.Internal("store blob %s: %w", p.want.Digest, err)
	}
	return nil
}

// dropNote is called once what it told of is gone.
func dropNote(path string) error {
	if err := os.Remove(path + prefixSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Offset is how many leading bytes an earlier ingest left.
func (p *partial) Offset() int64 { return p.offset }

// Write goes on where the last Write, or an earlier ingest, ended.
func (p *partial) Write(b []byte) (int, error) {
	p.mu.Lock()
	pos := p.pos
	p.mu.Unlock()
	n, err := p.WriteAt(b, pos)
	p.mu.Lock()
	p.pos += int64(n)
	p.mu.Unlock()
	return n, err
}

// WriteAt writes anywhere within the blob.
func (p *partial) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > p.limit {
		return 0, api.Errorf(errdefs.ErrOutOfRange, "blob %s: has more than %d bytes", p.want.Digest, p.limit)
	}
	p.io.RLock()
	defer p.io.RUnlock()
	if err := p.beforeWrite(off); err != nil {
		return 0, err
	}
	if p.early != nil {
		return p.writeEarly(b, off)
	}
	if p.startHash(off, len(b)) {
		return p.writeHashing(b, off)
	}
	n, err := p.f.WriteAt(b, off)
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 {
		switch {
		case p.busy > 0:
			p.again = p.again || off < p.busy
		case off == p.hashed:
			p.hash.Write(b[:n])
			p.hashed += int64(n)
		case off < p.hashed: // overwritten: Commit reads it all again
			p.hash.Reset()
			p.hashed = 0
		}
	}
	return n, p.written(off, n, err)
}

// written notes what was written, with mu held, and how that went.
func (p *partial) written(off int64, n int, err error) error {
	if n > 0 {
		p.mark(span{off, off + int64(n)})
		p.wake()
		p.catchUp()
		p.sendOff()
	}
	if err != nil {
		p.full = p.full || errors.Is(err, unix.ENOSPC)
		return api.Internal("store blob %s: %w", p.want.Digest, err)
	}
	if p.sparse && p.prefix()-p.noted >= noteEvery {
		return p.note()
	}
	return nil
}

// beforeWrite makes sure that a process after this one knows which bytes to trust.
func (p *partial) beforeWrite(off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return api.Errorf(errdefs.ErrFailedPrecondition, "blob %s: is not being written any more", p.want.Digest)
	}
	if off <= p.prefix() || p.sparse {
		return nil
	}
	p.sparse = true
	return p.note()
}

// mark adds a span to what is there.
func (p *partial) mark(s span) {
	i, _ := slices.BinarySearchFunc(p.have, s.start, func(h span, at int64) int {
		if h.end < at {
			return -1
		}
		return 1
	})
	j := i
	for j < len(p.have) && p.have[j].start <= s.end {
		s.start, s.end = min(s.start, p.have[j].start), max(s.end, p.have[j].end)
		j++
	}
	p.have = slices.Replace(p.have, i, j, s)
}

// wake is called with mu held.
func (p *partial) wake() {
	close(p.grown)
	p.grown = make(chan struct{})
}

// prefix is how many leading bytes are there; called with mu held.
func (p *partial) prefix() int64 {
	if len(p.have) == 0 || p.have[0].start > 0 {
		return 0
	}
	return p.have[0].end
}

// ReadAt reads back what is there; Unavailable if something of it is not yet.
func (p *partial) ReadAt(b []byte, off int64) (int, error) {
	end := min(off+int64(len(b)), p.limit)
	p.mu.Lock()
	there := slices.ContainsFunc(p.have, func(h span) bool { return h.start <= off && end <= h.end })
	p.mu.Unlock()
	if !there {
		return 0, api.Unavailable("blob %s: bytes %d to %d are not here yet", p.want.Digest, off, end)
	}
	return p.f.ReadAt(b, off)
}

// Commit verifies and makes the blob visible; see transfer.Writer.
func (p *partial) Commit(ctx context.Context) error {
	p.io.Lock()
	defer p.io.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		if p.how == committed {
			return nil
		}
		return api.Errorf(errdefs.ErrFailedPrecondition, "blob %s: is not being written any more", p.want.Digest)
	}
	if err := p.judged(ctx); err != nil {
		if errdefs.IsDataLoss(err) {
			return errors.Join(err, p.end(dropped))
		}
		return err
	}
	if err := p.f.Sync(); err != nil {
		err = api.Internal("store blob %s: %w", p.want.Digest, err)
		if p.early != nil {
			return err // containers read it, and nobody sent wrong bytes
		}
		// What the kernel couldn't write it doesn't know of any more.
		return errors.Join(err, p.end(dropped))
	}
	return p.end(committed)
}

// end is called with mu held, once.
func (p *partial) end(how outcome) error {
	if how == kept && p.full && p.early == nil {
		how = dropped // it would keep the disk full, and the host from all else
	}
	if how == kept && p.early == nil {
		// What lies behind the first hole could not be told from it later.
		if err := p.f.Truncate(p.prefix()); err != nil {
			how = dropped
		} else if p.prefix() == 0 {
			how = dropped
		}
	}
	p.ended, p.how = true, how
	err := p.finish(p, how)
	if p.sparse {
		err = errors.Join(err, dropNote(p.f.Name()))
	}
	p.wake()
	close(p.done)
	return errors.Join(err, p.unref())
}

// unref is called with mu held.
func (p *partial) unref() error {
	if p.refs--; p.refs > 0 {
		return nil
	}
	return p.f.Close()
}

// follow reads the blob from its beginning while it arrives; nil if it is too late
// for that.
func (p *partial) follow(ctx context.Context) *follower {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	p.refs++
	return &follower{ctx: ctx, p: p}
}

// Close keeps what was written for a later Ingest. Readers that follow may read on.
func (p *partial) Close() error { return p.stop(kept) }

// Abort drops what was written.
func (p *partial) Abort() error { return p.stop(dropped) }

func (p *partial) stop(how outcome) error {
	p.io.Lock()
	defer p.io.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	return p.end(how)
}

// follower reads a blob from its beginning while it arrives. The caller closes.
type follower struct {
	ctx context.Context // of the one job that reads
	p   *partial
	off int64
}

func (r *follower) Close() error {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	return r.p.unref()
}

// Read waits for bytes. It ends with io.EOF once the blob was committed, and fails
// if it will not be.
func (r *follower) Read(b []byte) (int, error) {
	for {
		r.p.mu.Lock()
		prefix, grown, ended, how := r.p.prefix(), r.p.grown, r.p.ended, r.p.how
		r.p.mu.Unlock()
		if r.off < prefix {
			n, err := r.p.f.ReadAt(b[:min(int64(len(b)), prefix-r.off)], r.off)
			r.off += int64(n)
			if n > 0 || !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		switch {
		case ended && how == committed:
			return 0, io.EOF
		case ended:
			return 0, api.Unavailable("blob %s: stopped arriving", r.p.want.Digest)
		}
		select {
		case <-grown:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

func (r *follower) pass(n int64) { r.off += n }

// digest is the blob's, for who has followed to its end.
func (r *follower) digest() digest.Digest { return r.p.want.Digest }
