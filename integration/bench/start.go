package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// images makes the archives that both engines load.
func (b *bench) images() error {
	if err := b.mkimage("-o", filepath.Join(b.tmp, "busybox.tar"), "-busybox"); err != nil {
		return err
	}
	return b.noiseImage(filepath.Join(b.tmp, "big.tar"), "big:1", fanoutSize)
}

func (b *bench) mkimage(args ...string) error {
	if out, err := exec.Command(filepath.Join(b.root, "bin/mkimage"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("make an image: %w: %s", err, out)
	}
	return nil
}

// noiseImage makes an archive of an image of a web server whose layers have size bytes,
// which nothing compresses.
func (b *bench) noiseImage(path, ref string, size int64) error {
	web := filepath.Join(b.root, "bin/webapp")
	fi, err := os.Stat(web)
	if err != nil {
		return err
	}
	return b.mkimage("-o", path, "-ref", ref, "-cmd", "/web", "-pad", strconv.FormatInt(size-fi.Size(), 10), "/web="+web)
}

func (b *bench) cli(ctx context.Context, socket string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+socket, "DOCKER_CONFIG="+b.tmp)
	return cmd
}

func (b *bench) must(ctx context.Context, socket string, args ...string) error {
	out, err := b.cli(ctx, socket, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// start measures the life of short containers and the weight of idle ones.
func (b *bench) start(ctx context.Context) (err error) {
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	peer, err := b.startDockerd(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	sockets := []string{l.Socket(1), peer.socket}
	for _, s := range sockets {
		if err := b.must(ctx, s, "load", "-q", "-i", filepath.Join(b.tmp, "busybox.tar")); err != nil {
			return err
		}
		if err := b.must(ctx, s, "run", "--rm", "busybox", "true"); err != nil {
			return err
		}
	}
	idle := []float64{memory(family(l.Pid(1), l.Data(1))), memory(family(peer.pid(), peer.dir))}
	b.add(figure{"memory of the idle engine, all its processes", "MB PSS", idle[0], idle[1], "dockerd with its containerd"})

	err = b.idleContainers(ctx, sockets, [2]func() float64{
		func() float64 { return memory(family(l.Pid(1), l.Data(1))) },
		func() float64 { return memory(family(peer.pid(), peer.dir)) },
	})
	if err != nil {
		return err
	}
	if err := b.pairs(ctx, sockets, "docker run --rm busybox true", b.runs, 1); err != nil {
		return err
	}
	return b.pairs(ctx, sockets, "ten of them at once", max(5, b.runs/3), 10)
}

// pairs times n containers at once on both engines in turn.
func (b *bench) pairs(ctx context.Context, sockets []string, name string, runs, n int) error {
	took := make([][]float64, len(sockets))
	for range runs {
		for i, s := range sockets {
			start := time.Now()
			errs := make([]error, n)
			var wg sync.WaitGroup
			for k := range n {
				wg.Go(func() { errs[k] = b.must(ctx, s, "run", "--rm", "busybox", "true") })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
			took[i] = append(took[i], float64(time.Since(start).Microseconds())/1000)
		}
	}
	b.add(figure{name, "ms", median(took[0]), median(took[1]), fmt.Sprintf("median of %d pairs", runs)})
	return nil
}

func (b *bench) idleContainers(ctx context.Context, sockets []string, weigh [2]func() float64) error {
	const n = 40
	var each [2]float64
	for i, s := range sockets {
		before := weigh[i]()
		for k := range n {
			if err := b.must(ctx, s, "run", "-d", "--name", "idle"+strconv.Itoa(k), "busybox", "sleep", "100000"); err != nil {
				return err
			}
		}
		each[i] = (weigh[i]() - before) / n
		for k := range n {
			if err := b.must(ctx, s, "rm", "-f", "idle"+strconv.Itoa(k)); err != nil {
				return err
			}
		}
	}
	b.add(figure{"memory per idle container, engine's side", "MB PSS", each[0], each[1], fmt.Sprintf("%d containers; what runs in them left out", n)})
	return nil
}

// family is a process with its descendants, and every other process whose command
// line names the data directory: supervisors and shims are nobody's children. What
// runs inside containers is left out.
func family(pid int, data string) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var out []int
	for _, f := range dirs {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		p, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && (p == pid || bytes.Contains(raw, []byte(data))) && p != os.Getpid() {
			out = append(out, p)
		}
	}
	return out
}

// memory is the proportional set size of processes, in MB.
func memory(pids []int) float64 {
	total := 0.0
	for _, p := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				total += kb / 1024
			}
		}
	}
	return total
}
