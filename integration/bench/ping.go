package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/cmd/shoal/control"
	"github.com/shoal-engine/shoal/integration/lab"
)

const (
	pingRate  = 200e6
	pingSize  = 512 << 20 // of the image that keeps the link full: about 22 s of it
	pingGoal  = 10        // milliseconds over idle, at the 99th percentile
	quietTime = 10 * time.Second
	probeTime = 5 * time.Second // what an answer may take
)

// ping keeps the link from node 1 to node 2 full by copying an image again and again,
// and asks node 2 small things meanwhile: what it answers by itself, and what node 1 has
// to answer, over the full link. Node 3 watches who leads. The peer is a plain TLS
// stream that keeps the same link full. With more holders than one, nodes 3, 4 and so on
// send the image, too.
func (b *bench) ping(ctx context.Context) (err error) {
	archive := filepath.Join(b.tmp, "noise.tar")
	if err := b.noiseImage(archive, "noise:1", pingSize); err != nil {
		return err
	}
	defer os.Remove(archive)
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: max(3, b.holders+1), Rate: pingRate, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	for _, args := range [][]string{
		{"load", "-q", "-i", archive},
		{"load", "-q", "-i", filepath.Join(b.tmp, "busybox.tar")},
		{"run", "-d", "--name", "far", "-e", "constraint:node==node1", "busybox", "sleep", "100000"},
	} {
		if err := b.must(ctx, l.Socket(1), args...); err != nil {
			return err
		}
	}
	for n := 3; n < b.holders+2; n++ {
		if err := b.copyTo(ctx, l, "noise:1", fmt.Sprint("node", n)); err != nil {
			return err
		}
	}
	stop, err := b.echoOn(ctx, l, 1)
	if err != nil {
		return err
	}
	defer stop()
	idle, err := b.probed(ctx, l, quietTime, nil)
	if err != nil {
		return err
	}
	plain, err := b.besideStream(ctx, l)
	if err != nil {
		return err
	}
	during := time.Duration(b.minutes * float64(time.Minute))
	full, seen, err := b.besideCopies(ctx, l, during)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("%.0f %% of the link used; peer: the same without a transfer", 100*seen.share)
	for _, p := range []struct {
		name string
		of   func(samples) []float64
	}{
		{"answer of node 1, asked through node 2", func(s samples) []float64 { return s.far }},
		{"GET /_ping at node 2", func(s samples) []float64 { return s.near }},
		{"GET /_ping at node 1", func(s samples) []float64 { return s.source }},
		{"100 bytes over a TCP connection of their own, there and back", func(s samples) []float64 { return s.wire }},
	} {
		for _, percent := range []float64{50, 99} {
			b.add(figure{fmt.Sprintf("link kept full: %s, p%.0f", p.name, percent), "ms", percentile(p.of(full), percent), percentile(p.of(idle), percent), note})
			note = ""
		}
	}
	b.add(figure{"link kept full: p99 of the answer through node 2 over idle", "ms", percentile(full.far, 99) - percentile(idle.far, 99), pingGoal,
		fmt.Sprintf("peer: the goal; beside a plain TLS stream the 100 bytes take %s ms more than idle", number(percentile(plain, 99)-percentile(idle.wire, 99)))})
	b.add(figure{"changes of the raft leader meanwhile", "", float64(seen.moves), 0, fmt.Sprintf("in %v; %d elections were called", during.Round(time.Second), seen.elections)})
	return nil
}

// samples are milliseconds that answers took.
type samples struct {
	far    []float64 // node 1's, asked through node 2
	near   []float64 // node 2's own
	source []float64 // node 1's own
	wire   []float64 // over TCP alone
}

// probed asks again and again for a time, while something else is done, if anything is.
func (b *bench) probed(ctx context.Context, l *lab.Lab, during time.Duration, meanwhile func(context.Context) error) (samples, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		if meanwhile == nil {
			done <- nil
			return
		}
		done <- meanwhile(ctx)
	}()
	var s samples
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i, p := range []struct {
		socket, path string
		out          *[]float64
	}{
		{l.Socket(2), "/containers/far/json", &s.far},
		{l.Socket(2), "/_ping", &s.near},
		{l.Socket(1), "/_ping", &s.source},
	} {
		wg.Go(func() { *p.out, errs[i] = probe(ctx, p.socket, p.path, during) })
	}
	wg.Go(func() { s.wire, errs[3] = b.rallied(ctx, l, during) })
	wg.Wait()
	cancel()
	err := errors.Join(errs...)
	if m := <-done; !errors.Is(m, context.Canceled) {
		err = errors.Join(err, m)
	}
	return s, err
}

