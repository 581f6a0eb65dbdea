package node

import (
	"context"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
)

// journalSize is how many events a node remembers for those who ask for the past.
const journalSize = 1024

// journal is what happened on this node: the last events, and those who follow.
type journal struct {
	mu      sync.Mutex
	ring    []events.Message // oldest first
	grown   chan struct{}    // closed and replaced when an event came
	base    int              // number of the first event in ring
	follows int              // how many follow
}

func newJournal() *journal { return &journal{grown: make(chan struct{})} }

// add records an event. Times never go back, so that since and until cut cleanly.
func (j *journal) add(kind events.Type, action events.Action, id string, attributes map[string]string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at := time.Now()
	if n := len(j.ring); n > 0 && at.UnixNano() <= j.ring[n-1].TimeNano {
		at = time.Unix(0, j.ring[n-1].TimeNano+1)
	}
	j.ring = append(j.ring, events.Message{
		Type: kind, Action: action,
		Actor: events.Actor{ID: id, Attributes: maps.Clone(attributes)},
		Scope: "local", Time: at.Unix(), TimeNano: at.UnixNano(),
	})
	if drop := len(j.ring) - journalSize; drop > 0 {
		j.ring = append(j.ring[:0], j.ring[drop:]...)
		j.base += drop
	}
	close(j.grown)
	j.grown = make(chan struct{})
}

// from returns the events from number n on, the number after them, and a channel
// that closes when there are more. Events that are no longer there are left out.
func (j *journal) from(n int) ([]events.Message, int, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n = max(n, j.base)
	news := append([]events.Message(nil), j.ring[n-j.base:]...)
	return news, j.base + len(j.ring), j.grown
}

func (j *journal) followers(change int) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.follows += change
	return j.follows
}

// follow streams the events that the options admit.
func (j *journal) follow(ctx context.Context, o api.EventsOptions, admit func(events.Message) bool) api.Stream[events.Message] {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{ctx: ctx, cancel: cancel, journal: j, o: o, admit: admit}
	_, next, _ := j.from(0)
	if o.Since.IsZero() {
		f.next = next
	}
	if !o.Until.IsZero() {
		f.deadline = time.NewTimer(time.Until(o.Until))
		f.until = f.deadline.C
	}
	j.followers(1)
	return f
}

// follower is one reader of a journal. It holds no event back from others: it
// reads at its own pace and misses what fell out of the ring.
type follower struct {
	ctx      context.Context // the life of the stream
	cancel   context.CancelFunc
	closed   sync.Once
	journal  *journal
	o        api.EventsOptions
	admit    func(events.Message) bool
	next     int
	have     []events.Message
	deadline *time.Timer
	until    <-chan time.Time
	over     bool // until has passed: what is there is all
}

func (f *follower) Recv() (events.Message, error) {
	for {
		for len(f.have) > 0 {
			m := f.have[0]
			f.have = f.have[1:]
			if f.wants(m) {
				return m, nil
			}
		}
		var more <-chan struct{}
		f.have, f.next, more = f.journal.from(f.next)
		if len(f.have) > 0 {
			continue
		}
		if f.over {
			return events.Message{}, io.EOF
		}
		select {
		case <-more:
		case <-f.until:
			f.over = true
		case <-f.ctx.Done():
			return events.Message{}, context.Cause(f.ctx)
		}
	}
}

func (f *follower) wants(m events.Message) bool {
	if !f.o.Since.IsZero() && m.TimeNano < f.o.Since.UnixNano() {
		return false
	}
	if !f.o.Until.IsZero() && m.TimeNano > f.o.Until.UnixNano() {
		return false
	}
	return f.admit(m)
}

func (f *follower) Close() error {
	f.closed.Do(func() {
		f.journal.followers(-1)
		if f.deadline != nil {
			f.deadline.Stop()
		}
	})
	f.cancel()
	return nil
}
