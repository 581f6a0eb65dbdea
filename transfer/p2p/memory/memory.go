// Package memory is a network of hosts in one process, for tests of whole clusters.
//
// Its hosts have the methods of p2p.Host and behave alike: streams are buffered and
// half-close, errors are of the same classes, and a peer that can't be heard any more
// is noticed after ten seconds. Everything waits on condition variables and timers
// only, so a network may live in a bubble of testing/synctest.
//
// A link is cut by Partition or Isolate (bytes stall, as on a broken wire) or by a
// host's Close (streams are reset at once, as when a process ends). Shape gives hosts
// a rate, which their streams share evenly, and a latency.
package memory

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/api"
)

const (
	dialTimeout = 5 * time.Second  // as p2p's
	lostAfter   = 10 * time.Second // roughly when p2p's pings give a silent peer up
	backlog     = 1024
)

// Network joins hosts. Its methods may be called concurrently.
type Network struct {
	mu     sync.Mutex
	hosts  map[string]*Host
	group  map[string]int // partition a host is in; 0 if in none
	alone  map[string]bool
	shapes map[string]*shape
	links  map[[2]string]*link
	change chan struct{} // closed and replaced when reachability changes
}

// link is the connection between two hosts.
type link struct {
	a, b  *Host
	conns map[*conn]bool // the ends at a and at b
	lost  *time.Timer    // running while the link is cut
}

// NewNetwork makes a network without hosts.
func NewNetwork() *Network {
	return &Network{
		hosts: map[string]*Host{}, group: map[string]int{}, alone: map[string]bool{},
		shapes: map[string]*shape{}, links: map[[2]string]*link{}, change: make(chan struct{}),
	}
}

// Host is the host of that ID: the one there is, or a new one if there is none or it
// was closed. IDs are free; they need not be peer IDs.
func (n *Network) Host(id string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[id]; h != nil {
		return h
	}
	for _, l := range n.links { // of an earlier host that ended while it was cut off
		if l.a.id == id || l.b.id == id {
			go n.drop(l, api.Unavailable("peer has ended"))()
		}
	}
	h := &Host{
		n: n, id: id,
		allow:     func(string, string) bool { return true },
		peers:     map[string][]string{},
		listeners: map[string]*listener{},
	}
	n.hosts[id] = h
	return h
}

// Partition lets hosts reach those of their own group only. Hosts that no group names
// form one more. It replaces an earlier Partition.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.group)
	for i, g := range groups {
		for _, id := range g {
			n.group[id] = i + 1
		}
	}
	n.rewire()
}

// Isolate cuts hosts off from all others, as if their cables were pulled.
func (n *Network) Isolate(ids ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		n.alone[id] = true
	}
	n.rewire()
}

// Heal undoes Partition and Isolate.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.group)
	clear(n.alone)
	n.rewire()
}

// Shape limits a host to a rate, in bytes per second each way (0 is unlimited), and
// delays what it sends.
func (n *Network) Shape(id string, rate int64, latency time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.shapes[id]; s != nil { // what is on its way keeps its order
		s.rate, s.latency = rate, latency
		return
	}
	n.shapes[id] = &shape{rate: rate, latency: latency}
}

// Reachable says whether packets pass from one host to another. Hosts that don't exist
// count as reachable; they just don't answer.
func (n *Network) Reachable(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reachable(from, to)
}

func (n *Network) reachable(from, to string) bool {
	return n.group[from] == n.group[to] && !n.alone[from] && !n.alone[to] || from == to
}

// rewire applies a change of reachability to the links there are.
func (n *Network) rewire() {
	close(n.change)
	n.change = make(chan struct{})
	for _, l := range n.links {
		up := n.reachable(l.a.id, l.b.id)
		switch {
		case up && l.lost != nil:
			l.lost.Stop()
			l.lost = nil
		case !up && l.lost == nil:
			l.lost = time.AfterFunc(lostAfter, func() { n.lose(l) })
		}
		for c := range l.conns {
			c.in.wake.Broadcast()
		}
	}
}

// lose breaks a link that was cut for too long.
func (n *Network) lose(l *link) {
	n.mu.Lock()
	if n.links[linkKey(l.a.id, l.b.id)] != l || l.lost == nil {
		n.mu.Unlock()
		return
	}
	call := n.drop(l, api.Unavailable("peer is silent"))
	n.mu.Unlock()
	call()
}

// drop ends a link, with n.mu held, and returns what to call without it.
func (n *Network) drop(l *link, why error) func() {
	delete(n.links, linkKey(l.a.id, l.b.id))
	if l.lost != nil {
		l.lost.Stop()
	}
	for c := range l.conns {
		c.in.fail(why)
		c.out.fail(why)
	}
	toA, toB := slices.Clone(l.a.onDisconnect), slices.Clone(l.b.onDisconnect)
	if l.a.closed {
		toA = nil
	}
	if l.b.closed {
		toB = nil
	}
	return func() {
		for _, f := range toA {
			f(l.b.id)
		}
		for _, f := range toB {
			f(l.a.id)
		}
	}
}

func linkKey(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// Addr is the address of a stream's end: a host's ID.
type Addr string

func (Addr) Network() string  { return "p2p" }
func (a Addr) String() string { return string(a) }

var _ net.Addr = Addr("")
