package pace

import (
	"sync"
	"time"
)

const (
	// A segment is what a peer may send in its turn: ten milliseconds of the rate, within
	// bounds. On a slow limit even the last of many has its turn within the time after
	// which a silent peer is replaced.
	minSegment  = 1 << 10
	maxSegment  = 16 << 10
	segmentTime = 10 * time.Millisecond
	// small is what never waits.
	small = 512
	// burst is how much time unused, or lost to a late timer, may be made up for.
	burst = 5 * time.Millisecond
)

// Limit is a rate that streams share in one direction. Its methods may be called
// concurrently; nil is no limit.
type Limit struct {
	rate    float64 // bytes a second
	segment int

	mu    sync.Mutex
	free  time.Time // when all that was let pass has passed
	lines map[string]*line
	queue []*line // in the order of their turns
	armed bool    // a timer will call serve
}

// line is what one peer's streams wait for.
type line struct {
	peer    string
	waiting []*pass
}

// pass is leave for some bytes.
type pass struct {
	n  int
	ok chan struct{} // closed when they may go
}

// New makes a limit of so many bytes a second; nil if that is 0.
func New(rate int64) *Limit {
	if rate <= 0 {
		return nil
	}
	return &Limit{
		rate:    float64(rate),
		segment: min(max(int(float64(rate)*segmentTime.Seconds()), minSegment), maxSegment),
		lines:   map[string]*line{},
	}
}

// wait returns when n bytes to or from a peer may pass, or false when stop is closed.
func (l *Limit) wait(stop <-chan struct{}, peer string, n int) bool {
	l.mu.Lock()
	if n <= small || len(l.queue) == 0 && l.behind() >= 0 {
		l.take(n)
		l.mu.Unlock()
		return true
	}
	q := l.lines[peer]
	if q == nil {
		q = &line{peer: peer}
		l.lines[peer] = q
	}
	p := &pass{n: n, ok: make(chan struct{})}
	if q.waiting = append(q.waiting, p); len(q.waiting) == 1 {
		l.queue = append(l.queue, q)
	}
	l.arm()
	l.mu.Unlock()
	select {
	case <-p.ok:
		return true
	case <-stop:
		l.forget(q, p)
		return false
	}
}

// behind is how long ago all that was let pass has passed; negative if it hasn't.
func (l *Limit) behind() time.Duration { return time.Since(l.free) }

// take counts bytes that pass.
func (l *Limit) take(n int) {
	if least := time.Now().Add(-burst); l.free.Before(least) {
		l.free = least
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
}

// arm sees to it that serve is called when the next bytes may pass.
func (l *Limit) arm() {
	if !l.armed && len(l.queue) > 0 {
		l.armed = true
		time.AfterFunc(max(-l.behind(), 0), l.serve)
	}
}

// serve lets pass whose turn it is.
func (l *Limit) serve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	for len(l.queue) > 0 && l.behind() >= 0 {
		q := l.queue[0]
		p := q.waiting[0]
		l.queue = l.queue[1:]
		if q.waiting = q.waiting[1:]; len(q.waiting) > 0 {
			l.queue = append(l.queue, q)
		} else {
			delete(l.lines, q.peer)
		}
		l.take(p.n)
		close(p.ok)
	}
	l.arm()
}

// forget takes a pass out of its line that nobody waits for any more.
func (l *Limit) forget(q *line, p *pass) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, x := range q.waiting {
		if x == p {
			q.waiting = append(q.waiting[:i:i], q.waiting[i+1:]...)
			break
		}
	}
	if len(q.waiting) > 0 || l.lines[q.peer] != q {
		return
	}
	delete(l.lines, q.peer)
	for i, x := range l.queue {
		if x == q {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			break
		}
	}
}
