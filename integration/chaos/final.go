package chaos

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/integration/lab"
)

// settleLimit is how long a cluster may take, once everything is whole and nobody
// asks for anything, until all of it agrees.
const settleLimit = 40 * time.Second

// Final looks at a cluster that is whole and left alone again.
type Final struct {
	lab   *lab.Lab
	ops   []Op
	seed  uint64
	whole []*client.Client // the cluster, through every node; the first is none
	own   []*client.Client // every node alone
}

// NewFinal looks with a history at hand.
func NewFinal(l *lab.Lab, ops []Op, seed uint64) *Final {
	f := &Final{lab: l, ops: ops, seed: seed, whole: make([]*client.Client, 1), own: make([]*client.Client, 1)}
	for n := 1; n <= l.Nodes(); n++ {
		f.whole, f.own = append(f.whole, dial(l.Socket(n))), append(f.own, dial(l.NodeSocket(n)))
	}
	return f
}

// Close gives up the connections.
func (f *Final) Close() {
	for _, c := range slices.Concat(f.whole[1:], f.own[1:]) {
		_ = c.Close() // only idle connections
	}
}

// Settle waits until the cluster agrees with itself and with the history. It returns
// how long that took, what held last, and what still doesn't hold.
func (f *Final) Settle(ctx context.Context) (took time.Duration, late, found []string) {
	start := time.Now()
	for {
		found = f.look(ctx)
		if len(found) == 0 || time.Since(start) > settleLimit || !pause(ctx, 200*time.Millisecond) {
			return time.Since(start), late, found
		}
		late = found
	}
}

// brief is what everybody must agree on about a container.
type brief struct {
	Name  string
	State container.ContainerState
	Ports string
}

func briefly(s container.Summary) brief {
	var ports []string
	for _, p := range s.Ports {
		if p.PublicPort != 0 {
			ports = append(ports, strconv.Itoa(int(p.PublicPort)))
		}
	}
	slices.Sort(ports)
	return brief{strings.TrimPrefix(strings.Join(s.Names, ","), "/"), s.State, strings.Join(slices.Compact(ports), ",")}
}

// look compares everything once.
func (f *Final) look(ctx context.Context) []string {
	whole, found := f.lists(ctx, f.whole)
	own, more := f.lists(ctx, f.own)
	if found = append(found, more...); len(found) > 0 {
		return found
	}
	first := whole[1]
	for n := 2; n < len(whole); n++ {
		found = append(found, differences(fmt.Sprintf("node%d lists", n), whole[n], "node1", first)...)
	}
	for n := 1; n < len(whole); n++ {
		found = append(found, contradictions(slices.Collect(maps.Values(whole[n])))...)
	}
	found = append(found, f.agree(first, own)...)
	return append(found, f.keeps(ctx, first)...)
}

// lists asks all at once for their containers.
func (f *Final) lists(ctx context.Context, es []*client.Client) ([]map[string]container.Summary, []string) {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	out := make([]map[string]container.Summary, len(es))
	found := make([]string, len(es))
	var g errgroup.Group
	for n := 1; n < len(es); n++ {
		g.Go(func() error {
			cs, err := es[n].ListContainers(ctx, api.ListOptions{All: true})
			if err != nil {
				found[n] = fmt.Sprintf("node%d doesn't list its containers: %v", n, err)
			}
			out[n] = map[string]container.Summary{}
			for _, s := range cs {
				out[n][s.ID] = s
			}
			return nil
		})
	}
	_ = g.Wait() // errors are findings
	return out, slices.DeleteFunc(found, func(s string) bool { return s == "" })
}

func differences(who string, a map[string]container.Summary, other string, b map[string]container.Summary) []string {
	var found []string
	for id, s := range a {
		o, ok := b[id]
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("%s %.12s %v, %s doesn't", who, id, briefly(s), other))
		case briefly(s) != briefly(o):
			found = append(found, fmt.Sprintf("%s %.12s as %v, %s as %v", who, id, briefly(s), other, briefly(o)))
		case strings.Contains(s.Status, "Unreachable"):
			found = append(found, fmt.Sprintf("%s %.12s as %s", who, id, s.Status))
		}
	}
	for id, s := range b {
		if _, ok := a[id]; !ok {
			found = append(found, fmt.Sprintf("%s no %.12s %v, %s does", who, id, briefly(s), other))
		}
	}
	return found
}

// agree compares the catalog with the nodes themselves. A claim whose creation ended
// unclear may wait for its container.
func (f *Final) agree(whole map[string]container.Summary, own []map[string]container.Summary) []string {
	var found []string
	all := map[string]container.Summary{}
	for n, cs := range own {
		for id, s := range cs {
			if _, twice := all[id]; twice {
				found = append(found, fmt.Sprintf("container %.12s is on two nodes, node%d is one", id, n))
			}
			all[id] = s
		}
	}
	claimed := map[string]container.Summary{}
	for id, s := range whole {
		op, known := byLabel(f.ops, s.Labels)
		if _, made := all[id]; !made && known && op.Verdict == Unclear {
			claimed[id] = s
		}
	}
	maps.Copy(all, claimed)
	return append(found, differences("the cluster lists", whole, "the nodes themselves", all)...)
}

