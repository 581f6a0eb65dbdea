package transfer

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/transfer/chunk"
)

const (
	// headStart is how long likeness is looked for before any whole piece is asked for:
	// enough if everything is cut already.
	headStart = 50 * time.Millisecond
	// sampleSize is how much is then fetched whole, at most, to see how fast peers are.
	sampleSize = 1 << 20
	// patience is which part of the time that moving everything takes may be spent on
	// looking for likeness alone.
	patience = 0.1
	// cutRate is about how many bytes a second are cut. Who gets them as fast from peers
	// gains nothing by looking on.
	cutRate = 400e6
	// likeness is how much larger than a blob the blobs are that may be like it, or how
	// much smaller.
	likeness = 8
	// maxLike bounds how many bytes are searched for one blob, maxCut how many blobs are
	// cut for it that nobody has cut before.
	maxLike = 8 << 30
	maxCut  = 4
)

// delta tries to make the blob from what is like it, beside the swarm if finding that
// takes long. It says which peer's recipe was followed; empty if none was. What it
// doesn't get is left to the swarm.
func (f *fetch) delta(ctx context.Context, dst Store, w Writer, g *progress, report func(int64), n *notes) (giver string, err error) {
	lister, ok := dst.(Lister)
	if !ok || f.p.recipes == nil || f.size < minDelta || f.size > maxDelta {
		return "", nil
	}
	if report == nil {
		report = func(int64) {}
	}
	r := &race{f: f, w: w, progress: g, report: report, notes: n, start: time.Now(), found: make(chan *patch, 1)}
	var searching context.Context
	searching, r.stop = context.WithCancel(ctx)
	defer r.stop()
	go func() { r.found <- f.search(searching, dst, lister) }()
	d, err := r.run(ctx)
	if d == nil {
		return "", err
	}
	defer d.close()
	giver = d.holders[0].id
	f.count(giver, int64(d.wire))
	return giver, d.run(ctx, r)
}

// race is a search for likeness and, if that takes long, the swarm beside it.
type race struct {
	f        *fetch
	w        Writer
	progress *progress
	report   func(int64)
	notes    *notes

	start time.Time
	found chan *patch // gets one patch; nil if there is no likeness
	stop  func()      // ends the search
	rate  float64     // bytes a second that peers send; 0 is unknown
}

// run returns what to make the blob with, or nil: then the swarm has it, or is to get it.
func (r *race) run(ctx context.Context) (*patch, error) {
	d, ready := r.wait(ctx, headStart)
	if ready && d == nil {
		return nil, ctx.Err()
	}
	if err := r.sample(ctx); err != nil { // the swarm that follows will tell why
		return nil, r.giveUp(ctx, d, ready)
	}
	if !ready {
		d, ready = r.wait(ctx, time.Duration(r.wholeTime()*patience)-time.Since(r.start))
	}
	if ready {
		return r.judge(d), ctx.Err()
	}
	if r.rate > cutRate {
		return nil, r.giveUp(ctx, nil, false)
	}
	return r.both(ctx)
}

// wait waits for the search.
func (r *race) wait(ctx context.Context, at time.Duration) (d *patch, ready bool) {
	t := time.NewTimer(at)
	defer t.Stop()
	select {
	case d := <-r.found:
		return d, true
	case <-t.C:
		return nil, false
	case <-ctx.Done():
		return nil, false
	}
}

// giveUp ends the search.
func (r *race) giveUp(ctx context.Context, d *patch, ready bool) error {
	r.stop()
	if !ready {
		d = <-r.found
	}
	d.close()
	return ctx.Err()
}

// swarm fetches pieces as they are, all or some.
func (r *race) swarm(ctx context.Context, pieces int) (*swarm, error) {
	s := newSwarm(r.f, r.progress, r.w, "", r.report, r.notes)
	s.sample = pieces
	return s, s.run(ctx)
}

// sample finds out how fast peers are.
func (r *race) sample(ctx context.Context) error {
	n := min(int(sampleSize/pieceSize(r.f.size)), r.f.pieces/32)
	s, err := r.swarm(ctx, max(1, n))
	r.rate = s.rate()
	return err
}

// wholeTime is how many nanoseconds moving what isn't here takes; 0 if that isn't known.
func (r *race) wholeTime() float64 {
	if r.rate == 0 {
		return 0
	}
	return float64(r.left()) / r.rate * float64(time.Second)
}

// left is how many bytes of the blob aren't here.
func (r *race) left() int64 {
	have, _ := r.progress.snapshot()
	return int64(r.f.pieces-have.count()) * pieceSize(r.f.size)
}

// both goes on searching while the swarm works, until either is done.
func (r *race) both(ctx context.Context) (*patch, error) {
	whole, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := r.swarm(whole, 0)
		ended <- err
	}()
	select {
	case d := <-r.found:
		if d = r.judge(d); d == nil {
			return nil, <-ended
		}
		cancel()
		<-ended //nolint:errcheck // of an error, the swarm that follows will tell
		return d, ctx.Err()
	case err := <-ended:
		r.stop()
		(<-r.found).close()
		return nil, err
	}
}

// judge returns the patch, of two, that takes less time, if following it moves much less
// than moving everything that isn't here, and takes no longer.
func (r *race) judge(d *patch) (best *patch) {
	if d == nil {
		return nil
	}
	both := []*patch{d, d.other}
	d.other = nil
	least := 0.0
	for _, p := range both {
		if p == nil {
			continue
		}
		takes, worth := r.takes(p)
		if worth && (best == nil || takes < least) {
			best, least = p, takes
		}
	}
	for _, p := range both {
		if p != best {
			p.close()
		}
	}
	return best
}

