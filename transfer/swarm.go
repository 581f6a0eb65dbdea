package transfer

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-engine/shoal/api"
)

const (
	maxSuppliers = 12
	// firstSuppliers are asked at once, and one more every moreSuppliers: when many begin
	// together the first names that are told are those of the first to come, and whoever
	// took only these would leave the last to come without anybody who asks them.
	firstSuppliers = 2
	moreSuppliers  = 10 * time.Millisecond
	// maxCandidates bounds what peers can make us remember of each other.
	maxCandidates = 256
	tick          = 50 * time.Millisecond
	// hedgeTime is how long nothing may arrive before one more peer is tried than there
	// are pieces to ask for.
	hedgeTime = 250 * time.Millisecond
	// lateFactor is how many times the usual time a piece may take before an idle peer
	// is asked for it, too.
	lateFactor = 3
	// lateTime is how long any piece may take before that.
	lateTime = 60 * time.Millisecond
	// stallTime is how long a peer that owes something may send nothing before it is
	// replaced, if there are others; stallLimit is for the last one.
	stallTime  = 700 * time.Millisecond
	stallLimit = 10 * time.Second
	// retryTime is when a peer that failed may be tried again, and soonTime when one that
	// failed at once may be: there may have been a rush.
	retryTime   = time.Second
	soonTime    = 200 * time.Millisecond
	maxFailures = 3
	// firstBusy and lastBusy are when a peer that was busy is tried again, about; each
	// pause is twice the one before.
	firstBusy = 250 * time.Millisecond
	lastBusy  = 4 * time.Second
	// busyLimit is how long nothing may come while all peers are busy.
	busyLimit = 30 * time.Second
	// maxNones is how often in a row a holder of all may say that it hasn't got a piece.
	maxNones = 4
	// starveTime is how long to wait for news if no peer has what is missing.
	starveTime  = 5 * time.Second
	connectTime = 3 * time.Second
	// aheadTime is how much is asked in advance of all peers together, in terms of each
	// one's rate.
	aheadTime = 200 * time.Millisecond
	// minWindow is how many pieces what has come may at least be scattered over.
	minWindow = 16
	// minSummed is how many pieces a blob has whose pieces' sums are asked for: others
	// are soon fetched again.
	minSummed = 8
	minAhead  = 2
	maxAhead  = 32      // pieces of one peer
	mostAhead = 1 << 20 // bytes
)

var (
	// errHasNone ends a session with a peer that hasn't got the blob.
	errHasNone = errors.New("peer hasn't got it")
	// errBusy ends a session with a peer that serves as many as it can.
	errBusy = errors.New("peer is busy")
)

// swarm fetches one blob from many peers. One loop owns the state; goroutines for I/O
// post to it.
type swarm struct {
	f        *fetch
	progress *progress
	w        Writer
	only     string // the one peer to ask, if set
	report   func(int64)
	notes    *notes

	events chan func()
	wg     sync.WaitGroup
	cancel context.CancelFunc

	candidates map[string]*candidate
	order      []string    // of candidates: those the locator named, then the others by chance
	named      int         // how many the locator named
	started    time.Time   // when run was called
	active     int         // candidates that have a session, or get one
	doubled    bool        // a peer was asked over connections of their own
	alone      atomic.Bool // doubled, nothing was there before, and no other peer was asked since
	suppliers  []*supplier
	origins    []string // peers that get the blob from outside
	located    bool     // the locator has said all
	awaits     bool     // others may tell of peers for as long as it runs
	anybody    bool     // some peer had something
	lost       error

	missing  bitmap
	left     int // pieces of missing
	low      int // no piece before it is missing
	top      int // every piece from it on is
	inflight []int8
	sparing  bitmap   // pieces left to another way, when one is chosen; nil for none
	avail    []uint16 // how many suppliers have a piece, without those that choose
	done     int64
	lastNews time.Time // when a piece came or a session said what it has
	err      error

	sums     map[string][]uint32 // what holders say the pieces' sums are
	reported int64

	sample  int       // end after so many pieces; 0: only when all are here
	got     int       // pieces that came
	keeping int       // pieces that came and are being written
	began   time.Time // when a peer first said what it has
	last    time.Time // when the last piece came
	peak    float64   // bytes a second of the fastest peer at its fastest
}

