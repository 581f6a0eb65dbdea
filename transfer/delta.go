package transfer

import (
	"bufio"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/chunk"
)

const (
	// deltaHolders is how many holders a delta is fetched from at once.
	deltaHolders = 4
	// deltaAhead and deltaAheadBytes are how much a holder may have unanswered.
	deltaAhead      = 64
	deltaAheadBytes = 2 << 20
	// deltaPatience is how long a read may take before an idle holder is asked, too.
	deltaPatience = 500 * time.Millisecond
	// recipeTime is how long a holder may take to cut a blob, at the least.
	recipeTime = 3 * time.Second
	// recipePause is how long it may take before another one is asked, too.
	recipePause = time.Second
	// recipeRate is how many bytes a second a holder is expected to cut.
	recipeRate = 100 << 20
	// silence is how long a holder may send nothing of what it was asked for.
	silence = 2 * time.Second
	// likeness is how much larger than a blob the blobs are that may be like it, or how
	// much smaller.
	likeness = 8
	// maxLike bounds how many bytes are searched for one blob.
	maxLike = 8 << 30
)

// patch makes a blob of what this node holds and the chunks that it lacks. What it
// doesn't manage is left to the swarm.
type patch struct {
	f        *fetch
	store    Store
	w        Writer
	progress *progress
	report   func(int64)

	recipe chunk.Recipe
	starts []int64       // where each chunk begins
	from   []origin      // where each chunk is to be had
	blobs  []Blob        // of the store, that origins point into
	after  map[int][]int // chunks to copy when another has come

	lacks []int // by piece, bytes that aren't there yet
	done  int64 // bytes of pieces that are there
	local int64 // bytes that were here already
}

// origin is where a chunk is to be had: in a blob of the store, earlier in the blob
// itself, or from a holder.
type origin struct {
	kind byte
	blob int   // of patch.blobs
	at   int64 // in it
}

const (
	originPeer = iota
	originBlob
	originSelf
	originDone
)

// delta tries to make the blob from what is like it. It says which peer's recipe was
// followed; empty if none was.
func (f *fetch) delta(ctx context.Context, dst Store, w Writer, g *progress, report func(int64)) (giver string, err error) {
	lister, ok := dst.(Lister)
	if !ok || f.p.recipes == nil || f.size < minDelta || f.size > maxDelta {
		return "", nil
	}
	like, err := f.p.like(ctx, dst, lister, f.digest, f.size)
	if err != nil {
		f.p.log.Warn("look for blobs that are alike", "err", err)
	}
	if len(like) == 0 {
		return "", ctx.Err()
	}
	holders, recipe := f.askRecipe(ctx)
	if recipe == nil {
		return "", ctx.Err()
	}
	defer func() {
		for _, h := range holders {
			answer{h: h}.close()
		}
	}()
	d := &patch{f: f, store: dst, w: w, progress: g, report: report, recipe: recipe, after: map[int][]int{}}
	if d.report == nil {
		d.report = func(int64) {}
	}
	defer d.close()
	d.plan()
	if err := d.find(ctx, like); err != nil {
		return "", err
	}
	missing := d.missing()
	if missing > f.size/2 { // the swarm is better at moving what everybody lacks
		return "", nil
	}
	giver = holders[0].id
	if err := d.copyLocal(ctx); err != nil {
		return giver, err
	}
	err = d.fetch(ctx, holders)
	f.p.log.Info("blob made from others", "digest", f.digest.Encoded()[:12], "bytes", f.size, "here", d.local, "lacked", missing, "moved", f.moved())
	return giver, err
}

// moved is how many bytes peers have sent so far.
func (f *fetch) moved() (n int64) {
	for _, v := range f.bytes {
		n += v
	}
	return n
}

// like are blobs that may share content with one, the likeliest first.
func (p *Peers) like(ctx context.Context, store Store, l Lister, d digest.Digest, size int64) ([]digest.Digest, error) {
	held := map[digest.Digest]int64{}
	var out []digest.Digest
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
	total := int64(0)
	out = slices.DeleteFunc(out, func(d digest.Digest) bool {
		b, err := store.Open(ctx, d)
		if err != nil {
			return true
		}
		defer b.Close()
		if !worthCutting(b) {
			return true
		}
		total += b.Size()
		return total > maxLike
	})
	return out, nil
}

func abs(n int64) int64 { return max(n, -n) }