// takes is about how many nanoseconds following a patch takes, and whether it is worth
// it.
func (r *race) takes(d *patch) (takes float64, worth bool) {
	have, _ := r.progress.snapshot()
	missing, left := float64(d.lay(have)), float64(r.left())
	if d.recipe.packing.method == packedNot {
		return missing, missing <= left/2
	}
	missing *= float64(r.f.size) / float64(d.content) // it is compressed, too
	makes := float64(d.content) / d.recipe.packing.quickest() * float64(time.Second)
	worth = missing <= left/2 && makes <= r.wholeTime()*(1+patience)
	return max(makes, missing/max(r.rate, 1)*float64(time.Second)), worth
}

// search looks for what the blob can be made of. It returns nil if that isn't worth it.
func (f *fetch) search(ctx context.Context, store Store, lister Lister) *patch {
	like, err := f.p.like(ctx, lister, f.digest, f.size)
	if err != nil {
		f.p.log.Warn("look for blobs that are alike", "err", err)
	}
	if len(like) == 0 {
		return nil
	}
	by := byContent
	if slices.ContainsFunc(like[:min(len(like), maxCut)], func(d digest.Digest) bool { return isGzip(ctx, store, d) }) {
		by = byTokens
	}
	d := f.match(ctx, store, like, by)
	if d == nil || d.by() == byContent || d.lay(nil) <= d.content/3 {
		return d
	}
	// What is alike was compressed by something else, or by what is slow to find the same
	// tokens after a change.
	if d.other = f.match(ctx, store, like, byContent); d.other != nil {
		d.other.wire += d.wire
	}
	return d
}

// isGzip says whether a blob is, as far as its first bytes tell.
func isGzip(ctx context.Context, store Store, d digest.Digest) bool {
	b, err := store.Open(ctx, d)
	if err != nil {
		return false
	}
	defer b.Close()
	var head [2]byte
	return readFull(b, head[:], 0) == nil && bytes.HasPrefix(head[:], gzipMagic)
}

// match gets a recipe, of a form if a holder has that, and looks for its chunks in what
// is like the blob.
func (f *fetch) match(ctx context.Context, store Store, like []digest.Digest, by form) *patch {
	cutting, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // while a holder does the same
		defer close(done)
		_, _ = f.p.recipes.of(cutting, store, like[0], by)
	}()
	holders, a := f.askRecipe(ctx, by)
	if holders == nil {
		cancel()
	}
	<-done
	cancel()
	if holders == nil {
		return nil
	}
	d := &patch{f: f, store: store, recipe: a.recipe, sums: a.sums, content: a.recipe.chunks.Size(), holders: holders, wire: a.wire}
	d.find(ctx, like)
	if ctx.Err() != nil {
		d.close()
		return nil
	}
	return d
}

// like are blobs that may share content with one, the likeliest first.
func (p *Peers) like(ctx context.Context, l Lister, d digest.Digest, size int64) ([]digest.Digest, error) {
	held := map[digest.Digest]int64{}
	var out []digest.Digest
	total := int64(0)
	for b, err := range l.Blobs(ctx) {
		if err != nil {
			return nil, err
		}
		held[b.Digest] = b.Size
		if b.Digest != d && b.Size >= minDelta && b.Size <= maxDelta && b.Size <= size*likeness && b.Size >= size/likeness {
			out = append(out, b.Digest)
		}
	}
	if err := p.recipes.prune(held); err != nil {
		p.log.Warn("forget the chunks of blobs that are gone", "err", err)
	}
	slices.SortFunc(out, func(a, b digest.Digest) int {
		return int(abs(held[a]-size) - abs(held[b]-size))
	})
	return slices.DeleteFunc(out, func(d digest.Digest) bool {
		total += held[d]
		return total > maxLike
	}), nil
}

func abs(n int64) int64 { return max(n, -n) }

// find looks for the recipe's chunks in blobs of the store.
func (d *patch) find(ctx context.Context, like []digest.Digest) {
	d.here = map[chunk.Sum]origin{}
	wanted := map[chunk.Sum]uint32{}
	for _, c := range d.recipe.chunks {
		wanted[c.Sum] = c.Len
	}
	for i, id := range like {
		if len(wanted) == 0 || ctx.Err() != nil {
			return
		}
		if i >= maxCut && !d.f.p.recipes.made(id, d.by()) {
			continue
		}
		r, err := d.f.p.recipes.of(ctx, d.store, id, d.by())
		if err != nil {
			d.f.p.log.Debug("cut a blob into chunks", "digest", id.String(), "err", err)
			continue
		}
		d.search(ctx, id, r, wanted)
	}
}

// search takes from wanted what one blob has. What is compressed must have much of it:
// to get at anything, all of it has to be unpacked.
func (d *patch) search(ctx context.Context, id digest.Digest, r recipe, wanted map[chunk.Sum]uint32) {
	got, at, bytes := map[chunk.Sum]int64{}, int64(0), int64(0)
	for _, c := range r.chunks {
		if n, ok := wanted[c.Sum]; ok && n == c.Len {
			if _, again := got[c.Sum]; !again {
				bytes += int64(n)
			}
			got[c.Sum] = at
		}
		at += int64(c.Len)
	}
	if len(got) == 0 || r.packing.method != packedNot && bytes < d.content/16 {
		return
	}
	b, err := d.store.Open(ctx, id)
	if err != nil {
		return // removed meanwhile
	}
	d.sources = append(d.sources, old{b, r.packing})
	for sum, at := range got {
		d.here[sum] = origin{originBlob, len(d.sources) - 1, at}
		delete(wanted, sum)
	}
}