// keeps compares the cluster with what was promised.
func (f *Final) keeps(ctx context.Context, whole map[string]container.Summary) []string {
	var found []string
	note := func(e Expected, format string, args ...any) {
		found = append(found, fmt.Sprintf(format, args...)+f.story(e.Op.ID))
	}
	for id, e := range expect(f.ops) {
		s, there := whole[id]
		now := briefly(s)
		switch {
		case e.Gone && there:
			note(e, "%.12s is back after its acknowledged removal", id)
		case e.There && !there:
			note(e, "%.12s is lost after its acknowledged creation", id)
		case !there:
		case e.Name != "" && now.Name != e.Name:
			note(e, "%.12s is called %s, not %s", id, now.Name, e.Name)
		case e.State != "" && now.State != e.State:
			note(e, "%.12s is %s, not %s", id, now.State, e.State)
		case e.Started != "" && e.State == container.StateRunning:
			if why := f.uninterrupted(ctx, id, e.Started); why != "" {
				note(e, "%s", why)
			}
		}
	}
	made := map[int]string{}
	for id, s := range whole {
		op, known := byLabel(f.ops, s.Labels)
		if !known || s.Labels[roundLabel] != strconv.FormatUint(f.seed, 10) {
			continue
		}
		if other, twice := made[op.N]; twice {
			found = append(found, fmt.Sprintf("one creation made %.12s and %.12s: %s", id, other, op))
		}
		made[op.N] = id
		if op.Verdict == Refused {
			found = append(found, fmt.Sprintf("%.12s %v is there though its creation was refused: %s", id, briefly(s), op))
		}
	}
	return found
}

// uninterrupted says how a container's start isn't the one it had, if so.
func (f *Final) uninterrupted(ctx context.Context, id, started string) string {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	i, err := f.whole[1+len(id)%(len(f.whole)-1)].InspectContainer(ctx, id, api.InspectOptions{})
	switch {
	case err != nil:
		return fmt.Sprintf("%.12s can't be inspected: %v", id, err)
	case i.State == nil || !i.State.Running || i.State.StartedAt != started:
		return fmt.Sprintf("%.12s was interrupted: %+v, started %s before", id, i.State, started)
	}
	return ""
}

// story is all that was done to a container.
func (f *Final) story(id string) string {
	var b strings.Builder
	for _, o := range f.ops {
		if o.ID == id {
			b.WriteString("\n      " + o.String())
		}
	}
	return b.String()
}

// Again makes a container of every name that is free, with every port that is, and
// then removes everything the round made.
func (f *Final) Again(ctx context.Context) []string {
	whole, found := f.lists(ctx, f.whole)
	taken := map[string]bool{}
	for _, s := range whole[1] {
		taken[briefly(s).Name] = true
		if s.State == container.StateRunning || s.State == container.StateCreated {
			taken[briefly(s).Ports] = true
			op, _ := byLabel(f.ops, s.Labels) // a created one holds a port that it doesn't show
			taken[strconv.Itoa(int(op.Port))] = true
		}
	}
	port := 0
	for i := range names {
		op := Op{N: -1 - i, Name: fmt.Sprint("n", i)}
		if taken[op.Name] {
			continue
		}
		for ; port < ports && taken[strconv.Itoa(firstPort+port)]; port++ {
		}
		if port < ports {
			op.Port = firstPort + uint16(port)
			port++
		}
		e := f.whole[1+i%(len(f.whole)-1)]
		if err := f.use(ctx, e, op); err != nil {
			found = append(found, fmt.Sprintf("name %s, port %d are free and can't be had: %v", op.Name, op.Port, err))
		}
	}
	return append(found, f.clear(ctx)...)
}

func (f *Final) use(ctx context.Context, e *client.Client, op Op) error {
	ctx, cancel := context.WithTimeout(ctx, 2*opLimit)
	defer cancel()
	made, err := e.CreateContainer(ctx, sleeper(op, f.seed))
	if err != nil {
		return err
	}
	return e.StartContainer(ctx, made.ID, api.StartOptions{})
}

// clear removes every container there is.
func (f *Final) clear(ctx context.Context) []string {
	whole, found := f.lists(ctx, f.whole)
	i := 0
	for id, s := range whole[1] {
		i++
		try, cancel := context.WithTimeout(ctx, 2*opLimit)
		if err := f.whole[1+i%(len(f.whole)-1)].RemoveContainer(try, id, api.RemoveOptions{Force: true}); err != nil {
			found = append(found, fmt.Sprintf("%.12s %v can't be removed: %v", id, briefly(s), err))
		}
		cancel()
	}
	for n, cs := range slices.Concat(f.rest(ctx, f.whole), f.rest(ctx, f.own)) {
		for id, s := range cs {
			found = append(found, fmt.Sprintf("%.12s %v is left after everything was removed (list %d)", id, briefly(s), n))
		}
	}
	return found
}

func (f *Final) rest(ctx context.Context, es []*client.Client) []map[string]container.Summary {
	cs, _ := f.lists(ctx, es) // who doesn't answer was told of before
	return cs
}
