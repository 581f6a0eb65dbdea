package transfer

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// turnPatience is how long one whose turn it is may get nothing before the next one
	// asks the source, too, and how long one who waits may be served by nobody.
	turnPatience = 2 * time.Second
	// keepWhole is for how long it is remembered who has all of a blob. The image that
	// it is part of is complete by then, and the locator knows, or it never will be.
	keepWhole = 10 * time.Minute
	maxWhole  = 16   // of these, for each blob
	maxQueues = 4096 // blobs that something is remembered of
)

// desk keeps, for blobs that nobody may hold yet, who asks their source: one at a time.
// It knows what those who want the blob tell it, for as long as they do.
type desk struct {
	mu     sync.Mutex
	queues map[digest.Digest]*queue
}

// queue is those who want one blob.
type queue struct {
	tickets []*ticket            // in the order in which they came
	whole   map[string]time.Time // who said that it has all of the blob, and when
	granted time.Time            // when somebody last got the turn
}

// ticket is one who wants a blob.
type ticket struct {
	peer   string
	news   chan struct{} // holds a token if what it is to be told may have changed
	turn   bool
	alone  bool      // got the turn because the others are of no use to it: it keeps it
	cannot bool      // is only waiting for others
	fed    bool      // came while it got the blob from somebody who hasn't come yet
	proved bool      // got something from the source since it has the turn
	moved  time.Time // when it last got something, or its turn began or ended
}

// join queues a peer, which may be asking the source already: it was told to elsewhere.
func (k *desk) join(d digest.Digest, peer string, s stand) *ticket {
	k.mu.Lock()
	defer k.mu.Unlock()
	q := k.queues[d]
	if q == nil {
		k.makeRoom()
		q = &queue{whole: map[string]time.Time{}}
		k.queues[d] = q
	}
	now := time.Now()
	maps.DeleteFunc(q.whole, func(_ string, at time.Time) bool { return now.Sub(at) > keepWhole })
	delete(q.whole, peer) // it would not ask
	q.tickets = slices.DeleteFunc(q.tickets, func(t *ticket) bool { return t.peer == peer })
	t := &ticket{peer: peer, news: make(chan struct{}, 1), moved: now, cannot: s&standCannot != 0}
	if s&standAsking != 0 && !t.cannot { // it is further than any who got the turn here
		t.turn, t.proved = true, true
		q.tickets = slices.Insert(q.tickets, 0, t)
	} else {
		t.fed = s&standServed != 0
		q.tickets = append(q.tickets, t)
	}
	q.settle(now)
	return t
}

// makeRoom forgets a blob that nobody wants now, if there are many.
func (k *desk) makeRoom() {
	if len(k.queues) < maxQueues {
		return
	}
	for d, q := range k.queues {
		if len(q.tickets) == 0 {
			delete(k.queues, d)
			return
		}
	}
}

// hear takes in what one in the queue says of itself.
func (k *desk) hear(d digest.Digest, t *ticket, s stand) {
	k.mu.Lock()
	defer k.mu.Unlock()
	q := k.queues[d]
	if q == nil || !slices.Contains(q.tickets, t) {
		return
	}
	now := time.Now()
	if s&standWhole != 0 {
		q.addWhole(t.peer, now)
	}
	if s&standCannot != 0 {
		t.cannot, t.turn = true, false
	}
	// What is said while a change of turn is on its way is of before.
	if s&standServed == 0 {
		t.fed = false
	} else if t.turn == (s&standAsking != 0) {
		t.moved, t.proved = now, t.turn
	}
	q.settle(now)
}

func (q *queue) addWhole(peer string, now time.Time) {
	if _, known := q.whole[peer]; known || len(q.whole) < maxWhole {
		q.whole[peer] = now
		q.notify()
	}
}

// leave takes one out of the queue. If it was its turn, it is the next one's at once.
func (k *desk) leave(d digest.Digest, t *ticket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	q := k.queues[d]
	if q == nil {
		return
	}
	q.tickets = slices.DeleteFunc(q.tickets, func(x *ticket) bool { return x == t })
	if len(q.tickets) == 0 && len(q.whole) == 0 {
		delete(k.queues, d)
		return
	}
	q.settle(time.Now())
}

// tell is what to say to one in the queue.
func (k *desk) tell(d digest.Digest, t *ticket) whose {
	k.mu.Lock()
	defer k.mu.Unlock()
	q := k.queues[d]
	if q == nil {
		return whose{}
	}
	now := time.Now()
	q.settle(now)
	w := whose{state: turnOthers}
	able := false
	for _, x := range q.tickets {
		able = able || !x.cannot
		if x.turn && x != t {
			w.peers = append(w.peers, x.peer)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(q.whole)) {
		if id != t.peer {
			w.peers = append(w.peers, id)
		}
	}
	w.peers = w.peers[:min(len(w.peers), maxPeers)]
	switch {
	case t.turn:
		w.state = turnYours
	case !able && (len(w.peers) == 0 || now.Sub(t.moved) >= turnPatience):
		w.state = turnNobodys
	}
	return w
}

// settle decides whose turn it is.
func (q *queue) settle(now time.Time) {
	q.revoke(now)
	turns, moving := 0, false
	var next, starved *ticket // the first that could ask, and the first that must
	for _, t := range q.tickets {
		late := now.Sub(t.moved) >= turnPatience
		switch {
		case t.turn:
			turns++
			moving = moving || !late
		case t.cannot, t.fed:
		default:
			if next == nil {
				next = t
			}
			if late && starved == nil {
				starved = t
			}
		}
	}
	if turns > 0 {
		for _, t := range q.tickets {
			t.fed = false
		}
	}
	switch {
	case next == nil:
	case starved != nil && (turns == 0 || now.Sub(q.granted) >= turnPatience):
		// Who was named to it is gone, or gives it nothing. One at a time: the others
		// that wait may do better with what this one is going to have.
		if turns == 0 {
			clear(q.whole)
		}
		starved.alone = moving
		q.grant(starved, now)
	case turns == 0 && len(q.whole) == 0, turns > 0 && !moving && now.Sub(q.granted) >= turnPatience:
		q.grant(next, now)
	}
}

// revoke takes the turn from all but one of those who got it because another seemed
// stuck, once it shows who isn't.
func (q *queue) revoke(now time.Time) {
	var keeps *ticket
	for _, t := range q.tickets {
		if t.turn && !t.alone && t.proved && now.Sub(t.moved) < turnPatience {
			keeps = t
			break
		}
	}
	if keeps == nil {
		return
	}
	for _, t := range q.tickets {
		if t.turn && !t.alone && t != keeps {
			t.turn, t.proved, t.moved = false, false, now
			q.notify()
		}
	}
}

func (q *queue) grant(t *ticket, now time.Time) {
	t.turn, t.proved, t.moved, q.granted = true, false, now, now
	q.notify()
}

func (q *queue) notify() {
	for _, t := range q.tickets {
		select {
		case t.news <- struct{}{}:
		default:
		}
	}
}
