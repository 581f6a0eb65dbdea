package transfer

import (
	"bufio"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

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
	// recipePause is how long it may take before another one is asked, too, which may
	// have cut it already; each further one is asked after twice as long.
	recipePause = headStart / 4
	// recipeRate is how many bytes a second a holder is expected to unpack and cut.
	recipeRate = 20 << 20
	// silence is how long a holder may send nothing of what it was asked for; unpacking
	// is how long one that has to unpack much to get there.
	silence   = 2 * time.Second
	unpacking = 10 * time.Second
)

// holder is a peer with a delta session.
type holder struct {
	id   string
	conn net.Conn
	r    *bufio.Reader
}

// openDelta opens a session with a peer, about this blob.
func (f *fetch) openDelta(ctx context.Context, id string, what delta) (*holder, error) {
	dialing, stop := context.WithTimeout(ctx, connectTime)
	defer stop()
	conn, err := f.p.cfg.Dial(dialing, id)
	if err != nil {
		return nil, err
	}
	what.digest, what.size = f.digest, f.size
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := conn.Write(what.encode()); err != nil {
		conn.Close()
		return nil, err
	}
	return &holder{id, conn, bufio.NewReaderSize(conn, 4<<10)}, nil
}

// askRecipe gets the recipe from the first holder that gives one, asking one more
// whenever the last has failed or takes long. That one comes first, with its session
// open, then the others that may hold the blob.
func (f *fetch) askRecipe(ctx context.Context, by form) ([]*holder, answer) {
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
			(<-answers).h.close()
		}
	}()
	for asked, pending := 0, 0; ; {
		if asked < len(ids) {
			id := ids[asked]
			wg.Go(func() { answers <- f.recipeOf(ctx, id, by) })
			asked, pending = asked+1, pending+1
		}
		if pending == 0 {
			return nil, answer{}
		}
		var more <-chan time.Time
		if asked < len(ids) {
			more = time.After(recipePause << (asked - 1))
		}
		select {
		case a := <-answers:
			if pending--; a.err != nil {
				f.p.log.Debug("no chunk list", "peer", a.h.id, "digest", f.digest.String(), "err", a.err)
				a.h.close()
				continue
			}
			holders := []*holder{a.h}
			for _, id := range ids {
				if id != a.h.id && len(holders) < deltaHolders {
					holders = append(holders, &holder{id: id})
				}
			}
			return holders, a
		case <-more:
		case <-ctx.Done():
			return nil, answer{}
		}
	}
}

// answer is what a holder says about a recipe.
type answer struct {
	h      *holder
	recipe recipe
	sums   []uint32 // of the pieces, if the blob is compressed
	wire   int
	err    error
}

func (h *holder) close() {
	if h.conn != nil {
		h.conn.Close()
	}
}

func (f *fetch) recipeOf(ctx context.Context, id string, by form) answer {
	h, err := f.openDelta(ctx, id, delta{recipe: true, packed: true, tokens: by == byTokens})
	if err != nil {
		return answer{h: &holder{id: id}, err: err}
	}
	defer context.AfterFunc(ctx, func() { h.conn.Close() })()
	h.conn.SetReadDeadline(time.Now().Add(recipeTime + time.Duration(f.size/recipeRate)*time.Second))
	a := answer{h: h}
	a.err = a.read(f)
	return a
}

// read reads the answer to the opening of a session.
func (a *answer) read(f *fetch) error {
	for {
		kind, body, err := readFrame(a.h.r)
		if err != nil {
			return unexpected(err)
		}
		a.wire += len(body)
		last := false
		switch kind {
		case kindNone:
			return errHasNone
		case kindPacked:
			a.recipe.packing, err = decodePacked(body)
		case kindLayout:
			a.recipe.packing.layout = append(a.recipe.packing.layout, body...)
		case kindSums:
			a.sums, err = decodeSums(body, f.pieces)
		case kindChunks:
			var part chunk.Recipe
			part, last, err = decodeChunks(body)
			a.recipe.chunks = append(a.recipe.chunks, part...)
		default:
			err = errors.New("unexpected frame")
		}
		if err != nil {
			return err
		}
		if err := a.check(f.size, last); last || err != nil {
			return err
		}
	}
}

// check bounds what a holder says, and looks at the whole of it at last.
func (a *answer) check(size int64, last bool) error {
	content := a.recipe.chunks.Size()
	packed := a.recipe.packing.method != packedNot
	switch {
	case len(a.recipe.packing.layout) > maxLayout(size):
		return errors.New("layout is too long")
	case len(a.recipe.chunks) > maxRecipe || packed && content > maxContent(size):
		return errors.New("chunk list is too long")
	case last && packed && a.sums == nil:
		return errors.New("sums of the pieces are missing")
	case last && !packed && content != size:
		return api.InvalidArgument("chunk list is of %d bytes, the blob has %d", content, size)
	}
	return nil
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
	for i, c := range d.recipe.chunks {
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

func (q *runs) remaining() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.left
}

// readFrom reads runs from one holder until none is left or the holder fails.
func (d *patch) readFrom(ctx context.Context, h *holder, q *runs, results chan<- arrived) (err error) {
	if h.conn == nil {
		o, err := d.f.openDelta(ctx, h.id, delta{packed: d.by() == byContent, tokens: d.by() == byTokens})
		if err != nil {
			return err
		}
		*h = *o
	}
	defer h.conn.Close()
	defer context.AfterFunc(ctx, func() { h.conn.Close() })()
	h.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := h.conn.Write(encodeRate(d.rate)); err != nil {
		return err
	}
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
		case results <- arrived{first: owed[0].first, end: owed[0].end, content: content, peer: h.id, wire: wire, run: owed[0]}:
			ahead -= owed[0].read.len
			owed = owed[1:]
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readRun reads the answer to a read and compares it with the recipe.
func (d *patch) readRun(h *holder, r *run) (content []byte, wire int, err error) {
	patience := silence
	if d.recipe.packing.method != packedNot {
		patience = unpacking
	}
	body, err := h.readRunBody(patience)
	if err != nil {
		return nil, 0, err
	}
	if content, err = decodeRun(d.f.p.unpacker, body, r.read.len); err != nil {
		return nil, 0, err
	}
	if end, _ := d.proven(r.first, r.end, content); end != r.end {
		return nil, 0, errors.New("a chunk isn't what the chunk list says")
	}
	return content, len(body), nil
}

// readRunBody reads a run frame, whose holder begins to send within a time.
func (h *holder) readRunBody(patience time.Duration) ([]byte, error) {
	h.conn.SetReadDeadline(time.Now().Add(patience))
	kind, n, err := readHeader(h.r)
	if err != nil {
		return nil, unexpected(err)
	}
	if kind != kindRun {
		return nil, errors.New("unexpected frame")
	}
	body := make([]byte, n)
	for off := 0; off < n; {
		h.conn.SetReadDeadline(time.Now().Add(silence))
		k, err := h.r.Read(body[off:])
		if err != nil {
			return nil, unexpected(err)
		}
		off += k
	}
	return body, nil
}
