package clustertest

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/membership"
	"github.com/shoal-engine/shoal/cluster/membership/memtransport"
	"github.com/shoal-engine/shoal/transfer/p2p/memory"
)

// Lab is some nodes on one network. Its methods are for one test's goroutine; those
// that can't do what they say fail the test.
type Lab struct {
	*memory.Network
	Hosts *Hosts
	Log   *slog.Logger

	t      testing.TB
	dir    string
	gossip *memtransport.Network

	mu    sync.Mutex
	nodes map[string]*Node
}

// Node is one running node.
type Node struct {
	*cluster.Cluster
	ID   string
	Host *Host // its engine, which outlives it

	wire *memory.Host
	stop context.CancelFunc
	done chan struct{} // closed when Run has returned
}

// New makes a lab without nodes; state is kept below dir.
func New(t testing.TB, dir string) *Lab {
	net := memory.NewNetwork()
	l := &Lab{
		Network: net, Log: slog.New(slog.DiscardHandler), t: t, dir: dir,
		gossip: memtransport.NewNetwork(net.Reachable), nodes: map[string]*Node{},
	}
	l.Hosts = NewHosts(func(from, to string) bool { _, err := l.engine(from, to); return err == nil })
	return l
}

// Start starts a node, which resumes what it was before.
func (l *Lab) Start(id string) *Node {
	n, run := l.Make(id)
	run()
	return n
}

// Make makes a node that doesn't run yet. run, to be called once, starts it.
func (l *Lab) Make(id string) (n *Node, run func()) {
	seed := fnv.New64a()
	fmt.Fprint(seed, id)
	ctx, cancel := context.WithCancel(context.Background())
	n = &Node{ID: id, Host: l.Hosts.Host(id, seed.Sum64()), wire: l.Network.Host(id), stop: cancel, done: make(chan struct{})}
	gossip := l.gossip.Transport(id)
	n.Cluster = cluster.New(cluster.Config{
		Dir: filepath.Join(l.dir, id), Wire: n.wire, Local: n.Host, Logger: l.Log.With("node", id),
		Self: catalog.Node{
			Name: "node-" + id, Control: n.wire.Addrs(), Gossip: gossip.Addr(), OS: "linux", Arch: "amd64",
			CPUs: 2, Memory: 8 << 30, Tags: map[string]string{"host": id},
		},
		Members: func(key []byte) (cluster.Members, error) {
			return membership.New(membership.Config{ID: id, Name: "node-" + id, Transport: l.gossip.Transport(id), Key: key, Logger: l.Log})
		},
		Peer: func(_ context.Context, to string) (api.Engine, error) { return l.engine(id, to) },
	})
	n.wire.SetAllow(n.Allow)
	return n, func() {
		go func() {
			defer close(n.done)
			if err := n.Run(ctx); err != nil {
				l.t.Errorf("node %s: %v", id, err)
			}
		}()
		l.mu.Lock()
		l.nodes[id] = n
		l.mu.Unlock()
	}
}

// engine is the engine of a node, if another node can reach it.
func (l *Lab) engine(from, to string) (api.Engine, error) {
	l.mu.Lock()
	n := l.nodes[to]
	l.mu.Unlock()
	if n == nil || !l.Reachable(from, to) {
		return nil, api.Unavailable("node %s doesn't answer", to)
	}
	return n.Host, nil
}

// Stop ends a node's agent; its containers go on.
func (l *Lab) Stop(id string) {
	l.t.Helper()
	l.mu.Lock()
	n := l.nodes[id]
	delete(l.nodes, id)
	l.mu.Unlock()
	if n == nil {
		return
	}
	n.stop()
	<-n.done
	if err := n.wire.Close(); err != nil {
		l.t.Errorf("close the wire of %s: %v", id, err)
	}
}

// Close ends everything.
func (l *Lab) Close() {
	l.t.Helper()
	l.mu.Lock()
	var ids []string
	for id := range l.nodes {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	for _, id := range ids {
		l.Stop(id)
	}
	if err := l.Hosts.Close(); err != nil {
		l.t.Errorf("end the containers: %v", err)
	}
}

// Form starts nodes and makes them a cluster in which everybody knows everybody.
func (l *Lab) Form(ctx context.Context, ids ...string) []*Node {
	l.t.Helper()
	nodes := make([]*Node, len(ids))
	for i, id := range ids {
		nodes[i] = l.Start(id)
	}
	if err := nodes[0].Init(ctx); err != nil {
		l.t.Fatalf("init: %v", err)
	}
	for _, n := range nodes[1:] {
		token, err := nodes[0].Token(ctx)
		if err != nil {
			l.t.Fatalf("token: %v", err)
		}
		if err := n.Join(ctx, token); err != nil {
			l.t.Fatalf("node %s: join: %v", n.ID, err)
		}
	}
	voters := min(5, len(ids)-(len(ids)+1)%2)
	for _, n := range nodes {
		n.Until(ctx, l.t, "everybody is there", func(v catalog.View) bool {
			have := 0
			for _, m := range v.Nodes() {
				if m.Voter {
					have++
				}
			}
			return len(v.Nodes()) == len(ids) && have == voters
		})
	}
	return nodes
}

// untilLimit bounds every wait for a view.
const untilLimit = 2 * time.Minute

// Until waits for a node's view.
func (n *Node) Until(ctx context.Context, t testing.TB, what string, ok func(catalog.View) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, untilLimit)
	defer cancel()
	for {
		// The reader is another one once the node has entered its cluster.
		r := n.Reader()
		v := r.View()
		if ok(v) {
			return
		}
		turn, next := context.WithTimeout(ctx, time.Second)
		_ = r.Wait(turn, v.Index()) // either way it is time to look again
		next()
		if ctx.Err() != nil {
			t.Fatalf("node %s: not within %s: %s; nodes: %+v", n.ID, untilLimit, what, v.Nodes())
		}
	}
}
