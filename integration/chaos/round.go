package chaos

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// roundLength is how long a round harms. It is part of what a seed means.
const roundLength = 15 * time.Second

// unusual is how long agreement takes when something is slow though not wrong.
const unusual = 5 * time.Second

// Report is what a round found.
type Report struct {
	Seed     uint64
	Ops      []Op
	Looks    int           // listings checked while it went on
	Settled  time.Duration // until all agreed again
	Findings []string
}

// Count is how many operations ended with a verdict.
func (r Report) Count(v Verdict) int {
	n := 0
	for _, o := range r.Ops {
		if o.Verdict == v {
			n++
		}
	}
	return n
}

// Round breaks a whole cluster that has the busybox image, and checks it. An error
// says that it couldn't be done or was ended; the cluster is whole again even so.
func Round(ctx context.Context, l *lab.Lab, seed uint64, say func(string, ...any)) (Report, error) {
	h := NewHistory()
	d := NewDriver(l, h, seed)
	defer d.Close()
	writers, err := StartWriters(ctx, d.nodes)
	if err != nil {
		return Report{Seed: seed}, err
	}
	n := NewNemesis(l, h, func(format string, args ...any) {
		say("%7.3f  %s", h.Now().Seconds(), fmt.Sprintf(format, args...))
	})
	var f Findings
	w := &Watch{lab: l, h: h, n: n, f: &f}

	working, stop := context.WithCancel(ctx)
	defer stop()
	var tasks sync.WaitGroup
	tasks.Go(func() { d.Run(working) })
	tasks.Go(func() { w.Run(working) })
	err = n.Run(ctx, Plan(seed, l.Nodes(), roundLength))
	stop()
	tasks.Wait()

	r := Report{Seed: seed, Ops: h.Ops(), Looks: w.Looks(), Findings: f.All()}
	if err != nil {
		r.Findings = append(r.Findings, err.Error())
		return r, ctx.Err()
	}
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	r.Findings = append(r.Findings, checkNames(r.Ops)...)
	r.Findings = append(r.Findings, checkMissing(r.Ops)...)
	end := NewFinal(l, r.Ops, seed)
	defer end.Close()
	var late, found []string
	r.Settled, late, found = end.Settle(ctx)
	if r.Settled > unusual {
		say("it took %v until this was no longer so:\n  %s", r.Settled.Round(time.Millisecond), strings.Join(late, "\n  "))
	}
	r.Findings = append(r.Findings, found...)
	r.Findings = append(r.Findings, end.Writers(ctx, writers)...)
	r.Findings = append(r.Findings, end.Again(ctx)...)
	return r, ctx.Err()
}
