package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// figure is one measured line.
type figure struct {
	Name  string
	Unit  string
	Shoal float64
	Peer  float64 // 0: there is none to compare with
	Note  string
}

// ratio is Shoal's figure as a multiple of the peer's.
func (f figure) ratio() string {
	if f.Peer == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ×", f.Shoal/f.Peer)
}

type bench struct {
	root                   string // the repository
	shoal, docker, dockerd string
	tmp                    string
	runs                   int
	cold                   int // nodes that fan-out fills at once
	minutes                float64
	rate                   string // of fanout's links
	holders                int    // nodes that ping's image comes from
	settle                 time.Duration
	trees                  string // keeps what delta updates; empty: nothing does
	updates                int
	figures                []figure // of the part that runs
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	root := flag.String("root", ".", "the repository")
	runs := flag.Int("runs", 21, "pairs of runs; medians are printed")
	only := flag.String("only", "", "parts to run, separated by commas: start,load,fanout,delta,pull,dns,tls,coldrun,early,ping")
	cold := flag.Int("cold", 7, "fanout: nodes that start the image at once")
	rate := flag.String("rate", "200mbit", "fanout: the speed of each node's link, both ways")
	holders := flag.Int("holders", 1, "ping: nodes that send the image")
	trees := flag.String("trees", "", "delta: a directory that keeps the two trees, so that further runs have the same ones")
	updates := flag.Int("updates", 3, "delta, pull: runs of each kind; medians are printed")
	minutes := flag.Float64("minutes", 1, "ping: how long the links are kept full")
	picture := flag.String("plot", "", "also draw the figures, as SVG: with -json, all that are in the file")
	out := flag.String("json", "", "also keep the figures in this file; parts that aren't run stay in it as they are")
	settle := flag.Duration("settle", 0, "before each part, wait at most so long until the machine is quiet")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if flag.NArg() > 0 {
		return help(ctx, flag.Args())
	}
	abs, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "shoal-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b := &bench{
		root: abs, shoal: filepath.Join(abs, "bin/shoal"), docker: "docker", dockerd: "dockerd",
		tmp: tmp, runs: *runs, cold: *cold, rate: *rate, minutes: *minutes, holders: *holders, settle: *settle, trees: *trees, updates: *updates,
	}
	kept := records{}
	if *out != "" {
		if kept, err = readRecords(*out); err != nil {
			return err
		}
	}
	if err := b.parts(ctx, *only, func(name string, r record) error {
		kept[name] = r
		r.print()
		if *out == "" {
			return nil
		}
		return kept.write(*out)
	}); err != nil {
		return err
	}
	if *picture == "" {
		return nil
	}
	return plot(kept.figures(), *picture)
}

// parts runs those that are named, or all, and hands each one's figures over.
func (b *bench) parts(ctx context.Context, only string, done func(name string, r record) error) error {
	if err := b.images(); err != nil {
		return err
	}
	all := b.all()
	var wanted []string
	if only != "" {
		wanted = strings.Split(only, ",")
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == w }) {
			return fmt.Errorf("there is no part %q", w)
		}
	}
	for _, p := range all {
		if wanted != nil && !slices.Contains(wanted, p.name) {
			continue
		}
		m, err := quiet(ctx, b.settle)
		if err != nil {
			return err
		}
		begin := time.Now()
		b.figures = nil
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s took %v\n", p.name, time.Since(begin).Round(time.Second))
		name := p.name
		switch {
		case p.name == "fanout":
			name = fmt.Sprintf("fanout of %d at %s", b.cold, b.rate)
		case p.name == "ping" && b.holders > 1:
			name = fmt.Sprintf("ping with %d holders", b.holders)
		}
		if err := done(name, record{begin.UTC().Round(time.Second), m, b.figures}); err != nil {
			return err
		}
	}
	return nil
}

// part is one of the benchmarks.
type part struct {
	name string
	do   func(context.Context) error
}

func (b *bench) all() []part {
	return []part{
		{"start", b.start}, {"load", b.load}, {"fanout", b.fanout}, {"delta", b.delta}, {"pull", b.pull}, {"dns", b.dns},
		{"tls", b.tls}, {"coldrun", b.coldRun}, {"early", b.early}, {"ping", b.ping},
	}
}

func (b *bench) add(f figure) { b.figures = append(b.figures, f) }

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// help is what this program does for itself inside a node's network.
func help(ctx context.Context, args []string) error {
	helpers := map[string]struct {
		args int
		do   func(context.Context, []string) error
	}{
		"dnsload": {2, func(ctx context.Context, a []string) error { return dnsLoad(ctx, a[0], a[1]) }},
		"receive": {3, receive},
		"send":    {3, send},
		"give":    {2, give},
		"take":    {2, take},
		"echo":    {1, echo},
		"rally":   {2, rally},
	}
	h, ok := helpers[args[0]]
	if !ok || len(args) != h.args+1 {
		return fmt.Errorf("unexpected arguments %q", args)
	}
	return h.do(ctx, args[1:])
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// percentile is the smallest value that p percent of the values don't exceed.
func percentile(v []float64, p float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[max(0, int(math.Ceil(p/100*float64(len(v))))-1)]
}
