package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/integration/lab"
)

// Harm is what the nemesis does.
type Harm string

// Harms. Those of leaders find out when they begin who leads.
const (
	Kill          Harm = "kill"           // -9, and start again
	KillLeader    Harm = "kill leader"    //
	Restart       Harm = "stop"           // gracefully, and start again
	RestartLeader Harm = "stop leader"    //
	Freeze        Harm = "freeze"         // connections stay, nobody answers
	FreezeLeader  Harm = "freeze leader"  //
	Split         Harm = "split"          // from the others
	SplitLeader   Harm = "split leader"   //
	Shatter       Harm = "shatter"        // into pieces without a majority
	Flap          Harm = "flap"           // off and on, quickly
	Slow          Harm = "slow"           // links of little bandwidth
	KillSplit     Harm = "kill and split" // some die while others are cut off
)

// harms as often as they are to be chosen.
var harms = []Harm{
	Kill, Kill, Kill, KillLeader, KillLeader, Restart, Restart, RestartLeader, Freeze, FreezeLeader,
	Split, Split, SplitLeader, SplitLeader, Shatter, Flap, Slow, KillSplit, KillSplit,
}

// Step is one harm of a plan.
type Step struct {
	After time.Duration // the harm before has ended
	Harm  Harm
	Nodes []int // who is harmed; of KillSplit the first half dies
	Hold  time.Duration
	Rate  uint64 // of Slow, bits a second
}

func (s Step) String() string {
	return fmt.Sprintf("%s %v for %v", s.Harm, s.Nodes, s.Hold.Round(time.Millisecond))
}

// Plan is the schedule that a seed determines.
func Plan(seed uint64, nodes int, length time.Duration) []Step {
	r := rand.New(rand.NewPCG(seed, 0))
	var plan []Step
	for left := length; left > 0; {
		s := Step{
			After: time.Duration(200+r.IntN(1500)) * time.Millisecond,
			Harm:  harms[r.IntN(len(harms))],
			Hold:  time.Duration(300+r.IntN(4700)) * time.Millisecond,
			Rate:  1 << (17 + r.IntN(5)),
		}
		s.Nodes = r.Perm(nodes)
		for i := range s.Nodes {
			s.Nodes[i]++
		}
		// Mostly a minority, sometimes most of them.
		switch many := 1 + r.IntN(nodes-1); {
		case strings.HasSuffix(string(s.Harm), "leader"):
			s.Nodes = nil
		case s.Harm == Shatter:
		case s.Harm == KillSplit:
			s.Nodes = s.Nodes[:2]
		default:
			s.Nodes = s.Nodes[:min(many, 1+r.IntN(nodes-1))]
		}
		left -= s.After + s.Hold
		plan = append(plan, s)
	}
	return plan
}

// Nemesis carries a plan out and knows who is well.
type Nemesis struct {
	lab *lab.Lab
	h   *History
	say func(string, ...any)

	mu     sync.Mutex
	runs   []bool          // by node: its agent runs and isn't frozen
	gen    []int           // by node: how often that changed
	well   []time.Duration // by node: since when nothing else is wrong either; forever if something is
	quorum time.Duration   // since when most nodes are well; forever if they aren't
}

// NewNemesis makes a nemesis for a lab that is whole.
func NewNemesis(l *lab.Lab, h *History, say func(string, ...any)) *Nemesis {
	n := &Nemesis{lab: l, h: h, say: say}
	n.runs, n.well, n.gen = make([]bool, l.Nodes()+1), make([]time.Duration, l.Nodes()+1), make([]int, l.Nodes()+1)
	for i := range n.runs {
		n.runs[i] = true
	}
	return n
}

// Runs says whether a node's agent runs, and a number that changes whenever the
// answer does.
func (n *Nemesis) Runs(node int) (bool, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.runs[node], n.gen[node]
}

// WellSince is since when a node is well and so are most others; forever if that isn't
// so. How late it may show things is measured from there.
func (n *Nemesis) WellSince(node int) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(n.well[node], n.quorum)
}

func (n *Nemesis) mark(node int, runs, well bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.runs[node] != runs {
		n.gen[node]++
	}
	n.runs[node], n.well[node] = runs, forever
	if well {
		n.well[node] = n.h.Now()
	}
	count := 0
	for _, since := range n.well[1:] {
		if since != forever {
			count++
		}
	}
	switch {
	case count < majority(n.lab.Nodes()):
		n.quorum = forever
	case n.quorum == forever:
		n.quorum = n.h.Now()
	}
}

func majority(nodes int) int { return nodes/2 + 1 }