// plan lays the recipe out over what an earlier attempt left.
func (d *patch) plan() {
	have, _ := d.progress.snapshot()
	d.lacks = make([]int, d.f.pieces)
	for i := range d.lacks {
		if have.has(i) {
			d.done += int64(pieceLen(d.f.size, i))
		} else {
			d.lacks[i] = pieceLen(d.f.size, i)
		}
	}
	d.starts = make([]int64, len(d.recipe))
	d.from = make([]origin, len(d.recipe))
	first := map[chunk.Sum]int{}
	at := int64(0)
	for i, c := range d.recipe {
		d.starts[i] = at
		switch j, seen := first[c.Sum]; {
		case d.complete(at, int(c.Len)):
			d.from[i].kind = originDone
		case seen && d.recipe[j].Len == c.Len:
			d.from[i].kind = originSelf
			d.after[j] = append(d.after[j], i)
		default:
			first[c.Sum] = i
		}
		at += int64(c.Len)
	}
}

// complete says whether all pieces that bytes lie in are there.
func (d *patch) complete(at int64, n int) bool {
	unit := pieceSize(d.f.size)
	for i := at / unit; i <= (at+int64(n)-1)/unit; i++ {
		if d.lacks[i] > 0 {
			return false
		}
	}
	return true
}

// find looks for the recipe's chunks in blobs of the store.
func (d *patch) find(ctx context.Context, like []digest.Digest) error {
	wanted := map[chunk.Sum]int{}
	for i, c := range d.recipe {
		if d.from[i].kind == originPeer {
			wanted[c.Sum] = i
		}
	}
	for _, id := range like {
		if len(wanted) == 0 {
			break
		}
		r, err := d.f.p.recipes.of(ctx, d.store, id)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			d.f.p.log.Warn("cut a blob into chunks", "digest", id.String(), "err", err)
			continue
		}
		b, err := d.store.Open(ctx, id)
		if err != nil {
			continue // removed meanwhile
		}
		d.blobs = append(d.blobs, b)
		at := int64(0)
		for _, c := range r {
			if i, ok := wanted[c.Sum]; ok && d.recipe[i].Len == c.Len {
				d.from[i] = origin{originBlob, len(d.blobs) - 1, at}
				delete(wanted, c.Sum)
			}
			at += int64(c.Len)
		}
	}
	return nil
}

// missing is how many bytes have to come from peers.
func (d *patch) missing() (n int64) {
	for i, c := range d.recipe {
		if d.from[i].kind == originPeer {
			n += int64(c.Len)
		}
	}
	return n
}

func (d *patch) close() {
	for _, b := range d.blobs {
		b.Close()
	}
}

// copyLocal writes the chunks that are here. One that isn't what it was when it was
// cut is fetched.
func (d *patch) copyLocal(ctx context.Context) error {
	buf := make([]byte, chunk.Max)
	for i, c := range d.recipe {
		if err := ctx.Err(); err != nil {
			return err
		}
		o := d.from[i]
		if o.kind != originBlob {
			continue
		}
		b := buf[:c.Len]
		if err := readFull(d.blobs[o.blob], b, o.at); err != nil || chunk.SumOf(b) != c.Sum {
			d.f.p.log.Warn("a chunk here isn't what it was", "digest", d.f.digest.String(), "err", err)
			d.from[i] = origin{}
			continue
		}
		if err := d.put(i, b); err != nil {
			return err
		}
	}
	return nil
}

// put writes a chunk, wherever the blob has it.
func (d *patch) put(i int, b []byte) error {
	for _, k := range append([]int{i}, d.after[i]...) {
		if d.from[k].kind == originDone {
			continue
		}
		if d.from[k].kind != originPeer {
			d.local += int64(len(b))
		}
		d.from[k].kind = originDone
		if err := d.write(d.starts[k], b); err != nil {
			return err
		}
	}
	return nil
}

// write also notes the pieces that are complete with it. Bytes of pieces that were
// complete before are left alone: others may be reading them.
func (d *patch) write(at int64, b []byte) error {
	unit := pieceSize(d.f.size)
	for len(b) > 0 {
		piece := int(at / unit)
		n := int(min(int64(len(b)), pieceAt(d.f.size, piece)+unit-at))
		if d.lacks[piece] > 0 {
			if _, err := d.w.WriteAt(b[:n], at); err != nil {
				return err
			}
			if d.lacks[piece] -= n; d.lacks[piece] == 0 {
				d.progress.add(piece)
				d.done += int64(pieceLen(d.f.size, piece))
				d.report(d.done)
			}
		}
		at, b = at+int64(n), b[n:]
	}
	return nil
}

// holder is a peer with a delta session.
type holder struct {
	id   string
	conn net.Conn
	r    *bufio.Reader
}

