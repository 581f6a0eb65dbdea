package catalog

import (
	"context"
	"sync"
	"sync/atomic"
)

// WithLiveness is a reader whose views mark the containers of nodes that can't be
// reached as Lost, whatever the catalog itself says of the node. alive is asked
// once per node and view. A receive from changed says that alive may answer
// differently now; Run takes them.
func WithLiveness(r Reader, alive func(nodeID string) bool, changed <-chan struct{}) *Liveness {
	l := &Liveness{reader: r, alive: alive, changed: changed}
	l.tick.Store(&tick{next: make(chan struct{})})
	return l
}

// Liveness is made by WithLiveness.
type Liveness struct {
	reader  Reader
	alive   func(string) bool
	changed <-chan struct{}
	tick    atomic.Pointer[tick]

	mu   sync.Mutex // guards last
	last *liveView
}

// tick counts the changes of liveness; next is closed when it grows.
type tick struct {
	n    uint64
	next chan struct{}
}

// Run counts changes of liveness until ctx ends.
func (l *Liveness) Run(ctx context.Context) error {
	for {
		select {
		case _, ok := <-l.changed:
			if !ok {
				return nil
			}
			l.bump()
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *Liveness) bump() {
	old := l.tick.Load()
	l.tick.Store(&tick{n: old.n + 1, next: make(chan struct{})})
	close(old.next)
}

// View is the catalog now with liveness now.
func (l *Liveness) View() View {
	t := l.tick.Load() // before the view: a change in between only makes the view newer
	v := l.reader.View()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil && l.last.Index() >= v.Index()+t.n {
		return l.last
	}
	up := map[string]bool{}
	for _, n := range v.Nodes() {
		up[n.ID] = l.alive(n.ID)
	}
	l.last = &liveView{View: v, up: up, index: v.Index() + t.n}
	return l.last
}

// Wait blocks until the view's index is above after.
func (l *Liveness) Wait(ctx context.Context, after uint64) error {
	for {
		t := l.tick.Load()
		v := l.reader.View().Index()
		if v+t.n > after {
			return nil
		}
		if l.waitEither(ctx, v, t); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// waitEither returns after the catalog or liveness moved on, or ctx ended.
func (l *Liveness) waitEither(ctx context.Context, index uint64, t *tick) {
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	both.Go(func() {
		defer cancel()
		// An error means only that the other side was first.
		_ = l.reader.Wait(ctx, index)
	})
	select {
	case <-t.next:
	case <-ctx.Done():
	}
	cancel()
	both.Wait()
}

// liveView is a view with Lost filled in from liveness.
type liveView struct {
	View
	up    map[string]bool
	index uint64

	containers lazy[[]Container]
}

func (v *liveView) Index() uint64 { return v.index }

// Reachable says whether a node could be reached when the view was made.
func (v *liveView) Reachable(nodeID string) bool { return v.up[nodeID] }

func (v *liveView) Containers() []Container {
	return v.containers.get(func() []Container {
		// The slice of the inner view belongs to it.
		cs := append([]Container(nil), v.View.Containers()...)
		for i := range cs {
			cs[i].Lost = !v.up[cs[i].NodeID]
		}
		return cs
	})
}

// Refs are all cluster-wide image names, sorted.
func (v *liveView) Refs() []Ref {
	if l, ok := v.View.(interface{ Refs() []Ref }); ok {
		return l.Refs()
	}
	return nil
}

func (v *liveView) Container(ref string) (Container, error) {
	c, err := v.View.Container(ref)
	c.Lost = err == nil && !v.up[c.NodeID]
	return c, err
}

var _ Reader = (*Liveness)(nil)
