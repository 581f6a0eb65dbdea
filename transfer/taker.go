package transfer

import (
	"bufio"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// seekTime bounds how long a node to ask whose turn it is may be looked for; after
	// that this node is on its own. seekOne is how long one of them may take, and
	// seekNext how long until the next one is tried beside it.
	seekTime = time.Second
	seekOne  = 500 * time.Millisecond
	seekNext = 100 * time.Millisecond
	// shunTime is for how long one that was lost isn't asked again.
	shunTime = 10 * time.Second
	// claimTime is how long those who wait leave to the one whose turn it is to say so
	// to the next node, if the one that knew is lost.
	claimTime = 300 * time.Millisecond
	// leastCome is how many bytes a source must give in a turnBeat for others not to be
	// asked instead: 8 KiB a second.
	leastCome = 4 << 10
)

// taker gets a fetch its turn at a source, and asks it then. One goroutine, run, owns
// what has no other note.
type taker struct {
	*through
	f    *fetch
	s    *swarm
	dst  Store
	want ocispec.Descriptor

	here  chan struct{} // closed when all pieces are here: the swarm's loop has ended
	over  chan struct{} // closed when the fetch has ended
	whole bool          // and whether the blob is here then

	turn   bool     // the desk says so
	named  []string // who it named
	failed error    // why the source didn't give it; read by others after run has ended

	asking chan error         // gets how the asking ended; nil while nobody asks
	stop   context.CancelFunc // ends the asking
	came   atomic.Int64       // bytes from the source since the last beat
	served atomic.Bool        // peers give, or are about to
	fed    atomic.Bool        // those give whom the desk named
}

func newTaker(t *through, f *fetch, s *swarm, dst Store, want ocispec.Descriptor) *taker {
	return &taker{through: t, f: f, s: s, dst: dst, want: want, here: make(chan struct{}), over: make(chan struct{})}
}

// arrived says that all pieces are here, so that nothing is missing for the desk either.
func (k *taker) arrived() { close(k.here) }

// end says how the fetch ended, and so ends run.
func (k *taker) end(whole bool) {
	k.whole = whole
	close(k.over)
}

// run asks one desk after the other, as they are lost.
func (k *taker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer k.stopAsking()
	lost := map[string]time.Time{}
	for {
		conn, desk := k.seek(ctx, &wg, lost)
		if k.follow(ctx, conn) {
			return
		}
		lost[desk] = time.Now()
		k.lose(desk)
		if k.turn = k.asking != nil; !k.turn && k.pause(ctx, claimTime) {
			return
		}
	}
}

// lose takes a desk that was lost from those who were to give the blob, unless something
// came lately: if that was the node whose turn it was, nobody is to wait for it.
func (k *taker) lose(desk string) {
	named := k.named
	k.named = slices.DeleteFunc(slices.Clone(named), func(id string) bool { return id == desk })
	left := k.named
	k.s.later(func() {
		recent := time.Since(k.s.last) < turnPatience
		k.served.Store(k.s.isServed(left))
		k.fed.Store(k.s.isFed(left) || recent && k.s.isFed(named))
	})
}

// pause waits; true says that the fetch has ended.
func (k *taker) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-k.over:
	case <-ctx.Done():
	}
	return true
}

// seek opens a session with the first desk that answers. This node's own always does.
func (k *taker) seek(ctx context.Context, wg *sync.WaitGroup, lost map[string]time.Time) (net.Conn, string) {
	now := k.stands()
	if now&standAsking == 0 && !k.fed.Load() && !k.isHere() {
		now &^= standServed
	}
	first := turn{digest: k.f.digest, stand: now}.encode()
	if conn, id := k.seekOthers(ctx, wg, lost); conn != nil {
		conn.SetWriteDeadline(time.Now().Add(seekOne))
		if _, err := conn.Write(first); err == nil {
			return conn, id
		}
		conn.Close()
		lost[id] = time.Now()
	}
	near, far := net.Pipe()
	wg.Go(func() {
		s := &session{p: k.p, conn: far, peer: k.p.cfg.Self, writing: make(chan struct{}, 1)}
		defer far.Close()
		_ = s.serveTurn(ctx, bufio.NewReaderSize(far, 64), first[headerSize:]) // ends with near
	})
	return near, k.p.cfg.Self
}

