package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/image/early"
	"github.com/shoal-engine/shoal/transfer"
)

// earlyBlob is a blob that is arriving and already read by containers, through a keeper.
// It lies in a directory of its own, where data is the blob:
//
//	early/<digest>/data    the blob as far as it came; it is renamed when it is whole
//	               keeper  the keeper's socket
//	               record  what it is
//	               layer/  the tree that the outline says, where it is mounted
//
// What was proven is never written again, whoever sends it.
type earlyBlob struct {
	s    *Store
	dir  string
	want ocispec.Descriptor
	rec  earlyRecord

	mu      sync.Mutex
	data    *os.File
	keeper  *early.Client     // nil until there is one
	vouched *transfer.Vouched // nil until somebody vouches
	proven  early.Spans
	written early.Spans
	final   bool // what is written is being judged, or was
	vouches int  // how many vouched for what is proven
	asked   early.Spans

	held bool          // its blob is here: no keeper is needed
	lost chan struct{} // closed: it isn't what its digest says
	// Guarded by s.mu.
	users  map[string]struct{} // containers that read it
	opened bool                // containers can
}

// earlyRecord is an early blob on disk.
type earlyRecord struct {
	Ref   layerRef    `json:"ref"`
	Layer layerRecord `json:"layer"`
}

func (s *Store) earlyPath(d digest.Digest, elem ...string) string {
	return s.path(append([]string{"early", d.Encoded()}, elem...)...)
}

func newEarlyBlob(s *Store, ref layerRef) (*earlyBlob, error) {
	e := &earlyBlob{s: s, dir: s.earlyPath(ref.Desc.Digest), want: bare(ref.Desc), rec: earlyRecord{Ref: ref}, lost: make(chan struct{}), users: map[string]struct{}{}}
	if err := os.MkdirAll(e.dir, 0o711); err != nil {
		return nil, err
	}
	var err error
	if e.data, err = os.OpenFile(filepath.Join(e.dir, "data"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	// A disk that is full later would fail what containers read.
	err = unix.Fallocate(int(e.data.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, e.want.Size)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("reserve %d bytes for blob %s: %w", e.want.Size, e.want.Digest, err)
		return nil, errors.Join(err, e.data.Close(), os.RemoveAll(e.dir))
	}
	return e, nil
}

// vouch takes somebody's word for what the blob consists of.
func (e *earlyBlob) vouch(v *transfer.Vouched) {
	e.mu.Lock()
	old := e.vouched
	e.vouched = v
	e.vouches++
	e.mu.Unlock()
	if old != nil {
		old.Close()
	}
	e.check(early.Span{End: e.want.Size})
}

// put writes what of b isn't proven. changed says whether there were other bytes before;
// with mu held.
func (e *earlyBlob) put(b []byte, off int64) (changed bool, err error) {
	span := early.Span{Start: off, End: off + int64(len(b))}
	if e.final {
		return false, nil
	}
	for _, p := range e.proven.Without(span) {
		part := b[p.Start-off : p.End-off]
		if len(e.written.Without(p)) != 1 || e.written.Without(p)[0] != p { // something is there
			old := make([]byte, len(part))
			if _, err := e.data.ReadAt(old, p.Start); err == nil && e.written.Has(p) && bytes.Equal(old, part) {
				continue
			}
			changed = true
		}
		if _, err := e.data.WriteAt(part, p.Start); err != nil {
			return changed, err
		}
	}
	e.written.Add(span)
	return changed, nil
}

// write takes in what somebody sent, who need not be believed.
func (e *earlyBlob) write(b []byte, off int64) (changed bool, err error) {
	e.mu.Lock()
	changed, err = e.put(b, off)
	e.mu.Unlock()
	if err == nil {
		e.check(early.Span{Start: off, End: off + int64(len(b))})
	}
	return changed, err
}

// check proves those chunks in and around a range that are written.
func (e *earlyBlob) check(span early.Span) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vouched
	if v == nil || e.final {
		return
	}
	first, last, _, _ := v.Around(span.Start, span.End)
	var buf []byte
	for i := first; i < last; i++ {
		at, end := v.Chunk(i)
		c := early.Span{Start: at, End: end}
		if e.proven.Has(c) || !e.written.Has(c) {
			continue
		}
		if int64(cap(buf)) < end-at {
			buf = make([]byte, end-at)
		}
		if _, err := e.data.ReadAt(buf[:end-at], at); err == nil && v.Proves(i, buf[:end-at]) {
			e.prove(c)
		}
	}
}

// prove makes a range readable; with mu held.
func (e *earlyBlob) prove(span early.Span) {
	e.proven.Add(span)
	e.written.Add(span)
	if e.keeper != nil {
		_ = e.keeper.Have(span) // if it is gone, so is who would read it
	}
}

// judge says whether what is written is about to be judged by the blob's digest: then
// nothing of it changes any more. It returns what is written.
func (e *earlyBlob) judge(final bool) early.Spans {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.final = final
	return append(early.Spans(nil), e.written...)
}

// whole makes all of it readable: it is what its digest says.
func (e *earlyBlob) whole() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.final = true
	e.prove(early.Span{End: e.want.Size})
}

