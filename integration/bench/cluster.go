package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/integration/lab"
)

// fanoutSize is how much the layers of the image have, give or take the tars' headers.
const fanoutSize = 128 << 20

// fanoutRuns is how often the image is spread at most.
const fanoutRuns = 5

// fanout starts a 128 MiB image, held by one node, on others at once over shaped links,
// and compares with size over rate, as no way of copying is faster, and with plain streams
// in turn.
func (b *bench) fanout(ctx context.Context) error {
	rate, err := lab.ParseRate(b.rate)
	if err != nil {
		return err
	}
	if rate == 0 {
		return fmt.Errorf("rate %q: the links of a fan-out have one", b.rate)
	}
	var took, spent, sent, worst, warm, plain, ends []float64
	for i := range min(b.runs, fanoutRuns) {
		s, err := b.spread(ctx, rate)
		if err != nil {
			return err
		}
		c, err := b.chain(ctx, rate)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "run %d: %.2f s, %.2f s of processors; plain streams: %.2f s, %.2f s\n", i+1, s.took, s.spent, c.Seconds, c.CPU)
		took, spent, sent = append(took, s.took), append(spent, s.spent), append(sent, s.sent)
		worst, warm = append(worst, s.worst), append(warm, s.warm)
		plain, ends = append(plain, c.Seconds), append(ends, c.CPU)
	}
	limit := fanoutSize * 8 / float64(rate)
	b.add(figure{fmt.Sprintf("128 MiB image from one node to %d at once, links of %s, until all containers run", b.cold, b.rate), "s", median(took), limit,
		fmt.Sprintf("medians of %d; peer: size over rate, the limit of the link; one source serving all takes %d ×; starting them again, with the image there, takes %s s", len(took), b.cold, number(median(warm)))})
	b.add(figure{"of it, bytes that the source sent", "MiB", median(sent), fanoutSize / float64(1<<20), "peer: the image's size; every byte has to leave the source once"})
	b.add(figure{"processor time of all agents meanwhile", "s", median(spent), median(took) * float64(runtime.NumCPU()), fmt.Sprintf("peer: what the machine's %d processors had; supervisors and containers left out", runtime.NumCPU())})
	b.add(figure{"memory of a fetching agent over idle, at most", "MiB", slices.Max(worst), memoryGoal, "the worst of them in all runs; anonymous memory; peer: the goal"})
	streams := fmt.Sprintf("peer: %d plain TLS streams at once, each from one node to the next, read from a file, hashed, written and synced", b.cold)
	b.add(figure{"until all containers run, against plain streams", "s", median(took), median(plain), streams})
	b.add(figure{"processor time of all agents, against both ends of plain streams", "s", median(spent), median(ends), streams})
	return nil
}

// spreading is one run of a fan-out.
type spreading struct {
	took  float64 // seconds until all containers run
	warm  float64 // the same with the image there
	spent float64 // seconds that all agents spent on processors
	sent  float64 // MiB that the source sent
	worst float64 // MiB that a fetching agent's memory grew by
}

// spread starts the image on all nodes.
func (b *bench) spread(ctx context.Context, rate uint64) (s spreading, err error) {
	l, agents, err := b.shaped(ctx, rate)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.must(ctx, l.Socket(1), "load", "-q", "-i", filepath.Join(b.tmp, "big.tar")); err != nil {
		return s, err
	}
	syscall.Sync()
	idle, err := weighed(agents)
	if err != nil {
		return s, err
	}
	before, err := processor(agents...)
	if err != nil {
		return s, err
	}
	stop := watch(agents...)
	s.took, err = b.startOn(ctx, l, 2, b.cold+1)
	now, unread := processor(agents...)
	most, unwatched := stop()
	if err := errors.Join(err, unread, unwatched); err != nil {
		return s, err
	}
	s.spent = now - before
	for i := range agents[1:] {
		s.worst = max(s.worst, most[i+1]-idle[i+1])
	}
	if s.warm, err = b.startOn(ctx, l, 2, b.cold+1); err != nil {
		return s, err
	}
	sent, err := sentBy(l, "node1", b.cold+1)
	s.sent = sent / (1 << 20)
	return s, err
}

// shaped is a lab of a source and the cold nodes, with shaped links, and its agents.
func (b *bench) shaped(ctx context.Context, rate uint64) (l *lab.Lab, agents []int, err error) {
	if l, err = lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: b.cold + 1, Binary: b.shoal, Out: os.Stderr}); err != nil {
		return nil, nil, err
	}
	for n := 1; n <= b.cold+1; n++ {
		if err := l.Shape(n, rate); err != nil {
			return nil, nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		}
		agents = append(agents, l.Pid(n))
	}
	return l, agents, nil
}

// chain has each node send as much as the image has to the next one over a plain TLS
// stream, all at once: what the links and the machine take when nobody chooses, asks,
// proves or passes on. Seconds are those from the first start to the last end. The lab is
// a new one, as agents go on working for a while after they got an image.
func (b *bench) chain(ctx context.Context, rate uint64) (all moved, err error) {
	kept := filepath.Join(b.tmp, "kept")
	if err := os.Mkdir(kept, 0o700); err != nil {
		return all, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(kept)) }()
	l, _, err := b.shaped(ctx, rate)
	if err != nil {
		return all, err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	syscall.Sync()
	ends := make([]moved, b.cold)
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for i := range ends {
		g.Go(func() error {
			s, err := b.stream(ctx, l, i+1, i+2, fanoutSize, filepath.Join(b.tmp, "big.tar"), filepath.Join(kept, fmt.Sprint(i)))
			if err != nil {
				return err
			}
			ends[i], err = s.wait()
			return err
		})
	}
	err = g.Wait()
	all.Seconds = time.Since(begin).Seconds()
	for _, one := range ends {
		all.CPU += one.CPU
	}
	return all, err
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
