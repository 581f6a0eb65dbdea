package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// early starts an image of 500 MB on a host that lacks it, over links of 200 mbit, until
// its first output: on a node that starts early, and on one that waits for the image. One
// command needs only its program, the other reads every file first.
func (b *bench) early(ctx context.Context) (err error) {
	archive := filepath.Join(b.tmp, "talker.tar")
	if err := talker(archive); err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	defer os.Remove(archive)
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 3, Binary: b.shoal, Rate: 200_000_000, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := startEarly(ctx, l, 3); err != nil {
		return err
	}
	if err := b.must(ctx, l.NodeSocket(1), "load", "-q", "-i", archive); err != nil {
		return err
	}
	if err := awaitRecipes(ctx, l, 1); err != nil {
		return err
	}
	for _, c := range []struct {
		what string
		args []string
	}{
		{"needs one file", nil},
		{"reads every file first", []string{"/bin/busybox", "sh", "-c", "for d in /*; do case $d in /proc|/sys|/dev) ;; *) /bin/busybox find $d -type f -exec /bin/busybox cat {} + ;; esac; done | /bin/busybox wc -c >&2; echo hi"}},
	} {
		var waits, starts, whole []float64
		for range min(b.runs, 3) {
			if err := b.earlyOn(ctx, l, 2, c.args, &waits, nil); err != nil {
				return err
			}
			if err := b.earlyOn(ctx, l, 3, c.args, &starts, &whole); err != nil {
				return err
			}
			k := len(waits) - 1
			fmt.Fprintf(os.Stderr, "run %d, %s: early %.2f s, image whole after %.2f s; waiting %.2f s\n", k+1, c.what, starts[k], whole[k], waits[k])
		}
		note := fmt.Sprintf("%d MB, %d files, 200 mbit; median of %d; peer: Shoal without start_early; the image was whole after %s s", treeBytes>>20, treeFiles, len(starts), number(median(whole)))
		b.add(figure{"cold docker run that starts early until its first output, " + c.what, "s", median(starts), median(waits), note})
	}
	return nil
}

// startEarly has a node start containers early from now on.
func startEarly(ctx context.Context, l *lab.Lab, n int) error {
	f, err := os.OpenFile(filepath.Join(l.Dir(), fmt.Sprintf("node%d", n), "agent.toml"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n[images]\nstart_early = true\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := l.Stop(ctx, n); err != nil {
		return err
	}
	return l.Start(ctx, n)
}

// awaitRecipes waits until a node has cut what it holds, as it does by itself.
func awaitRecipes(ctx context.Context, l *lab.Lab, n int) error {
	return poll(ctx, func() bool {
		made, err := os.ReadDir(filepath.Join(l.Data(n), "chunks"))
		return err == nil && len(made) >= 2
	})
}

// poll waits until something holds, for a minute at most.
func poll(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// earlyOn runs the image on a node that lacks it, and removes it there once it is whole.
func (b *bench) earlyOn(ctx context.Context, l *lab.Lab, n int, args []string, took, whole *[]float64) error {
	syscall.Sync()
	begin := time.Now()
	run := append([]string{"run", "--rm", "-e", fmt.Sprintf("constraint:node==node%d", n), "talker:1"}, args...)
	t, err := firstOutput(b.cli(ctx, l.Socket(1), run...))
	if err != nil {
		return err
	}
	*took = append(*took, t.Seconds())
	err = poll(ctx, func() bool {
		out, err := exec.CommandContext(ctx, b.docker, "-H", "unix://"+l.NodeSocket(n), "images", "-q", "talker:1").Output()
		return err == nil && strings.TrimSpace(string(out)) != ""
	})
	if err != nil {
		return fmt.Errorf("wait until node %d has all of the image: %w", n, err)
	}
	if whole != nil {
		*whole = append(*whole, time.Since(begin).Seconds())
	}
	return b.forget(ctx, l, n, "talker:1")
}
