package catalog

import (
	"cmp"
	"strings"
	"sync"

	"github.com/hashicorp/go-memdb"

	"github.com/shoal-engine/shoal/api"
)

// view is the state at one index. Listings are computed when first asked for and
// kept, since many ask for the same one.
type view struct {
	db    *memdb.MemDB
	index uint64

	nodes      lazy[[]Node]
	containers lazy[[]Container]
	images     lazy[[]Image]
	private    lazy[[]Private]
	volumes    lazy[[]Volume]
}

// lazy is a value computed once.
type lazy[T any] struct {
	once sync.Once
	v    T
}

func (l *lazy[T]) get(f func() T) T {
	l.once.Do(func() { l.v = f() })
	return l.v
}

func (v *view) Index() uint64 { return v.index }

func (v *view) Nodes() []Node {
	return v.nodes.get(func() []Node { return list[Node](v.db.Txn(false), tableNode, "name_prefix", "") })
}

func (v *view) Node(idOrName string) (Node, bool) {
	t := v.db.Txn(false)
	n, ok := first[Node](t, tableNode, "id", idOrName)
	if !ok {
		n, ok = first[Node](t, tableNode, "name", idOrName)
	}
	if !ok {
		return Node{}, false
	}
	return *n, true
}

func (v *view) Containers() []Container {
	return v.containers.get(func() []Container {
		t := v.db.Txn(false)
		cs := list[Container](t, tableContainer, "newest_prefix", "")
		down := map[string]bool{}
		for _, n := range v.Nodes() {
			down[n.ID] = n.Down
		}
		for i := range cs {
			cs[i].Lost = down[cs[i].NodeID]
		}
		return cs
	})
}

func (v *view) Container(ref string) (Container, error) {
	t := v.db.Txn(false)
	c, err := findContainer(t, ref)
	if err != nil {
		return Container{}, err
	}
	found := *c
	if n, ok := first[Node](t, tableNode, "id", c.NodeID); ok {
		found.Lost = n.Down
	}
	return found, nil
}

// findContainer looks a container up as Docker does: full ID, name, then prefix.
func findContainer(t *memdb.Txn, ref string) (*Container, error) {
	if ref == "" || ref == "/" {
		return nil, api.InvalidArgument("No container name or ID supplied")
	}
	if c, ok := first[Container](t, tableContainer, "id", ref); ok {
		return c, nil
	}
	if c, ok := first[Container](t, tableContainer, "name", strings.TrimPrefix(ref, "/")); ok {
		return c, nil
	}
	it, err := t.Get(tableContainer, "id_prefix", ref)
	if err != nil {
		return nil, api.Internal("look up container: %w", err)
	}
	c, ok := it.Next().(*Container)
	if !ok {
		return nil, api.NotFound("No such container: %s", ref)
	}
	if it.Next() != nil {
		return nil, api.InvalidArgument("multiple IDs found with provided prefix: %s", ref)
	}
	return c, nil
}

func (v *view) Images() []Image {
	return v.images.get(func() []Image { return list[Image](v.db.Txn(false), tableImage, "id_prefix", "") })
}

func (v *view) Ref(name string) (Ref, bool) {
	r, ok := first[Ref](v.db.Txn(false), tableRef, "id", name)
	if !ok {
		return Ref{}, false
	}
	return *r, true
}

// Refs are all cluster-wide image names, sorted.
func (v *view) Refs() []Ref { return list[Ref](v.db.Txn(false), tableRef, "id_prefix", "") }

func (v *view) Holders(digest string) []Node {
	t := v.db.Txn(false)
	var ns []Node
	for _, i := range list[Image](t, tableImage, "digest", digest) {
		if n, ok := first[Node](t, tableNode, "id", i.NodeID); ok {
			ns = append(ns, *n)
		}
	}
	return ns
}

func (v *view) Private() []Private {
	return v.private.get(func() []Private { return list[Private](v.db.Txn(false), tablePrivate, "id_prefix", "") })
}

func (v *view) Volumes() []Volume {
	return v.volumes.get(func() []Volume { return list[Volume](v.db.Txn(false), tableVolume, "id_prefix", "") })
}

func (v *view) settings() (SetSettings, bool) {
	s, ok := first[settings](v.db.Txn(false), tableSettings, "id", tableSettings)
	if !ok {
		return SetSettings{}, false
	}
	return s.SetSettings, s.Subnet.IsValid()
}

func (v *view) seq(node string) nodeSeq {
	s, ok := first[nodeSeq](v.db.Txn(false), tableSeq, "id", node)
	if !ok {
		return nodeSeq{NodeID: node}
	}
	return *s
}

// first finds one record. An error of memdb can only mean that table or index is
// misspelt, which reads as absence and fails every test of this package.
func first[T any](t *memdb.Txn, table, index, arg string) (*T, bool) {
	o, err := t.First(table, index, arg)
	if err != nil {
		return nil, false
	}
	r, ok := o.(*T)
	return r, ok
}

// list copies all records under an index.
func list[T any](t *memdb.Txn, table, index, arg string) []T {
	found := pointers[T](t, table, index, arg)
	if len(found) == 0 {
		return nil
	}
	out := make([]T, len(found)) // records are large: copied once
	for i, r := range found {
		out[i] = *r
	}
	return out
}

func pointers[T any](t *memdb.Txn, table, index, arg string) []*T {
	it, err := t.Get(table, index, arg)
	if err != nil {
		return nil
	}
	var out []*T
	for o := it.Next(); o != nil; o = it.Next() {
		if r, ok := o.(*T); ok {
			out = append(out, r)
		}
	}
	return out
}

var _ View = (*view)(nil)

// protoOf is a port's protocol with Docker's default.
func protoOf(p Port) string { return cmp.Or(p.Proto, "tcp") }
