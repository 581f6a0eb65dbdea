package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/integration/lab"
)

// env is what all tests share: one lab of three with the test images on node 1.
type env struct {
	lab     *lab.Lab
	shoal   string
	docker  string // the newest docker client there is
	busybox string // archives
	web     string
	counter atomic.Int64
}

var shared *env //nolint:gochecknoglobals // a lab takes seconds to start; tests share one

func TestMain(m *testing.M) {
	code, err := withLab(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func withLab(m *testing.M) (code int, err error) {
	if os.Getuid() != 0 {
		return 0, errors.New("these tests make namespaces and containers: run them as root")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root, err := filepath.Abs("..")
	if err != nil {
		return 0, err
	}
	e := &env{shoal: filepath.Join(root, "bin/shoal")}
	if e.docker, err = exec.LookPath("docker"); err != nil {
		return 0, errors.New("no docker client: `make setup` installs one")
	}
	tmp, err := os.MkdirTemp("", "shoal-integration")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	e.busybox, e.web = filepath.Join(tmp, "busybox.tar"), filepath.Join(tmp, "web.tar")
	mkimage := filepath.Join(root, "bin/mkimage")
	for _, args := range [][]string{
		{"-o", e.busybox, "-busybox"},
		{"-o", e.web, "-ref", "web:1", "-cmd", "/web", "-port", "80", "-pad", "8MiB", "/web=" + filepath.Join(root, "bin/webapp")},
	} {
		if out, err := exec.Command(mkimage, args...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("make a test image: %w: %s (has `make build` run?)", err, out)
		}
	}
	dir := fmt.Sprintf("/run/shoal-test-%d", os.Getpid())
	if e.lab, err = lab.Up(ctx, dir, lab.Options{Nodes: 3, Binary: e.shoal, Out: os.Stderr}); err != nil {
		return 0, err
	}
	defer func() {
		if code != 0 {
			saveLogs(e.lab)
		}
		clean, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, e.lab.Down(clean))
	}()
	for _, archive := range []string{e.busybox, e.web} {
		if out, err := e.command(ctx, 1, "load", "-q", "-i", archive).CombinedOutput(); err != nil {
			return 1, fmt.Errorf("load the test image: %w: %s", err, out)
		}
	}
	shared = e
	return m.Run(), nil
}

// saveLogs shows the end of every agent's log after a failure.
func saveLogs(l *lab.Lab) {
	for n := 1; n <= l.Nodes(); n++ {
		raw, err := os.ReadFile(l.Log(n))
		if err != nil {
			continue
		}
		lines := bytes.Split(raw, []byte("\n"))
		fmt.Fprintf(os.Stderr, "=== end of node%d's log\n%s\n", n, bytes.Join(lines[max(0, len(lines)-60):], []byte("\n")))
	}
}

// command is a docker client that talks to node n.
func (e *env) command(ctx context.Context, n int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.lab.Socket(n), "DOCKER_CONFIG="+filepath.Dir(e.busybox))
	return cmd
}

// result is how a client ended.
type result struct {
	out, err string
	code     int
}

// docker runs the client against node n.
func docker(t *testing.T, n int, args ...string) result {
	t.Helper()
	return dockerInput(t, n, nil, args...)
}

func dockerInput(t *testing.T, n int, in io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.command(ctx, n, args...)
	cmd.Stdin = in
	return runCommand(t, cmd)
}

func runCommand(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err, "%s", cmd)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// ok runs the client against node n, which must succeed, and returns its output
// without the last line end.
func ok(t *testing.T, n int, args ...string) string {
	t.Helper()
	r := docker(t, n, args...)
	require.Zero(t, r.code, "docker %s on node %d: %s%s", strings.Join(args, " "), n, r.out, r.err)
	return strings.TrimRight(r.out, "\n")
}

// name is a container name nobody else has, removed with the test.
func name(t *testing.T) string {
	t.Helper()
	s := fmt.Sprintf("t%d", shared.counter.Add(1))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = shared.command(ctx, 1, "rm", "-f", s).Run()
	})
	return s
}

// inside runs a command in node n's network.
func inside(t *testing.T, n int, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return runCommand(t, exec.CommandContext(ctx, shared.shoal, append([]string{"lab", "exec", "--dir", shared.lab.Dir(), fmt.Sprint(n), "--"}, args...)...))
}

// shoal runs the shoal command against node n.
func shoal(t *testing.T, n int, args ...string) result {
	t.Helper()
	return shoalOn(t, shared.lab, n, args...)
}

// shoalOn runs the shoal command against a node of a lab.
func shoalOn(t *testing.T, l *lab.Lab, n int, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.shoal, args...)
	cmd.Env = append(os.Environ(), "SHOAL_HOST=unix://"+l.Socket(n))
	return runCommand(t, cmd)
}

// within fails the test unless ok holds before the time is over.
func within(t *testing.T, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// single is a cluster of one, of the test's own.
func single(t *testing.T) *lab.Lab {
	t.Helper()
	return own(t, 1)
}

// own is a lab of the test's own.
func own(t *testing.T, nodes int) *lab.Lab {
	t.Helper()
	dir := fmt.Sprintf("/run/shoal-test-%d-%d", os.Getpid(), shared.counter.Add(1))
	l, err := lab.Up(t.Context(), dir, lab.Options{Nodes: nodes, Binary: shared.shoal, Out: io.Discard})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			saveLogs(l)
		}
		require.NoError(t, l.Down(ctx))
	})
	return l
}
