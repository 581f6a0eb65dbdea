package discovery

import (
	"context"
	"io"
	"maps"
	"net/netip"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// The types of changes.
const (
	Snapshot = "snapshot" // first and once: everything there is, perhaps nothing
	Added    = "added"    // endpoints that weren't there
	Changed  = "changed"  // endpoints whose container restarted or whose other fields differ
	Removed  = "removed"  // endpoints as they were last
)

// Change is one difference between two moments of the catalog.
type Change struct {
	Index     uint64     `json:"index"` // of the catalog that shows it
	Type      string     `json:"type"`
	Endpoints []Endpoint `json:"endpoints"`
}

// Watch streams the endpoints that the query means: a snapshot, then every
// difference from it. What appears and goes again between two readings of the
// catalog may be left out; the sum of all changes is always the latest state.
// Within one index, removals come before additions. The stream ends with ctx's
// error when ctx ends and with io.EOF after Close.
func Watch(ctx context.Context, r catalog.Reader, q Query) (api.Stream[Change], error) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &watch{ctx: ctx, cancel: cancel, reader: r, query: q}, nil
}

// watch computes changes when they are asked for, so a slow receiver costs
// nothing and skips what it would have seen undone.
type watch struct {
	ctx    context.Context // the life of the stream, not of one call
	cancel context.CancelCauseFunc
	reader catalog.Reader
	query  Query

	index   uint64
	known   map[key]Endpoint // nil before the snapshot
	pending []Change
}

// key identifies an endpoint through its changes.
type key struct {
	id      string
	address netip.Addr
	port    uint16
	proto   string
}

func (w *watch) Recv() (Change, error) {
	for len(w.pending) == 0 {
		if err := w.advance(); err != nil {
			return Change{}, err
		}
	}
	c := w.pending[0]
	w.pending = w.pending[1:]
	return c, nil
}

func (w *watch) Close() error {
	w.cancel(io.EOF)
	return nil
}

// advance reads the next state of the catalog and queues what differs.
func (w *watch) advance() error {
	if w.known != nil {
		if err := w.reader.Wait(w.ctx, w.index); err != nil {
			if cause := context.Cause(w.ctx); cause != nil {
				return cause
			}
			return err
		}
	} else if err := context.Cause(w.ctx); err != nil {
		return err
	}
	v := w.reader.View()
	w.index = v.Index()
	found := Find(v, w.query)
	if w.known == nil {
		w.known = byKey(found)
		w.queue(Snapshot, found)
		return nil
	}
	w.diff(found)
	return nil
}

func (w *watch) diff(found []Endpoint) {
	now := byKey(found)
	var removed, added, changed []Endpoint
	for _, e := range found {
		was, ok := w.known[e.key()]
		switch {
		case !ok:
			added = append(added, e)
		case !was.equal(&e):
			changed = append(changed, e)
		}
	}
	for k, e := range w.known {
		if _, ok := now[k]; !ok {
			removed = append(removed, e)
		}
	}
	sortEndpoints(removed)
	w.known = now
	for _, c := range []Change{{Type: Removed, Endpoints: removed}, {Type: Changed, Endpoints: changed}, {Type: Added, Endpoints: added}} {
		if len(c.Endpoints) > 0 {
			w.queue(c.Type, c.Endpoints)
		}
	}
}

func (w *watch) queue(kind string, es []Endpoint) {
	if es == nil {
		es = []Endpoint{} // reads as [] in JSON
	}
	w.pending = append(w.pending, Change{Index: w.index, Type: kind, Endpoints: es})
}

func byKey(es []Endpoint) map[key]Endpoint {
	m := make(map[key]Endpoint, len(es))
	for _, e := range es {
		m[e.key()] = e
	}
	return m
}

func (e *Endpoint) key() key { return key{e.ID, e.Address, e.Port, e.Proto} }

func (e *Endpoint) equal(o *Endpoint) bool {
	return e.Name == o.Name && e.Node == o.Node && e.NodeID == o.NodeID &&
		e.Published == o.Published && e.Since.Equal(o.Since) && maps.Equal(e.Tags, o.Tags)
}