// wrong deals with a blob that isn't what its digest says.
func (e *earlyBlob) wrong() {
	e.mu.Lock()
	v := e.vouched
	all := e.proven.Has(early.Span{End: e.want.Size}) && e.vouches == 1
	select {
	case <-e.lost:
	default:
		close(e.lost)
	}
	e.mu.Unlock()
	e.fail()
	if v != nil && all { // every chunk was as that peer said, so it said something else
		v.Blame()
	}
}

// fail makes reads fail of what isn't here, as it never will be.
func (e *earlyBlob) fail() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keeper != nil {
		_ = e.keeper.Fail()
	}
}

// serve fetches what the keeper's readers wait for until ctx or the keeper ends.
func (e *earlyBlob) serve(ctx context.Context) {
	e.mu.Lock()
	keeper := e.keeper
	e.mu.Unlock()
	if keeper == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = keeper.Close() })()
	for {
		span, gaveUp, err := keeper.Next()
		if err != nil {
			return
		}
		if gaveUp {
			e.s.trouble(e, fmt.Errorf("its image stopped arriving: what it read for %v wasn't to be had, and the read failed", early.Patience), false)
			continue
		}
		wg.Go(func() { e.bring(ctx, span) })
	}
}

const (
	// readBeyond is how much is fetched with what a reader waits for.
	readBeyond = 256 << 10
	// bringAgain is when what nobody gave is asked for again.
	bringAgain = 300 * time.Millisecond
)

// bring fetches a range, again and again, for as long as its reader waits.
func (e *earlyBlob) bring(ctx context.Context, span early.Span) {
	ctx, cancel := context.WithTimeout(ctx, early.Patience)
	defer cancel()
	span.End = min(span.End+readBeyond, e.want.Size)
	for ctx.Err() == nil {
		err := e.fetch(ctx, span)
		e.mu.Lock()
		done := e.proven.Has(span) || e.final
		e.mu.Unlock()
		if done {
			return
		}
		if err != nil && ctx.Err() == nil {
			e.s.log.Debug("fetch what a container waits for", "blob", e.want.Digest, "from", span.Start, "to", span.End, "error", err)
		}
		t := time.NewTimer(bringAgain)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// fetch fetches those chunks of a range that nobody has proven and nobody else is
// fetching.
func (e *earlyBlob) fetch(ctx context.Context, span early.Span) error {
	e.mu.Lock()
	v := e.vouched
	e.mu.Unlock()
	if v == nil {
		return nil
	}
	first, last, _, _ := v.Around(span.Start, span.End)
	for first < last {
		from, to := e.claim(v, first, last)
		if from == to {
			return nil
		}
		first = to
		at, _ := v.Chunk(from)
		_, end := v.Chunk(to - 1)
		e.s.cfg.Early.Wanted(e.want.Digest, at, end)
		b, err := v.Read(ctx, from, to)
		e.settle(v, from, to, b, err)
		if err != nil {
			return err
		}
	}
	return nil
}

// claim chooses the next chunks to read.
func (e *earlyBlob) claim(v *transfer.Vouched, first, last int) (from, to int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	free := func(i int) bool {
		at, end := v.Chunk(i)
		s := early.Span{Start: at, End: end}
		return !e.proven.Has(s) && !e.asked.Has(s)
	}
	for first < last && !free(first) {
		first++
	}
	if first == last {
		return last, last
	}
	start, _ := v.Chunk(first)
	for to = first; to < last && free(to); to++ {
		if _, end := v.Chunk(to); end-start > transfer.MaxRead/4 && to > first {
			break
		}
	}
	_, end := v.Chunk(to - 1)
	e.asked.Add(early.Span{Start: start, End: end})
	return first, to
}

// settle takes in chunks that were read and proven.
func (e *earlyBlob) settle(v *transfer.Vouched, from, to int, b []byte, err error) {
	start, _ := v.Chunk(from)
	_, end := v.Chunk(to - 1)
	span := early.Span{Start: start, End: end}
	around, changed, ok := e.keep(span, b, err)
	if !ok {
		return
	}
	if p := e.s.following(e.want.Digest); p != nil {
		if err := p.arrived(span, changed); err != nil {
			e.s.log.Warn("note what a container waited for", "blob", e.want.Digest, "error", err)
		}
	}
	e.s.cfg.Early.Arrived(e.want.Digest, around.Start, around.End)
}

// keep writes what was asked for, unless there was an error, and returns the range
// around it that is proven, and whether there were other bytes before.
func (e *earlyBlob) keep(span early.Span, b []byte, err error) (around early.Span, changed, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked.Remove(span)
	if err != nil || e.final {
		return around, false, false
	}
	if changed, err = e.put(b, span.Start); err != nil {
		e.s.log.Warn("keep what a container waits for", "blob", e.want.Digest, "error", err)
		return around, changed, false
	}
	e.prove(span)
	return e.proven.Around(span), changed, true
}

// close lets go of the keeper, which goes on by itself, and of what vouches.
func (e *earlyBlob) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keeper != nil {
		_ = e.keeper.Close()
	}
	if e.vouched != nil {
		e.vouched.Close()
		e.vouched = nil
	}
	_ = e.data.Close()
}