// Run carries out the plan and leaves everything whole. An error is one of the lab:
// an agent that can't be started again is a finding.
func (n *Nemesis) Run(ctx context.Context, plan []Step) error {
	for _, s := range plan {
		if !pause(ctx, s.After) {
			return nil
		}
		if strings.HasSuffix(string(s.Harm), "leader") {
			leader := n.leader(ctx)
			if leader == 0 {
				n.say("%v: nobody leads", s.Harm)
				continue
			}
			s.Nodes = []int{leader}
		}
		n.say("%s", s)
		err := n.do(ctx, s)
		n.say("over: %s", s.Harm)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// leader is the number of the node that leads, 0 if nobody says so.
func (n *Nemesis) leader(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for i := 1; i <= n.lab.Nodes(); i++ {
		nodes, err := n.lab.Control(i).Nodes(ctx)
		if err != nil {
			continue
		}
		for _, node := range nodes {
			var number int
			if _, err := fmt.Sscanf(node.Name, "node%d", &number); err == nil && node.Leader {
				return number
			}
		}
	}
	return 0
}

func (n *Nemesis) do(ctx context.Context, s Step) error {
	switch s.Harm {
	case Kill, KillLeader:
		return n.down(ctx, s.Nodes, s.Hold, n.lab.Kill)
	case Restart, RestartLeader:
		return n.down(ctx, s.Nodes, s.Hold, n.lab.Stop)
	case Freeze, FreezeLeader:
		return n.freeze(ctx, s)
	case Split, SplitLeader:
		return n.split(ctx, [][]int{n.others(s.Nodes), s.Nodes}, s.Hold)
	case Shatter:
		return n.split(ctx, [][]int{s.Nodes[:2], s.Nodes[2:4], s.Nodes[4:]}, s.Hold)
	case Flap:
		for range 4 {
			if err := n.split(ctx, [][]int{n.others(s.Nodes), s.Nodes}, s.Hold/8); err != nil {
				return err
			}
			pause(ctx, s.Hold/8)
		}
		return nil
	case Slow:
		return n.slow(ctx, s)
	case KillSplit:
		var g errgroup.Group
		g.Go(func() error { return n.down(ctx, s.Nodes[:1], s.Hold/2, n.lab.Kill) })
		g.Go(func() error { return n.split(ctx, [][]int{n.others(s.Nodes[1:]), s.Nodes[1:]}, s.Hold) })
		return g.Wait()
	}
	return fmt.Errorf("nobody knows how to %s", s.Harm)
}

// others are the nodes not named.
func (n *Nemesis) others(nodes []int) []int {
	var out []int
	for i := 1; i <= n.lab.Nodes(); i++ {
		if !slices.Contains(nodes, i) {
			out = append(out, i)
		}
	}
	return out
}

// repair is a context for making things whole after the round was ended.
func repair(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}

// each does something to several nodes at once.
func each(nodes []int, do func(int) error) error {
	var g errgroup.Group
	for _, i := range nodes {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

// down ends agents and starts them again.
func (n *Nemesis) down(ctx context.Context, nodes []int, hold time.Duration, end func(context.Context, int) error) error {
	whole, cancel := repair(ctx)
	defer cancel()
	err := each(nodes, func(i int) error {
		n.mark(i, false, false)
		return end(whole, i)
	})
	if err != nil {
		return err
	}
	pause(ctx, hold)
	return each(nodes, func(i int) error {
		err := n.lab.Start(whole, i)
		n.mark(i, err == nil, err == nil)
		return err
	})
}

func (n *Nemesis) freeze(ctx context.Context, s Step) error {
	for _, i := range s.Nodes {
		n.mark(i, false, false)
		if err := n.lab.Pause(i); err != nil {
			return err
		}
	}
	pause(ctx, s.Hold)
	for _, i := range s.Nodes {
		if err := n.lab.Resume(i); err != nil {
			return err
		}
		n.mark(i, true, true)
	}
	return nil
}

// split cuts the network for a while; the agents go on, and most of them together
// are none the worse for it.
func (n *Nemesis) split(ctx context.Context, groups [][]int, hold time.Duration) error {
	var hurt []int
	for _, g := range groups {
		if len(g) < majority(n.lab.Nodes()) {
			hurt = append(hurt, g...)
		}
	}
	n.markNet(hurt, false)
	if err := n.lab.Partition(groups); err != nil {
		return err
	}
	pause(ctx, hold)
	err := n.lab.Heal()
	n.markNet(hurt, true)
	return err
}

// markNet notes what happened to the network, which leaves agents as they are.
func (n *Nemesis) markNet(nodes []int, well bool) {
	for _, i := range nodes {
		runs, _ := n.Runs(i)
		n.mark(i, runs, well && runs)
	}
}

func (n *Nemesis) slow(ctx context.Context, s Step) error {
	n.markNet(s.Nodes, false)
	for _, i := range s.Nodes {
		if err := n.lab.Shape(i, s.Rate); err != nil {
			return err
		}
	}
	pause(ctx, s.Hold)
	for _, i := range s.Nodes {
		if err := n.lab.Shape(i, 0); err != nil {
			return err
		}
	}
	n.markNet(s.Nodes, true)
	return nil
}

// pause waits and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
