package transfer

import (
	"context"
	"errors"
	"hash/crc32"
	"os"
	"sync"
	"time"
)

// repack is a target whose content is compressed, or whose tokens are written down, as
// they become known from the front, and so becomes the blob.
type repack struct {
	d        *patch
	w        Writer
	progress *progress
	report   func(int64)
	stop     func() // ends the gathering of content
	whole    time.Duration
	start    time.Time

	scratch *os.File      // has the content
	grown   chan struct{} // holds a token if front has grown or closed was set
	done    chan struct{} // closed: nobody compresses any more

	mu     sync.Mutex
	front  int64         // up to where all content is there
	behind map[int64]int // what is there behind it: where it begins, and its length
	closed bool          // no more will come

	// Of the one who compresses:
	piece   int
	out     []byte // of the piece
	have    int64  // bytes of pieces that are there
	busy    time.Duration
	failure error // of the writer; nil if the blob can come otherwise
}

var (
	errLate = errors.New("moving everything is quicker")
	errPart = errors.New("some of the content is missing")
)

// trial is how much content is compressed before the time that all of it will take is
// compared with that of moving everything.
const trial = 8 << 20

func newRepack(ctx context.Context, stop func(), d *patch, r *race) (*repack, error) {
	scratch, err := d.f.p.recipes.scratch()
	if err != nil {
		return nil, err
	}
	t := &repack{
		d: d, w: r.w, progress: r.progress, report: r.report, stop: stop, whole: time.Duration(r.wholeTime()), start: time.Now(),
		scratch: scratch, grown: make(chan struct{}, 1), done: make(chan struct{}), behind: map[int64]int{},
		out: make([]byte, 0, pieceSize(d.f.size)),
	}
	have, _ := r.progress.snapshot()
	for i := range d.f.pieces {
		if have.has(i) {
			t.have += int64(pieceLen(d.f.size, i))
		}
	}
	go func() {
		defer close(t.done)
		if err := t.run(ctx); err != nil {
			d.f.p.log.Info("blob isn't compressed again", "digest", d.f.digest.String(), "err", err)
			t.stop()
		}
	}()
	return t, nil
}

func (t *repack) write(at int64, b []byte) error {
	if _, err := t.scratch.WriteAt(b, at); err != nil {
		t.stop() // the swarm needs less room
		return nil
	}
	t.mu.Lock()
	t.behind[at] = len(b)
	for n := t.behind[t.front]; n > 0; n = t.behind[t.front] {
		delete(t.behind, t.front)
		t.front += int64(n)
	}
	t.mu.Unlock()
	t.wake()
	return nil
}

func (t *repack) wake() {
	select {
	case t.grown <- struct{}{}:
	default:
	}
}

func (t *repack) end() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wake()
	<-t.done
	t.scratch.Close()
	return t.failure
}

// wait returns up to where there is content, more than at.
func (t *repack) wait(ctx context.Context, at int64) (int64, error) {
	for {
		t.mu.Lock()
		front, closed := t.front, t.closed
		t.mu.Unlock()
		if front > at {
			return front, nil
		}
		if closed {
			return 0, errPart
		}
		select {
		case <-t.grown:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// run compresses the content from its beginning to its end.
func (t *repack) run(ctx context.Context) error {
	z, err := t.d.recipe.packing.open(t)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for at := int64(0); at < t.d.content; {
		front, err := t.wait(ctx, at)
		if err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), front-at)]
		if err := readFull(t.scratch, b, at); err != nil {
			return err
		}
		begin := time.Now()
		if _, err := z.Write(b); err != nil {
			return err
		}
		t.busy += time.Since(begin)
		at += int64(len(b))
		if t.late(at) {
			return errLate
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	if t.piece < t.d.f.pieces {
		return errDiffer
	}
	return nil
}

// late says whether all of the content, of which at bytes are compressed, will take
// longer than moving everything.
func (t *repack) late(at int64) bool {
	if at < trial {
		return false
	}
	elapsed := time.Since(t.start)
	spent := t.busy
	if t.d.by() == byTokens { // getting at tokens takes as much work as writing them down
		spent = elapsed
	}
	left := float64(spent) * float64(t.d.content-at) / float64(at)
	return float64(elapsed)+left > (1+patience)*float64(t.whole)
}

// Write takes what the compressor makes.
func (t *repack) Write(b []byte) (int, error) {
	size := t.d.f.size
	for rest := b; len(rest) > 0; {
		if t.piece == t.d.f.pieces {
			return 0, errDiffer
		}
		n := min(len(rest), pieceLen(size, t.piece)-len(t.out))
		t.out, rest = append(t.out, rest[:n]...), rest[n:]
		if len(t.out) < pieceLen(size, t.piece) {
			continue
		}
		if err := t.put(); err != nil {
			return 0, err
		}
		t.piece, t.out = t.piece+1, t.out[:0]
	}
	return len(b), nil
}

// put writes a piece, if it is what a holder says it is. Else the compressor isn't the
// blob's: only its beginning was tried.
func (t *repack) put() error {
	if crc32.Checksum(t.out, castagnoli) != t.d.sums[t.piece] {
		return errDiffer
	}
	if !t.progress.claim(t.piece) {
		return nil
	}
	if _, err := t.w.WriteAt(t.out, pieceAt(t.d.f.size, t.piece)); err != nil {
		t.failure = err
		return err
	}
	t.progress.add(t.piece)
	t.have += int64(len(t.out))
	t.report(t.have)
	return nil
}

// quickest is how many bytes of content a second a compressor may make of the best
// machine. Links on which even that is too slow needn't be tried.
func (p packing) quickest() float64 {
	switch {
	case p.method == packedTokens:
		return 1e9
	case p.level == 1:
		return 300e6
	}
	return 100e6
}