// seekOthers dials those before this node in the order, the next one before it is sure
// that the one before won't answer. None if they don't within a time.
func (k *taker) seekOthers(ctx context.Context, wg *sync.WaitGroup, lost map[string]time.Time) (net.Conn, string) {
	var order []string
	for _, id := range deskOrder(k.f.digest, k.p.cfg.Members()) {
		if id == k.p.cfg.Self {
			break
		}
		if at, ok := lost[id]; !ok || time.Since(at) >= shunTime {
			order = append(order, id)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, seekTime)
	d := newDials(len(order), func(i int) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, seekOne)
		defer cancel()
		return k.p.cfg.Dial(ctx, order[i])
	})
	defer wg.Go(d.hangUp)
	defer cancel()
	next := time.NewTicker(seekNext)
	defer next.Stop()
	d.next()
	for {
		if i, conn := d.best(); conn != nil {
			return conn, order[i]
		} else if i == len(order) {
			return nil, ""
		}
		select {
		case r := <-d.results:
			if d.took(r); r.err != nil {
				lost[order[r.i]] = time.Now()
				k.p.log.Debug("ask whose turn it is", "peer", order[r.i], "digest", k.f.digest.String(), "err", r.err)
				d.next()
			}
		case <-next.C:
			d.next()
		case <-k.over:
			return nil, ""
		case <-ctx.Done():
			return nil, ""
		}
	}
}

// follow does what a desk says until that is lost, or the fetch is over.
func (k *taker) follow(ctx context.Context, conn net.Conn) (over bool) {
	news := make(chan whose)
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	defer close(done)
	wg.Go(func() { readWhose(conn, news, done) })
	beat := time.NewTicker(turnBeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case w, ok := <-news:
			if !ok {
				return false
			}
			k.heard(w)
		case asked := <-k.asking:
			k.asking = nil
			if !errors.Is(asked, context.Canceled) {
				k.failed = asked
			}
			err = k.say(conn, k.stands())
		case <-beat.C:
			err = k.say(conn, k.stands())
		case <-k.over:
			if k.whole {
				_ = k.say(conn, standWhole) // nobody waits for this one
			}
			return true
		case <-ctx.Done():
			return true
		}
		if err != nil {
			return false
		}
		k.settle(ctx)
	}
}

// readWhose passes on what a desk says, and closes news when it says nothing more.
func readWhose(conn net.Conn, news chan<- whose, done <-chan struct{}) {
	defer close(news)
	r := bufio.NewReaderSize(conn, 1<<10)
	patience := seekTime
	for {
		conn.SetReadDeadline(time.Now().Add(patience))
		kind, body, err := readFrame(r)
		if err != nil || kind != kindWhose {
			return
		}
		w, err := decodeWhose(body)
		if err != nil {
			return
		}
		select {
		case news <- w:
		case <-done:
			return
		}
		patience = turnSilence
	}
}

func (k *taker) say(conn net.Conn, s stand) error {
	conn.SetWriteDeadline(time.Now().Add(turnSilence))
	_, err := conn.Write(encodeStand(s))
	return err
}

// stands is how things stand here since the last time.
func (k *taker) stands() stand {
	var s stand
	got := k.came.Swap(0) >= leastCome
	if k.asking != nil || k.turn && k.isHere() {
		s |= standAsking
	} else {
		got = k.served.Load()
		named := k.named
		k.s.later(func() {
			k.served.Store(k.s.isServed(named))
			k.fed.Store(k.s.isFed(named))
		})
	}
	if k.failed != nil {
		s |= standCannot
	}
	if got || k.isHere() {
		s |= standServed
	}
	return s
}

func (k *taker) isHere() bool {
	select {
	case <-k.here:
		return true
	default:
		return false
	}
}

// heard takes in what the desk says.
func (k *taker) heard(w whose) {
	k.turn, k.named = w.state == turnYours, w.peers
	k.s.later(func() {
		k.s.onPeers(w.peers)
		k.s.onOrigins(w.peers)
	})
	if failed := k.failed; w.state == turnNobodys && failed != nil {
		k.s.later(func() { k.s.onNobody(failed) })
	}
}

// settle begins or ends the asking, as the turn has come or gone.
func (k *taker) settle(ctx context.Context) {
	switch {
	case k.asking != nil && (!k.turn || k.isHere()):
		k.stop()
	case k.turn && k.asking == nil && k.failed == nil && !k.isHere() && k.s.progress.gap(0) < k.f.pieces:
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		k.asking, k.stop = ended, stop
		go func() { ended <- k.ask(ctx) }()
	}
}

func (k *taker) stopAsking() {
	if k.asking != nil {
		k.stop()
		<-k.asking //nolint:errcheck // what it was asked for isn't wanted any more
	}
}
