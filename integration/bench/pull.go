package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

const (
	// pullSize is how much the layers of the image have, about.
	pullSize = 100e6
	pullers  = 3
	pullRate = 200e6
)

// pull has three nodes pull an image at once that none of them has, from a registry in
// the network of a fourth, and compares with three clients that each pull by themselves.
func (b *bench) pull(ctx context.Context) (err error) {
	archive := filepath.Join(b.tmp, "pull.tar")
	if err := b.noiseImage(archive, "pull:1", pullSize); err != nil {
		return err
	}
	defer os.Remove(archive)
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: pullers + 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	host, stop, err := b.registry(ctx, l, pullers+1)
	if err != nil {
		return err
	}
	defer stop()
	ref := host + "/pull:1"
	if err := b.on(ctx, l, pullers+1, "skopeo", "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+archive, "docker://"+ref).Run(); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	for n := 1; n <= pullers+1; n++ {
		if err := l.Shape(n, pullRate); err != nil {
			return err
		}
	}
	var ours, theirs, left, leftBare []float64
	for range b.updates {
		took, sent, err := b.atOnce(ctx, l, func(node int) error { return b.must(ctx, l.NodeSocket(node), "pull", "-q", ref) })
		if err != nil {
			return err
		}
		ours, left = append(ours, took), append(left, sent)
		for n := 1; n <= pullers; n++ {
			if err := b.must(ctx, l.NodeSocket(n), "rmi", "-f", ref); err != nil {
				return err
			}
		}
		took, sent, err = b.atOnce(ctx, l, func(node int) error {
			to := filepath.Join(b.tmp, fmt.Sprintf("alone%d", node))
			err := b.on(ctx, l, node, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+ref, "dir:"+to).Run()
			return errors.Join(err, os.RemoveAll(to))
		})
		if err != nil {
			return err
		}
		theirs, leftBare = append(theirs, took), append(leftBare, sent)
	}
	b.add(figure{fmt.Sprintf("image of %d MB pulled by %d nodes at once, 200 mbit links, until the last is done", int(pullSize/1e6), pullers), "s", median(ours), median(theirs),
		fmt.Sprintf("%s; peer: skopeo copy on each by itself; size over rate is %s s", spread(ours), number(pullSize*8/pullRate))})
	b.add(figure{"of it, what left the registry's host, with the packets' headers", "MB", median(left) / 1e6, median(leftBare) / 1e6, "the same"})
	return nil
}

// atOnce does something for each of the pulling nodes at once. sent is what the
// registry's host sent meanwhile, in bytes.
func (b *bench) atOnce(ctx context.Context, l *lab.Lab, do func(node int) error) (seconds, sent float64, err error) {
	before, err := b.sentBytes(ctx, l, pullers+1)
	if err != nil {
		return 0, 0, err
	}
	errs := make([]error, pullers)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = do(i + 1) })
	}
	wg.Wait()
	seconds = time.Since(begin).Seconds()
	after, err := b.sentBytes(ctx, l, pullers+1)
	return seconds, after - before, errors.Join(append(errs, err)...)
}

// sentBytes is what the interfaces of a node but loopback have sent.
func (b *bench) sentBytes(ctx context.Context, l *lab.Lab, node int) (total float64, err error) {
	out, err := b.on(ctx, l, node, "cat", "/proc/net/dev").Output()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) {
		name, counts, ok := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(counts)
		if !ok || name == "lo" || len(fields) < 9 {
			continue
		}
		n, err := strconv.ParseFloat(fields[8], 64)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// spread says between what figures lie.
func spread(v []float64) string {
	least, most := v[0], v[0]
	for _, f := range v {
		least, most = min(least, f), max(most, f)
	}
	return fmt.Sprintf("%d runs: %s to %s", len(v), number(least), number(most))
}