// probe asks a socket for a path every rallyEvery, also while earlier answers are out.
func probe(ctx context.Context, socket, path string, during time.Duration) ([]float64, error) {
	client := &http.Client{Timeout: probeTime, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	n := int(during / rallyEvery)
	took, errs := make([]float64, n), make([]error, n)
	tick := time.NewTicker(rallyEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	for i := range n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			wg.Wait()
			return nil, context.Cause(ctx)
		}
		wg.Go(func() {
			begin := time.Now()
			errs[i] = get(ctx, client, path)
			took[i] = milliseconds(time.Since(begin))
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

func get(ctx context.Context, client *http.Client, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shoal"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, res.Status)
	}
	return nil
}

const echoPort = 7001

// echoOn has a node return what comes over TCP.
func (b *bench) echoOn(ctx context.Context, l *lab.Lab, node int) (stop func(), err error) {
	cmd := b.self(ctx, l, node, "echo", fmt.Sprintf("%s:%d", lab.Address(node), echoPort))
	if _, err := startReady(cmd); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}, nil
}

// rallied sends messages from node 2 to node 1 and back for a time.
func (b *bench) rallied(ctx context.Context, l *lab.Lab, during time.Duration) (took []float64, err error) {
	out, err := b.self(ctx, l, 2, "rally", fmt.Sprintf("%s:%d", lab.Address(1), echoPort), fmt.Sprint(during.Seconds())).Output()
	if err != nil {
		return nil, fmt.Errorf("send messages: %w", err)
	}
	return took, json.Unmarshal(out, &took)
}

// besideStream sends messages while a plain TLS stream keeps the link full.
func (b *bench) besideStream(ctx context.Context, l *lab.Lab) ([]float64, error) {
	s, err := b.stream(ctx, l, 1, 2, 1<<40, "-", "-")
	if err != nil {
		return nil, err
	}
	defer s.end()
	return b.rallied(ctx, l, quietTime)
}

// arrived is how many bytes a node's link has brought it so far.
func arrived(l *lab.Lab, node int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", l.Pid(node)))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^\s*eth0:\s*(\d+)`).FindSubmatch(raw)
	if m == nil {
		return 0, fmt.Errorf("node %d has no eth0", node)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// seen is what else happened while the link was kept full.
type seen struct {
	share            float64 // of the link that was used, of 1
	moves, elections int     // of Raft's leadership
}

// besideCopies asks while the link is kept full.
func (b *bench) besideCopies(ctx context.Context, l *lab.Lab, during time.Duration) (s samples, all seen, err error) {
	called, err := campaigns(l)
	if err != nil {
		return s, all, err
	}
	bytes, err := arrived(l, 2)
	if err != nil {
		return s, all, err
	}
	begin := time.Now()
	stop := watchLeader(l.Control(3))
	s, err = b.probed(ctx, l, during, func(ctx context.Context) error { return b.copyOn(ctx, l) })
	all.moves = stop()
	took := time.Since(begin).Seconds()
	if err != nil {
		return s, all, err
	}
	now, err := arrived(l, 2)
	if err != nil {
		return s, all, err
	}
	all.share = (now - bytes) * 8 / pingRate / took
	all.elections, err = campaigns(l)
	all.elections -= called
	return s, all, err
}

// copyOn copies the image to node 2 and removes it there, until ctx ends.
func (b *bench) copyOn(ctx context.Context, l *lab.Lab) error {
	for ctx.Err() == nil {
		err := b.copyTo(ctx, l, "noise:1", "node2")
		if err == nil {
			err = b.forget(ctx, l, 2, "noise:1")
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return context.Canceled
}

// watchLeader counts how often the leader that a node knows becomes another, until the
// function it returns is called.
func watchLeader(c *control.Client) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() {
		changes, last := 0, ""
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			nodes, _ := c.Nodes(ctx) // it is asked again soon
			for _, n := range nodes {
				if n.Leader && n.Name != last {
					if last != "" {
						changes++
					}
					last = n.Name
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				done <- changes
				return
			}
		}
	}()
	return func() int { cancel(); return <-done }
}

// campaigns counts the elections that nodes have called, as their logs say.
func campaigns(l *lab.Lab) (int, error) {
	called := regexp.MustCompile(`starting election|restarting election`)
	total := 0
	for n := 1; n <= l.Nodes(); n++ {
		raw, err := os.ReadFile(l.Log(n))
		if err != nil {
			return 0, err
		}
		total += len(called.FindAll(raw, -1))
	}
	return total, nil
}
