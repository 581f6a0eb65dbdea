package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// fanoutSize is how much the layers of the image have, give or take the tars' headers.
const fanoutSize = 128 << 20

// fanout starts a 128 MiB image, held by one node, on others at once over shaped links,
// and compares with size over rate: no way of copying is faster.
func (b *bench) fanout(ctx context.Context) (err error) {
	rate, err := lab.ParseRate(b.rate)
	if err != nil {
		return err
	}
	if rate == 0 {
		return fmt.Errorf("rate %q: the links of a fan-out have one", b.rate)
	}
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: b.cold + 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.must(ctx, l.Socket(1), "load", "-q", "-i", filepath.Join(b.tmp, "big.tar")); err != nil {
		return err
	}
	var agents []int
	for n := 1; n <= b.cold+1; n++ {
		if err := l.Shape(n, rate); err != nil {
			return err
		}
		agents = append(agents, l.Pid(n))
	}
	idle, err := weighed(agents)
	if err != nil {
		return err
	}
	spent, err := processor(agents...)
	if err != nil {
		return err
	}
	stop := watch(agents...)
	took, err := b.startOn(ctx, l, 2, b.cold+1)
	now, unread := processor(agents...)
	most, unwatched := stop()
	if err := errors.Join(err, unread, unwatched); err != nil {
		return err
	}
	warm, err := b.startOn(ctx, l, 2, b.cold+1)
	if err != nil {
		return err
	}
	worst := 0.0
	for i := range agents[1:] {
		worst = max(worst, most[i+1]-idle[i+1])
	}
	limit := fanoutSize * 8 / float64(rate)
	b.add(figure{fmt.Sprintf("128 MiB image from one node to %d at once, links of %s, until all containers run", b.cold, b.rate), "s", took, limit,
		fmt.Sprintf("peer: size over rate, the limit of the link; one source serving all takes %d ×; starting them again, with the image there, takes %s s", b.cold, number(warm))})
	sent, err := sentBy(l, "node1", b.cold+1)
	if err != nil {
		return err
	}
	b.add(figure{"of it, bytes that the source sent", "MiB", sent / (1 << 20), fanoutSize / float64(1<<20), "peer: the image's size; every byte has to leave the source once"})
	b.add(figure{"processor time of all agents meanwhile", "s", now - spent, took * float64(runtime.NumCPU()), fmt.Sprintf("peer: what the machine's %d processors had; supervisors and containers left out", runtime.NumCPU())})
	b.add(figure{"memory of a fetching agent over idle, at most", "MiB", worst, memoryGoal, "the worst of them; anonymous memory; peer: the goal; the source's grew by " + number(most[0]-idle[0]) + " MiB"})
	return nil
}

// startOn starts a container on each of the nodes at once and says how long that took.
func (b *bench) startOn(ctx context.Context, l *lab.Lab, first, last int) (seconds float64, err error) {
	errs := make([]error, last-first+1)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			node := first + i
			errs[i] = b.must(ctx, l.Socket(node), "run", "-d", "-e", fmt.Sprintf("constraint:node==node%d", node), "big:1")
		})
	}
	wg.Wait()
	return time.Since(start).Seconds(), errors.Join(errs...)
}

// sentBy adds up how much a node gave the others, as these say in their logs.
func sentBy(l *lab.Lab, node string, nodes int) (float64, error) {
	given := regexp.MustCompile(`msg="blob fetched".* from=\S*\b` + node + `:(\d+)`)
	total := 0.0
	for n := 1; n <= nodes; n++ {
		raw, err := os.ReadFile(l.Log(n))
		if err != nil {
			return 0, err
		}
		for _, m := range given.FindAllSubmatch(raw, -1) {
			v, err := strconv.ParseFloat(string(m[1]), 64)
			if err != nil {
				return 0, err
			}
			total += v
		}
	}
	if total == 0 {
		return 0, errors.New("no agent's log says what it fetched from " + node)
	}
	return total, nil
}
