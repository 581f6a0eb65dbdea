package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

// peer is a dockerd of the benchmark's own.
type peer struct {
	dir, socket string
	cmd         *exec.Cmd
	ns          *lab.Namespace // nil: it is in a lab node's
}

func (p *peer) pid() int { return p.cmd.Process.Pid }

// startDockerd starts one in a network namespace of its own.
func (b *bench) startDockerd(ctx context.Context) (*peer, error) {
	p, args, err := b.newPeer()
	if err != nil {
		return nil, err
	}
	if p.ns, err = lab.NewNamespace(filepath.Join(p.dir, "netns")); err != nil {
		return nil, err
	}
	p.cmd = exec.Command(args[0], args[1:]...)
	return p, b.run(ctx, p, p.ns.Start)
}

// startDockerdOn starts one in a lab node's network.
func (b *bench) startDockerdOn(ctx context.Context, l *lab.Lab, node int, more ...string) (*peer, error) {
	p, args, err := b.newPeer()
	if err != nil {
		return nil, err
	}
	// Its network alone: `lab exec` would also hide the control groups.
	netns := filepath.Join(l.Dir(), fmt.Sprintf("node%d", node), "namespace")
	p.cmd = exec.Command("nsenter", append(append([]string{"--net=" + netns, "--"}, args...), more...)...)
	return p, b.run(ctx, p, (*exec.Cmd).Start)
}

func (b *bench) newPeer() (*peer, []string, error) {
	p := &peer{dir: filepath.Join(b.tmp, "dockerd")}
	p.socket = filepath.Join(p.dir, "docker.sock")
	return p, []string{
		b.dockerd, "--data-root", filepath.Join(p.dir, "data"), "--exec-root", filepath.Join(p.dir, "exec"),
		"-p", filepath.Join(p.dir, "pid"), "-H", "unix://" + p.socket,
	}, os.MkdirAll(p.dir, 0o700)
}

// run starts a peer and waits until it answers. Nothing of one that doesn't is left.
func (b *bench) run(ctx context.Context, p *peer, start func(*exec.Cmd) error) error {
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := start(p.cmd); err != nil {
		return errors.Join(fmt.Errorf("start dockerd (Debian's docker.io has it): %w", err), p.close())
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); <-tick.C {
		if b.cli(ctx, p.socket, "info").Run() == nil {
			return nil
		}
	}
	raw, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return errors.Join(fmt.Errorf("dockerd does not answer: %s", raw[max(0, len(raw)-2000):]), p.stop())
}

func (p *peer) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
	return p.close()
}

func (p *peer) close() error {
	if p.ns == nil {
		return nil
	}
	return p.ns.Close()
}

// on is a command in a lab node's network.
func (b *bench) on(ctx context.Context, l *lab.Lab, node int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.shoal, append([]string{"lab", "exec", "--dir", l.Dir(), fmt.Sprint(node), "--"}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// self is this program in a lab node's network, as one of its helpers.
func (b *bench) self(ctx context.Context, l *lab.Lab, node int, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return b.on(ctx, l, node, append([]string{self}, args...)...)
}
