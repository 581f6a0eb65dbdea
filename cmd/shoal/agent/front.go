package agent

import (
	"context"
	"net/http"
	"sync"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// front is what the cluster's socket and the name server show: this node alone
// while it is in no cluster, the cluster afterwards.
type front struct {
	mu      sync.Mutex
	handler http.Handler
	reader  catalog.Reader
	base    uint64        // added to the reader's index, so that it only grows
	changed chan struct{} // closed and replaced by show
}

func newFront(h http.Handler, r catalog.Reader) *front {
	return &front{handler: h, reader: r, changed: make(chan struct{})}
}

// show replaces what is seen.
func (f *front) show(h http.Handler, r catalog.Reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base += f.reader.View().Index() + 1
	f.handler, f.reader = h, r
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *front) now() (http.Handler, catalog.Reader, uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handler, f.reader, f.base, f.changed
}

// ServeHTTP serves the present engine.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, _, _, _ := f.now()
	h.ServeHTTP(w, r)
}

// View implements catalog.Reader.
func (f *front) View() catalog.View {
	_, r, base, _ := f.now()
	return shifted{r.View(), base}
}

// Wait implements catalog.Reader.
func (f *front) Wait(ctx context.Context, after uint64) error {
	for {
		_, r, base, changed := f.now()
		if base+r.View().Index() > after {
			return nil
		}
		if err := waitOrChange(ctx, r, after-min(after, base), changed); err != nil {
			return err
		}
	}
}

// waitOrChange is r.Wait that also returns when changed closes.
func waitOrChange(ctx context.Context, r catalog.Reader, after uint64, changed <-chan struct{}) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-inner.Done():
		}
	}()
	if err := r.Wait(inner, after); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

// shifted is a view whose index counts on from the readers before.
type shifted struct {
	catalog.View
	base uint64
}

func (s shifted) Index() uint64 { return s.base + s.View.Index() }

// Refs passes on what a view that can list names lists.
func (s shifted) Refs() []catalog.Ref { return refsOf(s.View) }