// openDelta opens a session with a peer.
func (f *fetch) openDelta(ctx context.Context, id string, recipe bool) (*holder, error) {
	dialing, stop := context.WithTimeout(ctx, connectTime)
	defer stop()
	conn, err := f.p.cfg.Dial(dialing, id)
	if err != nil {
		return nil, err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := conn.Write(delta{f.digest, f.size, recipe}.encode()); err != nil {
		conn.Close()
		return nil, err
	}
	return &holder{id, conn, bufio.NewReaderSize(conn, 4<<10)}, nil
}

// askRecipe gets the recipe from the first holder that gives one, asking one more
// whenever the last has failed or takes long. That one comes first, with its session
// open, then the others that may hold the blob.
func (f *fetch) askRecipe(ctx context.Context) ([]*holder, chunk.Recipe) {
	var ids []string
	for peer, err := range f.p.cfg.Locator.Find(ctx, f.digest) {
		if err != nil || len(ids) == maxAsked {
			break
		}
		if peer.ID != f.p.cfg.Self && !f.p.isBanned(peer.ID) && !slices.Contains(ids, peer.ID) {
			ids = append(ids, peer.ID)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, len(ids))
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for close(answers); len(answers) > 0; {
			(<-answers).close()
		}
	}()
	for asked, pending := 0, 0; ; {
		if asked < len(ids) {
			id := ids[asked]
			wg.Go(func() { answers <- f.recipeOf(ctx, id) })
			asked, pending = asked+1, pending+1
		}
		if pending == 0 {
			return nil, nil
		}
		var more <-chan time.Time
		if asked < len(ids) {
			more = time.After(recipePause)
		}
		select {
		case a := <-answers:
			if pending--; a.err != nil {
				f.p.log.Debug("no chunk list", "peer", a.h.id, "digest", f.digest.String(), "err", a.err)
				a.close()
				continue
			}
			f.bytes[a.h.id] += int64(a.wire)
			holders := []*holder{a.h}
			for _, id := range ids {
				if id != a.h.id && len(holders) < deltaHolders {
					holders = append(holders, &holder{id: id})
				}
			}
			return holders, a.recipe
		case <-more:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// answer is what a holder says about a recipe.
type answer struct {
	h      *holder
	recipe chunk.Recipe
	wire   int
	err    error
}

func (a answer) close() {
	if a.h.conn != nil {
		a.h.conn.Close()
	}
}

func (f *fetch) recipeOf(ctx context.Context, id string) answer {
	h, err := f.openDelta(ctx, id, true)
	if err != nil {
		return answer{h: &holder{id: id}, err: err}
	}
	a := answer{h: h}
	a.recipe, a.wire, a.err = h.recipe(ctx, f.size)
	return a
}

// recipe reads the answer to the opening of a session.
func (h *holder) recipe(ctx context.Context, size int64) (out chunk.Recipe, wire int, err error) {
	defer context.AfterFunc(ctx, func() { h.conn.Close() })()
	h.conn.SetReadDeadline(time.Now().Add(recipeTime + time.Duration(size/recipeRate)*time.Second))
	for {
		kind, body, err := readFrame(h.r)
		if err != nil {
			return nil, 0, unexpected(err)
		}
		if kind == kindNone {
			return nil, 0, errHasNone
		}
		if kind != kindChunks {
			return nil, 0, errors.New("unexpected frame")
		}
		part, last, err := decodeChunks(body)
		if err != nil {
			return nil, 0, err
		}
		wire += len(body)
		if out = append(out, part...); len(out) > maxRecipe {
			return nil, 0, errors.New("chunk list is too long")
		}
		if !last {
			continue
		}
		if out.Size() != size {
			return nil, 0, api.InvalidArgument("chunk list is of %d bytes, the blob has %d", out.Size(), size)
		}
		return out, wire, nil
	}
}

// run is chunks that follow each other and are read at once.
type run struct {
	first, end int // chunks
	read       read

	takers int // guarded by runs.mu, as what follows
	since  time.Time
	done   bool
}

// runs are what is to be read from holders, handed out in order.
type runs struct {
	mu      sync.Mutex
	all     []*run
	next    int
	left    int
	changed chan struct{} // closed and replaced when a run is done or given back
}

// runs cuts what is missing into reads.
func (d *patch) runs() *runs {
	q := &runs{changed: make(chan struct{})}
	for i, c := range d.recipe {
		if d.from[i].kind != originPeer {
			continue
		}
		if k := len(q.all) - 1; k >= 0 && q.all[k].end == i && q.all[k].read.len+int(c.Len) <= maxRun {
			q.all[k].end++
			q.all[k].read.len += int(c.Len)
			continue
		}
		q.all = append(q.all, &run{first: i, end: i + 1, read: read{d.starts[i], int(c.Len)}})
	}
	q.left = len(q.all)
	return q
}

// take is a run to read, for a holder that owes owed others: one that nobody reads, or,
// if it owes nothing, one that another has owed for long.
func (q *runs) take(owed int) (r *run, changed <-chan struct{}, left int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.all[q.next:] {
		if r.takers == 0 && !r.done {
			r.takers, r.since = 1, time.Now()
			return r, q.changed, q.left
		}
		if r == q.all[q.next] && r.done {
			q.next++
		}
	}
	if owed > 0 {
		return nil, q.changed, q.left
	}
	for _, r := range q.all[q.next:] {
		if !r.done && r.takers == 1 && time.Since(r.since) > deltaPatience {
			r.takers++
			return r, q.changed, q.left
		}
	}
	return nil, q.changed, q.left
}

// settle says that a run has come, or won't come from a holder that took it.
func (q *runs) settle(r *run, done bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	r.takers--
	if done && !r.done {
		r.done = true
		q.left--
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// arrived is a run's content, verified chunk by chunk.
type arrived struct {
	run     *run
	peer    string
	content []byte
	wire    int
}

// fetch gets what is missing from several holders. What can't be got is no error.
func (d *patch) fetch(ctx context.Context, holders []*holder) error {
	q := d.runs()
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan arrived)
	var wg sync.WaitGroup
	for _, h := range holders {
		wg.Go(func() {
			if err := d.readFrom(ctx, h, q, results); err != nil && ctx.Err() == nil {
				d.f.p.log.Debug("lost a holder", "peer", h.id, "digest", d.f.digest.String(), "err", err)
			}
		})
	}
	go func() { wg.Wait(); close(results) }()
	var failed error
	for a := range results {
		if failed != nil || d.from[a.run.first].kind == originDone {
			continue // a second copy
		}
		d.f.bytes[a.peer] += int64(a.wire)
		for i := a.run.first; i < a.run.end && failed == nil; i++ {
			n := int(d.recipe[i].Len)
			failed = d.put(i, a.content[:n])
			a.content = a.content[n:]
		}
		if q.settle(a.run, true); failed != nil || q.remaining() == 0 {
			cancel() // also those who still wait for second copies
		}
	}
	cancel()
	return failed
}

func (q *runs) remaining() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.left
}

// readFrom reads runs from one holder until none is left or the holder fails.
func (d *patch) readFrom(ctx context.Context, h *holder, q *runs, results chan<- arrived) (err error) {
	if h.conn == nil {
		o, err := d.f.openDelta(ctx, h.id, false)
		if err != nil {
			return err
		}
		*h = *o
	}
	defer h.conn.Close()
	defer context.AfterFunc(ctx, func() { h.conn.Close() })()
	var owed []*run
	ahead := 0 // bytes of owed
	defer func() {
		for _, r := range owed {
			q.settle(r, false)
		}
	}()
	for {
		var changed <-chan struct{}
		for len(owed) < deltaAhead && ahead < deltaAheadBytes {
			r, c, left := q.take(len(owed))
			if changed = c; left == 0 {
				return nil
			}
			if r == nil {
				break
			}
			owed = append(owed, r)
			ahead += r.read.len
			h.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := h.conn.Write(r.read.encode()); err != nil {
				return err
			}
		}
		if len(owed) == 0 {
			select {
			case <-changed:
			case <-time.After(deltaPatience):
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		content, wire, err := d.readRun(h, owed[0])
		if err != nil {
			return err
		}
		select {
		case results <- arrived{owed[0], h.id, content, wire}:
			ahead -= owed[0].read.len
			owed = owed[1:]
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readRun reads the answer to a read and compares it with the recipe.
func (d *patch) readRun(h *holder, r *run) (content []byte, wire int, err error) {
	h.conn.SetReadDeadline(time.Now().Add(silence))
	kind, n, err := readHeader(h.r)
	if err != nil {
		return nil, 0, unexpected(err)
	}
	if kind != kindRun {
		return nil, 0, errors.New("unexpected frame")
	}
	body := make([]byte, n)
	for off := 0; off < n; {
		h.conn.SetReadDeadline(time.Now().Add(silence))
		k, err := h.r.Read(body[off:])
		if err != nil {
			return nil, 0, unexpected(err)
		}
		off += k
	}
	if content, err = decodeRun(d.f.p.unpacker, body, r.read.len); err != nil {
		return nil, 0, err
	}
	rest := content
	for _, c := range d.recipe[r.first:r.end] {
		if chunk.SumOf(rest[:c.Len]) != c.Sum {
			return nil, 0, errors.New("a chunk isn't what the chunk list says")
		}
		rest = rest[c.Len:]
	}
	return content, n, nil
}