func newSwarm(f *fetch, g *progress, w Writer, only string, report func(int64), n *notes) *swarm {
	s := &swarm{
		f: f, progress: g, w: w, only: only, report: report,
		notes:      n,
		events:     make(chan func(), 64),
		candidates: map[string]*candidate{},
		sums:       map[string][]uint32{},
		missing:    newBitmap(f.pieces),
		inflight:   make([]int8, f.pieces),
		avail:      make([]uint16, f.pieces),
	}
	if s.report == nil {
		s.report = func(int64) {}
	}
	have, _ := g.snapshot()
	for i := range f.pieces {
		if have.has(i) {
			s.top = i + 1
			s.done += int64(pieceLen(f.size, i))
		} else {
			s.missing.set(i)
			s.left++
		}
	}
	return s
}

// run returns when every piece is written, or why that can't be.
func (s *swarm) run(ctx context.Context) error {
	if s.done > 0 {
		s.report(s.done)
	}
	if s.left == 0 {
		return nil
	}
	ctx, s.cancel = context.WithCancel(ctx)
	defer s.wg.Wait()
	defer s.hangUp()
	defer s.cancel()
	s.f.p.mu.Lock()
	s.f.swarm = s
	s.f.p.mu.Unlock()
	s.lastNews, s.started = time.Now(), time.Now()
	s.locate(ctx)
	t := time.NewTicker(tick)
	defer t.Stop()
	for s.left > 0 && s.err == nil && (s.sample == 0 || s.got < s.sample) {
		s.connect(ctx)
		select {
		case event := <-s.events:
			event()
		case <-t.C:
			s.check()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.err
}

// rate is how many bytes a second came; 0 if that isn't known.
func (s *swarm) rate() float64 {
	if took := s.last.Sub(s.began); took > 0 && s.got > 0 {
		return max(s.peak, float64(int64(s.got)*pieceSize(s.f.size))/took.Seconds())
	}
	return s.peak
}

// sampled says whether as many pieces as are wanted are here or under way.
func (s *swarm) sampled() bool {
	if s.sample == 0 {
		return false
	}
	n := s.got + s.keeping
	for _, u := range s.suppliers {
		n += len(u.asked)
	}
	return n >= s.sample
}

// post hands an event to the loop.
func (s *swarm) post(ctx context.Context, event func()) error {
	select {
	case s.events <- event:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *swarm) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

// askSums has the holders of all tell the pieces' sums, once there are peers that could
// contradict each other: telling them costs a holder reading the whole blob.
func (s *swarm) askSums() {
	known := 0
	for _, u := range s.suppliers {
		if u.known && !u.beside {
			known++
		}
	}
	if s.only != "" || s.f.pieces < minSummed || known < 2 {
		return
	}
	for _, u := range s.suppliers {
		if !u.whole || u.checks || u.beside {
			continue
		}
		select {
		case u.out <- frame(kindCheck):
			u.checks = true
		default: // with the next news
		}
	}
}

// hangUp ends all sessions.
func (s *swarm) hangUp() {
	for _, u := range s.suppliers {
		close(u.out)
		u.conn.Close()
	}
	s.suppliers = nil
}

// session talks with one peer until either side has had enough.
func (s *swarm) session(ctx context.Context, id string) {
	u, err := s.talk(ctx, id, s.f.p.cfg.Dial, false)
	_ = s.post(ctx, func() { s.onEnd(id, u, err) }) // nobody asks once it has ended
}

// talk has a session with a peer, and says why it ended.
func (s *swarm) talk(ctx context.Context, id string, dial func(context.Context, string) (net.Conn, error), beside bool) (*supplier, error) {
	dialing, stop := context.WithTimeout(ctx, connectTime)
	conn, err := dial(dialing, id)
	stop()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	u := &supplier{peer: id, beside: beside, conn: conn, pieceSize: float64(pieceSize(s.f.size)), out: make(chan []byte, 2*maxAhead), arrivals: make(chan *arrival), have: newBitmap(s.f.pieces)}
	u.lastByte.Store(time.Now().UnixNano())
	u.out <- want{digest: s.f.digest, size: s.f.size, fetching: s.only == "" && !beside}.encode()
	if err := s.post(ctx, func() { s.suppliers = append(s.suppliers, u); s.noteOrigin(u) }); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	wg.Go(func() {
		if err := u.write(asking); err != nil {
			conn.Close()
		}
	})
	if s.keepsApart() {
		wg.Go(func() { u.keep(ctx, s) })
	}
	defer close(u.arrivals)
	return u, u.read(ctx, s)
}

// drop ends a session; what it owed is asked of others. Its goroutine will call onEnd.
func (s *swarm) drop(u *supplier, why error) {
	s.f.p.log.Debug("drop a peer", "peer", u.peer, "digest", s.f.digest.String(), "why", why)
	s.suppliers = slices.DeleteFunc(s.suppliers, func(x *supplier) bool { return x == u })
	close(u.out)
	u.conn.Close()
	for _, r := range u.asked {
		if r.piece >= 0 {
			s.inflight[r.piece]--
		}
	}
	u.asked = nil
	if !u.chooses() {
		for i := range s.f.pieces {
			if u.have.has(i) {
				s.avail[i]--
			}
		}
	}
	s.askAll()
}

func (s *swarm) onHave(u *supplier, h have) {
	if !slices.Contains(s.suppliers, u) {
		return
	}
	u.known, s.anybody, s.lastNews = true, true, time.Now()
	if s.began.IsZero() {
		s.began = s.lastNews
	}
	if h.state == stateWhole {
		for i := range s.f.pieces {
			if !u.chooses() && u.have.has(i) {
				s.avail[i]--
			}
		}
		u.whole = true
		if !slices.Contains(s.notes.whole, u.peer) {
			s.notes.whole = append(s.notes.whole, u.peer)
		}
	} else if !u.whole {
		for i := range s.f.pieces {
			if h.pieces.has(i) {
				s.onHas(u, i)
			}
		}
	}
	s.askSums()
	s.ask(u)
}

func (s *swarm) onMore(u *supplier, pieces []int) {
	if !slices.Contains(s.suppliers, u) || u.whole {
		return
	}
	for _, i := range pieces {
		s.onHas(u, i)
	}
	s.ask(u)
}

// onBegun notes which piece a peer chose, or catches one that sends what it likes.
func (s *swarm) onBegun(u *supplier, piece int) {
	if len(u.asked) == 0 {
		if slices.Contains(s.suppliers, u) {
			s.drop(u, errors.New("it sends what wasn't asked for"))
		}
		return
	}
	r := &u.asked[0]
	switch {
	case r.piece == piece:
	case r.piece < 0 && r.any.has(piece):
		r.piece = piece
		s.inflight[piece]++
	default:
		s.drop(u, errors.New("it sends what wasn't asked for"))
	}
}

func (s *swarm) onNone(u *supplier) {
	if len(u.asked) == 0 {
		return
	}
	if r := s.answered(u); r.piece >= 0 {
		s.inflight[r.piece]--
		s.onLacks(u, r.piece)
	}
	if u.nones++; u.chooses() && u.nones >= maxNones {
		s.drop(u, errors.New("it gives nothing of what it says it has"))
		return
	}
	s.askAll()
}

// answered takes the request off that a peer has answered. The piece is under way until
// the caller says otherwise.
func (s *swarm) answered(u *supplier) request {
	r := u.asked[0]
	u.asked = u.asked[1:]
	return r
}

// askAll gives every peer that could do more something to do.
func (s *swarm) askAll() {
	for _, u := range slices.Clone(s.suppliers) {
		s.ask(u)
	}
}

// check replaces peers that stall, helps slow ones, and gives up if nobody has the rest.
func (s *swarm) check() {
	now := time.Now()
	for _, piece := range s.progress.takeOutside() {
		s.onHere(piece)
	}
	alive := 0
	var stalled []*supplier
	for _, u := range s.suppliers {
		silent := now.Sub(time.Unix(0, u.lastByte.Load()))
		switch {
		case u.known && len(u.asked) == 0 || silent < stallTime:
			alive++
		default:
			stalled = append(stalled, u)
		}
		if silent > stallLimit && (!u.known || len(u.asked) > 0) {
			s.drop(u, errors.New("it went silent"))
		}
	}
	for _, u := range stalled {
		if alive > 0 && slices.Contains(s.suppliers, u) {
			s.drop(u, errors.New("it stalls"))
		}
	}
	s.askAll()
	if now.Sub(s.lastNews) > starveTime && s.located && !slices.ContainsFunc(s.suppliers, func(u *supplier) bool {
		return u.whole || len(u.asked) > 0 || !u.known
	}) && len(s.suppliers) > 0 {
		s.fail(api.Unavailable("fetch blob %s: no peer that is left has the rest of it", s.f.digest))
	}
}
