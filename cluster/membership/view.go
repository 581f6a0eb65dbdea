package membership

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Kind is a kind of change.
type Kind string

// The kinds of changes.
const (
	Up      Kind = "up"      // can be reached, for the first time or again
	Down    Kind = "down"    // can't be reached
	Left    Kind = "left"    // went on purpose
	Updated Kind = "updated" // has another name, address or meta
)

// Event is a change of what is known about a member.
type Event struct {
	Kind   Kind
	Member Member
}

// view is what gossip says. It is memberlist's delegate: memberlist calls it with its
// own locks held, so it never calls back.
type view struct {
	self, name string

	mu       sync.Mutex
	meta     []byte
	up       map[string]Member // those gossip holds for alive
	lost     map[string]string // the others that didn't leave: ID -> address
	suspects map[string]time.Time
	watchers map[*watcher]bool
}

func newView(self, name string, meta []byte) *view {
	return &view{
		self: self, name: name, meta: encodeMeta(0, name, meta),
		up: map[string]Member{}, lost: map[string]string{}, suspects: map[string]time.Time{}, watchers: map[*watcher]bool{},
	}
}

// asMember copies what memberlist lends.
func asMember(n *memberlist.Node) (m Member, leaving bool) {
	m = Member{ID: n.Name, Addr: n.Address()}
	if flags, name, meta, err := decodeMeta(n.Meta); err == nil {
		m.Name, m.Meta, leaving = name, slices.Clone(meta), flags&flagLeaving != 0
	}
	return m, leaving
}

// NotifyJoin implements memberlist.EventDelegate.
func (v *view) NotifyJoin(n *memberlist.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, _ := asMember(n)
	v.up[m.ID] = m
	delete(v.lost, m.ID)
	delete(v.suspects, m.ID)
	v.emit(Event{Up, m})
}

// NotifyUpdate implements memberlist.EventDelegate.
func (v *view) NotifyUpdate(n *memberlist.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, leaving := asMember(n)
	v.up[m.ID] = m
	if !leaving {
		v.emit(Event{Updated, m})
	}
	v.clear(m.ID)
}

// NotifyLeave implements memberlist.EventDelegate.
func (v *view) NotifyLeave(n *memberlist.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, leaving := asMember(n)
	_, suspect := v.suspects[m.ID]
	delete(v.up, m.ID)
	delete(v.suspects, m.ID)
	switch {
	case leaving:
		v.emit(Event{Left, m})
		return
	case !suspect:
		v.emit(Event{Down, m})
	}
	v.lost[m.ID] = m.Addr
}

// NotifyPingComplete implements memberlist.PingDelegate: a node has answered.
func (v *view) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if since, ok := v.suspects[n.Name]; ok && time.Since(since) > graceTime {
		v.clear(n.Name)
	}
}

// clear ends a suspicion.
func (v *view) clear(id string) {
	if _, ok := v.suspects[id]; ok {
		delete(v.suspects, id)
		v.emit(Event{Up, v.up[id]})
	}
}

// AckPayload implements memberlist.PingDelegate.
func (v *view) AckPayload() []byte { return nil }

// NodeMeta implements memberlist.Delegate.
func (v *view) NodeMeta(int) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.meta
}

// NotifyMsg implements memberlist.Delegate; nodes send no messages of their own.
func (v *view) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (v *view) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (v *view) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (v *view) MergeRemoteState([]byte, bool) {}

func (v *view) setMeta(meta []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.meta = encodeMeta(0, v.name, meta)
}

func (v *view) setLeaving() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.meta = slices.Clone(v.meta) // memberlist holds the old one
	v.meta[0] |= flagLeaving
}

func (v *view) suspect(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, ok := v.up[id]
	if !ok || id == v.self {
		return
	}
	_, already := v.suspects[id]
	v.suspects[id] = time.Now()
	if !already {
		v.emit(Event{Down, m})
	}
}

func (v *view) forget(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.lost, id)
}

// someLost is the address of one of the lost members, or "".
func (v *view) someLost() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := rand.IntN(max(len(v.lost), 1))
	for _, addr := range v.lost {
		if n--; n < 0 {
			return addr
		}
	}
	return ""
}

func (v *view) alive(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, up := v.up[id]
	_, suspect := v.suspects[id]
	return up && !suspect
}

func (v *view) members() []Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.snapshot()
}

func (v *view) snapshot() []Member {
	out := make([]Member, 0, len(v.up))
	for id, m := range v.up {
		if _, suspect := v.suspects[id]; !suspect {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// watcher queues events for one reader.
type watcher struct {
	queue []Event
	more  chan struct{} // holds a token if the queue isn't empty
}

// emit tells the watchers, with mu held.
func (v *view) emit(e Event) {
	for w := range v.watchers {
		w.queue = append(w.queue, e)
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

func (v *view) watch(ctx context.Context) ([]Member, <-chan Event) {
	w := &watcher{more: make(chan struct{}, 1)}
	out := make(chan Event)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watchers[w] = true
	go v.feed(ctx, w, out)
	return v.snapshot(), out
}

func (v *view) feed(ctx context.Context, w *watcher, out chan<- Event) {
	defer close(out)
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.watchers, w)
	}()
	for {
		select {
		case <-w.more:
		case <-ctx.Done():
			return
		}
		v.mu.Lock()
		events := w.queue
		w.queue = nil
		v.mu.Unlock()
		for _, e := range events {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}
