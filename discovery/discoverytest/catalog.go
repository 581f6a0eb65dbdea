// Package discoverytest is a catalog that tests fill by hand.
package discoverytest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Catalog is a catalog.Reader in memory. Its methods may be called concurrently.
type Catalog struct {
	mu      sync.Mutex
	view    *view
	changed chan struct{} // closed: view was replaced
}

// New makes a catalog with these nodes.
func New(nodes ...catalog.Node) *Catalog {
	c := &Catalog{view: newView(1, nodes, nil), changed: make(chan struct{})}
	return c
}

// View is the state now.
func (c *Catalog) View() catalog.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

// Wait blocks until the index is above after.
func (c *Catalog) Wait(ctx context.Context, after uint64) error {
	for {
		c.mu.Lock()
		index, changed := c.view.index, c.changed
		c.mu.Unlock()
		if index > after {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Put adds containers or replaces those of the same ID, all in one change.
func (c *Catalog) Put(cs ...catalog.Container) {
	c.update(func(have []catalog.Container) []catalog.Container {
		for _, n := range cs {
			i := slices.IndexFunc(have, func(h catalog.Container) bool { return h.ID == n.ID })
			if i < 0 {
				have = append(have, n)
			} else {
				have[i] = n
			}
		}
		return have
	})
}

// Remove removes the containers with these names, all in one change.
func (c *Catalog) Remove(names ...string) {
	c.update(func(have []catalog.Container) []catalog.Container {
		return slices.DeleteFunc(have, func(h catalog.Container) bool { return slices.Contains(names, h.Name) })
	})
}

// Touch makes a change that concerns no container.
func (c *Catalog) Touch() {
	c.update(func(have []catalog.Container) []catalog.Container { return have })
}

func (c *Catalog) update(f func([]catalog.Container) []catalog.Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view = newView(c.view.index+1, c.view.nodes, f(slices.Clone(c.view.containers)))
	close(c.changed)
	c.changed = make(chan struct{})
}

// Running is a healthy container that runs on a node.
func Running(name, node, address string, tags map[string]string, ports ...catalog.Port) catalog.Container {
	return catalog.Container{
		ID: fmt.Sprintf("%x", sha256.Sum256([]byte(name))), Name: name, NodeID: node, Tags: tags,
		State: container.StateRunning, Healthy: true, Started: time.Unix(1_700_000_000, 0).UTC(),
		Addresses: []netip.Addr{netip.MustParseAddr(address)}, Ports: ports,
	}
}

// Nodes makes n nodes: node1 with ID id1 at 192.0.2.1, and so on.
func Nodes(n int) []catalog.Node {
	var nodes []catalog.Node
	for i := 1; i <= n; i++ {
		nodes = append(nodes, catalog.Node{
			ID: fmt.Sprintf("id%d", i), Name: fmt.Sprintf("node%d", i),
			Host:   netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24),
		})
	}
	return nodes
}

type view struct {
	index      uint64
	nodes      []catalog.Node
	containers []catalog.Container
	byRef      map[string]int // name and ID -> place in containers
}

func newView(index uint64, nodes []catalog.Node, cs []catalog.Container) *view {
	v := &view{index: index, nodes: nodes, containers: cs, byRef: make(map[string]int, 2*len(cs))}
	for i, c := range cs {
		v.byRef[c.ID] = i
		v.byRef[c.Name] = i
	}
	return v
}

func (v *view) Index() uint64                   { return v.index }
func (v *view) Nodes() []catalog.Node           { return v.nodes }
func (v *view) Containers() []catalog.Container { return v.containers }
func (v *view) Images() []catalog.Image         { return nil }

func (v *view) Node(idOrName string) (catalog.Node, bool) {
	for _, n := range v.nodes {
		if n.ID == idOrName || n.Name == idOrName {
			return n, true
		}
	}
	return catalog.Node{}, false
}

func (v *view) Container(ref string) (catalog.Container, error) {
	if i, ok := v.byRef[ref]; ok {
		return v.containers[i], nil
	}
	for _, c := range v.containers {
		if ref != "" && strings.HasPrefix(c.ID, ref) {
			return c, nil
		}
	}
	return catalog.Container{}, api.NotFound("No such container: %s", ref)
}

func (v *view) Ref(string) (catalog.Ref, bool) { return catalog.Ref{}, false }
func (v *view) Holders(string) []catalog.Node  { return nil }
func (v *view) Private() []catalog.Private     { return nil }
func (v *view) Volumes() []catalog.Volume      { return nil }

var _ catalog.Reader = (*Catalog)(nil)
