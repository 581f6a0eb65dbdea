package chaos

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/integration/lab"
)

// Bounds of what is promised at any time.
const (
	// listBound is how long a listing may take on an agent that runs, whatever the
	// rest of the cluster does, on a machine that is busy with all of it.
	listBound = 3 * time.Second
	// staleBound is how long a node that is well may still show what was removed: a
	// leader may have to be elected in between.
	staleBound = 5 * time.Second
	watchEvery = 100 * time.Millisecond
)

// Findings are contradictions, each told once. Its methods may be called concurrently.
type Findings struct {
	mu   sync.Mutex
	seen map[string]bool
	all  []string
}

// Add notes a contradiction unless its key was noted before.
func (f *Findings) Add(key, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[string]bool{}
	}
	if !f.seen[key] {
		f.seen[key] = true
		f.all = append(f.all, fmt.Sprintf(format, args...))
	}
}

// All are the findings so far.
func (f *Findings) All() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.all...)
}

// Watch looks at every node all the time and checks each answer by itself.
type Watch struct {
	lab *lab.Lab
	h   *History
	n   *Nemesis
	f   *Findings

	mu    sync.Mutex
	looks int
}

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	for node := 1; node <= w.lab.Nodes(); node++ {
		c := dial(w.lab.Socket(node))
		tasks.Go(func() {
			defer c.Close()
			for pause(ctx, watchEvery) {
				w.list(ctx, node, c)
				w.resolve(ctx, node)
			}
		})
	}
	tasks.Wait()
}

// Looks is how many listings were checked.
func (w *Watch) Looks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.looks
}

func (w *Watch) list(ctx context.Context, node int, c *client.Client) {
	runs, gen := w.n.Runs(node)
	if !runs {
		return
	}
	asked := w.h.Now()
	try, cancel := context.WithTimeout(ctx, listBound)
	defer cancel()
	cs, err := c.ListContainers(try, api.ListOptions{All: true})
	if still, now := w.n.Runs(node); ctx.Err() != nil || !still || now != gen {
		return
	}
	if err != nil {
		w.f.Add(fmt.Sprint("list", node), "%.3f: node%d runs and doesn't list within %v: %v", asked.Seconds(), node, listBound, err)
		return
	}
	w.mu.Lock()
	w.looks++
	w.mu.Unlock()
	for _, what := range contradictions(cs) {
		w.f.Add(what, "%.3f: node%d lists %s", asked.Seconds(), node, what)
	}
	for id, at := range w.stale(node, asked) {
		for _, s := range cs {
			if s.ID == id {
				w.f.Add("stale list"+id, "%.3f: node%d still lists container %.12s (%s), whose removal was acknowledged at %.3f", asked.Seconds(), node, id, s.Names, at.Seconds())
			}
		}
	}
}

// stale are the containers that a node must have forgotten when it was asked.
func (w *Watch) stale(node int, asked time.Duration) map[string]time.Duration {
	if w.n.WellSince(node) > asked-staleBound {
		return nil
	}
	return w.h.removedBefore(asked - staleBound)
}

// resolve looks a name up as DNS would.
func (w *Watch) resolve(ctx context.Context, node int) {
	asked := w.h.Now()
	stale := w.stale(node, asked)
	if len(stale) == 0 {
		return
	}
	try, cancel := context.WithTimeout(ctx, listBound)
	defer cancel()
	name := fmt.Sprint("n", int(asked/watchEvery)%names)
	found, err := w.lab.Control(node).Resolve(try, discovery.Query{Name: name, Port: 80}, 0)
	if err != nil {
		if runs, _ := w.n.Runs(node); runs && ctx.Err() == nil && !errdefs.IsNotFound(err) && w.n.WellSince(node) <= asked {
			w.f.Add(fmt.Sprint("resolve", node), "%.3f: node%d is well and doesn't resolve: %v", asked.Seconds(), node, err)
		}
		return
	}
	for _, e := range found {
		if at, removed := stale[e.ID]; removed {
			w.f.Add("stale name"+e.ID, "%.3f: node%d resolves %s to %s of container %.12s, whose removal was acknowledged at %.3f",
				asked.Seconds(), node, name, e.Address, e.ID, at.Seconds())
		}
	}
}

// contradictions are what no listing may show: a name or a published port twice.
func contradictions(cs []container.Summary) []string {
	var found []string
	held := map[string]string{}
	claim := func(what, id string) {
		if other, taken := held[what]; taken && other != id {
			found = append(found, fmt.Sprintf("%s twice: of %.12s and %.12s", what, min(id, other), max(id, other)))
		}
		held[what] = id
	}
	for _, s := range cs {
		for _, name := range s.Names {
			claim("name "+strings.TrimPrefix(name, "/"), s.ID)
		}
		if s.State != container.StateRunning && s.State != container.StatePaused {
			continue
		}
		for _, p := range s.Ports {
			if p.PublicPort != 0 {
				claim(fmt.Sprintf("port %d/%s", p.PublicPort, p.Type), s.ID)
			}
		}
	}
	return found
}
