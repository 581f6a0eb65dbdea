package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/shoal-engine/shoal/integration/lab"
)

// dns asks a node's name server as fast as it answers, and dnsmasq, holding the
// same name, in the same namespace and in turn.
func (b *bench) dns(ctx context.Context) (err error) {
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.must(ctx, l.Socket(1), "load", "-q", "-i", filepath.Join(b.tmp, "busybox.tar")); err != nil {
		return err
	}
	if err := b.must(ctx, l.Socket(1), "run", "-d", "--name", "web", "busybox", "sleep", "100000"); err != nil {
		return err
	}
	servers := []string{"127.0.0.1:53"}
	if path, err := exec.LookPath("dnsmasq"); err == nil {
		cmd := b.on(ctx, l, 1, path, "--keep-in-foreground", "--conf-file=/dev/null",
			"--port=5353", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts", "--host-record=web,10.77.1.2", "--user=root", "--pid-file=")
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		servers = append(servers, "127.0.0.1:5353")
	}
	rates := make([][]float64, 2)
	for range 5 {
		for i, s := range servers {
			out, err := b.self(ctx, l, 1, "dnsload", s, "web.").Output()
			if err != nil {
				return fmt.Errorf("load %s: %w", s, err)
			}
			rate, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	f := figure{Name: "DNS queries answered, load generator on the same two cores", Unit: "1/s", Shoal: median(rates[0]), Note: "median of 5 runs of 2 s"}
	if len(servers) > 1 {
		f.Peer, f.Note = median(rates[1]), f.Note+"; peer: dnsmasq"
	}
	b.add(f)
	return nil
}

// dnsLoad counts the answers that a server gives to eight askers in two seconds.
func dnsLoad(ctx context.Context, server, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var answers atomic.Int64
	errs := make([]error, 8)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range errs {
		wg.Go(func() { errs[i] = ask(ctx, server, name, &answers) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("%.0f\n", float64(answers.Load())/time.Since(start).Seconds())
	return nil
}

// ask sends queries over one socket, a few ahead of the answers.
func ask(ctx context.Context, server, name string, answers *atomic.Int64) error {
	conn, err := dns.Dial("udp", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		return err
	}
	const ahead = 16
	for range ahead {
		if _, err := conn.Conn.Write(query); err != nil {
			return err
		}
	}
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		n, err := conn.Conn.Read(buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if n > 7 && buf[7] > 0 { // an answer, not a refusal
			answers.Add(1)
		}
		if _, err := conn.Conn.Write(query); err != nil {
			return err
		}
	}
	return nil
}
