package main

import (
	"context"
	"encoding/json"
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
	figures                []figure
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
	only := flag.String("only", "", "parts to run, separated by commas: start,load,fanout,delta,dns,tls,coldrun,ping")
	cold := flag.Int("cold", 7, "fanout: nodes that start the image at once")
	minutes := flag.Float64("minutes", 1, "ping: how long the links are kept full")
	picture := flag.String("plot", "", "also draw the figures, as SVG")
	out := flag.String("json", "", "also write the figures as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if flag.NArg() > 0 {
		return help(ctx, flag.Args())
	}
	m, err := lookAround()
	if err != nil {
		return err
	}
	if why := m.busy(); why != "" {
		fmt.Fprintln(os.Stderr, "bench: take the figures as orders of magnitude:", why)
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
		tmp: tmp, runs: *runs, cold: *cold, minutes: *minutes,
	}
	if err := b.parts(ctx, *only); err != nil {
		return err
	}
	fmt.Println(m)
	fmt.Println()
	b.print()
	if *picture != "" {
		if err := b.plot(*picture); err != nil {
			return err
		}
	}
	if *out == "" {
		return nil
	}
	raw, err := json.MarshalIndent(map[string]any{"Machine": m, "Figures": b.figures}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*out, raw, 0o644)
}

// parts runs those that are named, or all.
func (b *bench) parts(ctx context.Context, only string) error {
	if err := b.images(); err != nil {
		return err
	}
	all := []part{
		{"start", b.start}, {"load", b.load}, {"fanout", b.fanout}, {"delta", b.delta}, {"dns", b.dns},
		{"tls", b.tls}, {"coldrun", b.coldRun}, {"ping", b.ping},
	}
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
		begin := time.Now()
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s took %v\n", p.name, time.Since(begin).Round(time.Second))
	}
	return nil
}

// part is one of the benchmarks.
type part struct {
	name string
	do   func(context.Context) error
}

func (b *bench) add(f figure) { b.figures = append(b.figures, f) }

func (b *bench) print() {
	fmt.Println("| what | unit | Shoal | peer | ratio | |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, f := range b.figures {
		peer := "–"
		if f.Peer != 0 {
			peer = number(f.Peer)
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", f.Name, f.Unit, number(f.Shoal), peer, f.ratio(), f.Note)
	}
}

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
