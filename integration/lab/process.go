package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process for good: a pid alone may be somebody else's by now.
type process struct {
	Pid   int
	Start string // field 22 of /proc/PID/stat
}

// Start runs node n's agent and returns once it answers. One that runs is left alone.
func (l *Lab) Start(ctx context.Context, n int) error {
	if err := l.known(n); err != nil {
		return err
	}
	if _, ok := l.agent(n); ok {
		return nil
	}
	logFile, err := os.OpenFile(l.Log(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the agent's log: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(l.state.Binary, "agent", "--config", l.configPath(n))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startIn(l.netns(n), cmd); err != nil {
		return fmt.Errorf("start node%d's agent: %w", n, err)
	}
	died := make(chan struct{})
	go func() {
		_ = cmd.Wait() // reaps it; how it ended is in its log
		close(died)
	}()
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return l.failed(n, errors.New("it ended at once"))
	}
	raw, err := json.Marshal(process{cmd.Process.Pid, start})
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.pidPath(n), raw, 0o600); err != nil {
		return fmt.Errorf("note node%d's pid: %w", n, err)
	}
	return l.awaitAnswer(ctx, n, died)
}

func (l *Lab) awaitAnswer(ctx context.Context, n int, died <-chan struct{}) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not answer"))
	defer cancel()
	dead := false
	err := poll(ctx, 20*time.Millisecond, func() bool {
		select {
		case <-died:
			dead = true
			return true
		default:
			return l.Control(n).Ping(ctx) == nil
		}
	})
	if dead {
		err = errors.New("it ended at once")
	}
	if err != nil {
		return l.failed(n, err)
	}
	return nil
}

// failed is err with the last lines of the agent's log, which usually tell why.
func (l *Lab) failed(n int, err error) error {
	raw, _ := os.ReadFile(l.Log(n))
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	tail := strings.Join(lines[max(0, len(lines)-5):], "\n\t")
	return fmt.Errorf("node%d's agent: %w; the end of %s:\n\t%s", n, err, l.Log(n), tail)
}

// Stop ends node n's agent gracefully; its containers go on.
func (l *Lab) Stop(ctx context.Context, n int) error { return l.end(ctx, n, unix.SIGTERM) }

// Kill ends node n's agent with SIGKILL; its containers go on.
func (l *Lab) Kill(ctx context.Context, n int) error { return l.end(ctx, n, unix.SIGKILL) }

// Pause freezes node n's agent: it holds its connections and says nothing.
func (l *Lab) Pause(n int) error { return l.signal(n, unix.SIGSTOP) }

// Resume thaws it.
func (l *Lab) Resume(n int) error { return l.signal(n, unix.SIGCONT) }

func (l *Lab) end(ctx context.Context, n int, sig syscall.Signal) error {
	if err := l.signal(n, sig); err != nil {
		return err
	}
	if sig != unix.SIGKILL {
		_ = l.signal(n, unix.SIGCONT) // a paused agent can't end gracefully
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not end"))
	defer cancel()
	err := poll(ctx, 5*time.Millisecond, func() bool { _, alive := l.agent(n); return !alive })
	if err != nil {
		return fmt.Errorf("node%d's agent: %w", n, err)
	}
	return nil
}

func (l *Lab) signal(n int, sig syscall.Signal) error {
	if err := l.known(n); err != nil {
		return err
	}
	p, ok := l.agent(n)
	if !ok {
		return fmt.Errorf("node%d's agent does not run: `shoal lab start %d` starts it", n, n)
	}
	if err := unix.Kill(p.Pid, sig); err != nil {
		return fmt.Errorf("signal node%d's agent: %w", n, err)
	}
	return nil
}

// agent is node n's agent, if it runs.
func (l *Lab) agent(n int) (process, bool) {
	raw, err := os.ReadFile(l.pidPath(n))
	if err != nil {
		return process{}, false
	}
	var p process
	if json.Unmarshal(raw, &p) != nil {
		return process{}, false
	}
	start, err := startTime(p.Pid)
	return p, err == nil && start == p.Start
}

// Pid is the process of node n's agent, or 0.
func (l *Lab) Pid(n int) int {
	p, ok := l.agent(n)
	if !ok {
		return 0
	}
	return p.Pid
}

func (l *Lab) pidPath(n int) string { return filepath.Join(l.nodeDir(n), "agent.pid") }

// startTime tells processes of one pid apart; a zombie counts as gone.
func startTime(pid int) (string, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	// The command's name may hold anything but is the only field in parentheses.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return "", errors.New("odd /proc stat")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", os.ErrProcessDone
	}
	return fields[19], nil
}

// reset ends node n for good: agent, containers, supervisor, mounts.
func (l *Lab) reset(ctx context.Context, n int) error {
	if _, ok := l.agent(n); ok {
		if err := l.Kill(ctx, n); err != nil {
			return err
		}
	}
	if _, err := os.Stat(l.configPath(n)); err != nil {
		return nil // it was never made
	}
	cmd := exec.CommandContext(ctx, l.state.Binary, "reset", "--force", "--config", l.configPath(n))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	if pinned(l.netns(n)) {
		err = startIn(l.netns(n), cmd)
	} else { // never made, or gone already with all that was in it
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("reset: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// NodeStatus is what `shoal lab status` shows of a node.
type NodeStatus struct {
	N                       int
	Name, Address           string
	Agent                   string // running, paused or stopped
	Pid                     int
	Role                    string // leader, voter, member; empty if it can't be asked
	Socket, NodeSocket, Log string
}

// Status shows every node, also while some don't answer.
func (l *Lab) Status(ctx context.Context) []NodeStatus {
	roles := map[string]string{}
	for n := 1; n <= l.state.Nodes && len(roles) == 0; n++ {
		if p, ok := l.agent(n); !ok || stopped(p.Pid) {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		nodes, err := l.Control(n).Nodes(ask)
		cancel()
		if err == nil {
			for _, node := range nodes {
				roles[node.Name] = node.Role()
			}
		}
	}
	out := make([]NodeStatus, 0, l.state.Nodes)
	for n := 1; n <= l.state.Nodes; n++ {
		name := fmt.Sprintf("node%d", n)
		s := NodeStatus{
			N: n, Name: name, Address: Address(n).String(), Agent: "stopped", Role: roles[name],
			Socket: l.Socket(n), NodeSocket: l.NodeSocket(n), Log: l.Log(n),
		}
		if p, ok := l.agent(n); ok {
			s.Agent, s.Pid = "running", p.Pid
			if stopped(p.Pid) {
				s.Agent = "paused"
			}
		}
		out = append(out, s)
	}
	return out
}

// stopped says whether a process is frozen by a signal.
func stopped(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	return len(fields) > 0 && fields[0] == "T"
}
