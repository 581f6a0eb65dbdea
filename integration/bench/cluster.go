package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// fanout starts a 128 MiB image, held by one node, on seven others at once over
// links of 200 mbit, and compares with size over rate: no way of copying is faster.
func (b *bench) fanout(ctx context.Context) (err error) {
	const rate, size, cold = 200e6, 128 << 20, 7
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: cold + 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.must(ctx, l.Socket(1), "load", "-q", "-i", filepath.Join(b.tmp, "big.tar")); err != nil {
		return err
	}
	for n := 1; n <= cold+1; n++ {
		if err := l.Shape(n, rate); err != nil {
			return err
		}
	}
	start := time.Now()
	errs := make([]error, cold)
	var wg sync.WaitGroup
	for i := range cold {
		wg.Go(func() {
			node := i + 2
			errs[i] = b.must(ctx, l.Socket(node), "run", "-d", "-e", fmt.Sprintf("constraint:node==node%d", node), "big:1")
		})
	}
	wg.Wait()
	took := time.Since(start).Seconds()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	limit := size * 8 / float64(rate)
	b.add(figure{"128 MiB image from one node to seven at once, 200 mbit links, until all containers run", "s", took, limit,
		"peer: size over rate, the limit of the link; one source serving all seven takes 7 ×"})
	return nil
}
