package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
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

// Ratio is Shoal's figure as a multiple of the peer's.
func (f figure) ratio() string {
	if f.Peer == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ×", f.Shoal/f.Peer)
}

type bench struct {
	shoal, docker, dockerd string
	tmp                    string
	runs                   int
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
	only := flag.String("only", "", "parts to run, separated by commas: start,load,fanout,delta,dns")
	picture := flag.String("plot", "", "also draw the figures, as SVG")
	out := flag.String("json", "", "also write the figures as JSON")
	flag.Parse()
	if flag.Arg(0) == "dnsload" && flag.NArg() == 3 {
		return dnsLoad(context.Background(), flag.Arg(1), flag.Arg(2))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	abs, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "shoal-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b := &bench{shoal: filepath.Join(abs, "bin/shoal"), docker: "docker", dockerd: "dockerd", tmp: tmp, runs: *runs}
	if err := b.images(abs); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"start", b.start}, {"load", b.load}, {"fanout", b.fanout}, {"delta", b.delta}, {"dns", b.dns}} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), part.name) {
			continue
		}
		begin := time.Now()
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s took %v\n", part.name, time.Since(begin).Round(time.Second))
	}
	b.print()
	if *picture != "" {
		if err := b.plot(*picture); err != nil {
			return err
		}
	}
	if *out == "" {
		return nil
	}
	raw, err := json.MarshalIndent(b.figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*out, raw, 0o644)
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

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
