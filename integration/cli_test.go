package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// TestEveryCallOnAnotherNode walks through a container's life, each step asked of
// another node than the one before.
func TestEveryCallOnAnotherNode(t *testing.T) {
	c := name(t)
	id := ok(t, 1, "run", "-d", "--name", c, "--label", "a=b", "busybox", "sh", "-c", "echo out; echo err >&2; cat", "ignored")
	require.Len(t, id, 64)
	for n := 1; n <= 3; n++ {
		require.Equal(t, c, ok(t, n, "ps", "-a", "--filter", "name="+c, "--format", "{{.Names}}"), "node %d", n)
		require.Equal(t, "out", ok(t, n, "logs", c))
		require.Equal(t, id, ok(t, n, "inspect", "-f", "{{.Id}}", c))
		require.Equal(t, "exited", ok(t, n, "inspect", "-f", "{{.State.Status}}", id[:12]))
	}
	ok(t, 2, "rm", c)
	r := docker(t, 3, "inspect", c)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "No such")

	c = name(t)
	ok(t, 3, "run", "-d", "--name", c, "busybox", "sleep", "1000")
	require.Equal(t, "hi", ok(t, 1, "exec", c, "echo", "hi"))
	require.Equal(t, 7, docker(t, 2, "exec", c, "sh", "-c", "exit 7").code)
	ok(t, 1, "stop", "-t", "1", c)
	require.Equal(t, "137", ok(t, 2, "inspect", "-f", "{{.State.ExitCode}}", c))
	ok(t, 3, "start", c)
	require.Equal(t, "true", ok(t, 1, "inspect", "-f", "{{.State.Running}}", c))
	ok(t, 2, "restart", "-t", "0", c)
	ok(t, 3, "kill", c)
	require.Equal(t, "137", ok(t, 1, "wait", c))
	ok(t, 2, "rm", c)
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		code int
		args []string
		text string
	}{
		{0, []string{"run", "--rm", "busybox", "true"}, ""},
		{1, []string{"run", "--rm", "busybox", "false"}, ""},
		{42, []string{"run", "--rm", "busybox", "sh", "-c", "exit 42"}, ""},
		{125, []string{"run", "--rm", "nobody-has-this", "true"}, "nobody-has-this"},
		{125, []string{"run", "--rm", "-v", "relative:rw:x:y", "busybox", "true"}, "invalid"},
		{126, []string{"run", "--rm", "busybox", "/etc"}, "/etc"},
		{127, []string{"run", "--rm", "busybox", "no-such-command"}, "no-such-command"},
	} {
		for n := 1; n <= 3; n++ {
			r := docker(t, n, c.args...)
			require.Equal(t, c.code, r.code, "node %d: docker %v: %s", n, c.args, r.err)
			require.Contains(t, r.err, c.text)
		}
	}
	require.Empty(t, ok(t, 1, "ps", "-aq", "--filter", "ancestor=nobody-has-this"))

	for n := 1; n <= 3; n++ {
		c := name(t)
		done := make(chan result, 1)
		go func() { done <- docker(t, n, "run", "--name", c, "busybox", "sleep", "1000") }()
		within(t, time.Minute, "the container's running", func() bool {
			return ok(t, n%3+1, "ps", "-q", "--filter", "name="+c) != ""
		})
		ok(t, n%3+1, "kill", c)
		require.Equal(t, 137, (<-done).code)
	}
}

func TestStreams(t *testing.T) {
	big := strings.Repeat("0123456789abcdef\n", 64<<10) // 1 MiB
	for n := 1; n <= 3; n++ {
		r := dockerInput(t, n, strings.NewReader(big), "run", "--rm", "-i", "busybox", "cat")
		require.Zero(t, r.code, r.err)
		require.Equal(t, len(big), len(r.out))
		r = docker(t, n, "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
		require.Equal(t, result{"out\n", "err\n", 0}, r)
		require.Equal(t, "x\r", ok(t, n, "run", "--rm", "-t", "busybox", "echo", "x"), "a terminal turns line ends")
	}
}

func TestLogsFollow(t *testing.T) {
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done")
	r := docker(t, 2, "logs", "-f", c)
	require.Zero(t, r.code)
	require.Equal(t, "line 1\nline 2\nline 3\nline 4\nline 5\n", r.out)
	require.Equal(t, "line 5", ok(t, 3, "logs", "--tail", "1", c))
	stamped := ok(t, 3, "logs", "-t", "--tail", "1", c)
	at, rest, _ := strings.Cut(stamped, " ")
	require.Equal(t, "line 5", rest)
	_, err := time.Parse(time.RFC3339Nano, at)
	require.NoError(t, err)
	require.Empty(t, ok(t, 1, "logs", "--since", "2100-01-01T00:00:00Z", c))
}

// TestTerminals uses a real terminal for run -it, exec -it and attach.
func TestTerminals(t *testing.T) {
	c := name(t)
	in := terminal(t, 1, "run", "-it", "--name", c, "busybox", "sh")
	in.expect("# ")
	in.send("stty size; echo run-$((40+2))\n")
	in.expect("30 100")
	in.expect("run-42")

	second := terminal(t, 3, "exec", "-it", c, "sh")
	second.expect("# ")
	second.send("echo exec-$((40+2)); exit 3\n")
	second.expect("exec-42")
	require.Equal(t, 3, second.wait())

	third := terminal(t, 2, "attach", c)
	third.send("echo attach-$((40+2))\n")
	third.expect("attach-42")
	in.expect("attach-42")
	third.send("exit 5\n")
	require.Equal(t, 5, third.wait())
	require.Equal(t, 5, in.wait())
}

func TestAttachWithoutTerminal(t *testing.T) {
	c := name(t)
	ok(t, 1, "create", "-i", "--name", c, "busybox", "sh", "-c", "read line; echo got $line")
	ok(t, 2, "start", c)
	r := dockerInput(t, 3, strings.NewReader("hello\n"), "attach", c)
	require.Equal(t, "got hello\n", r.out, r.err)
}

func TestImages(t *testing.T) {
	for n := 1; n <= 3; n++ {
		require.Equal(t, "web:1", ok(t, n, "images", "web", "--format", "{{.Repository}}:{{.Tag}}"))
		require.NotEmpty(t, ok(t, n, "history", "-q", "web:1"))
	}
	ok(t, 2, "tag", "web:1", "other:2")
	require.Equal(t, ok(t, 1, "inspect", "-f", "{{.Id}}", "web:1"), ok(t, 3, "inspect", "-f", "{{.Id}}", "other:2"))
	file := filepath.Join(t.TempDir(), "other.tar")
	ok(t, 3, "save", "-o", file, "other:2")
	ok(t, 1, "rmi", "other:2")
	require.Empty(t, ok(t, 3, "images", "-q", "other"))
	ok(t, 2, "load", "-i", file)
	require.Equal(t, ok(t, 1, "inspect", "-f", "{{.Id}}", "web:1"), ok(t, 1, "inspect", "-f", "{{.Id}}", "other:2"))
	ok(t, 3, "rmi", "other:2")

	archive, err := exec.Command("tar", "-C", t.TempDir(), "-c", ".").Output()
	require.NoError(t, err)
	r := dockerInput(t, 2, bytes.NewReader(archive), "import", "-c", "CMD [\"/x\"]", "-", "empty:1")
	require.Zero(t, r.code, r.err)
	require.Equal(t, "[/x]", ok(t, 3, "inspect", "-f", "{{.Config.Cmd}}", "empty:1"))
	ok(t, 1, "rmi", "empty:1")
}

// TestOlderClient speaks the API of several years ago.
func TestOlderClient(t *testing.T) {
	const old = "/usr/bin/docker"
	if _, err := os.Stat(old); err != nil || old == shared.docker {
		t.Log("only one docker client is installed; the others tests use it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.command(ctx, 2, "run", "--rm", "busybox", "echo", "hi")
	cmd.Env = append(cmd.Env, "DOCKER_API_VERSION=1.41")
	if _, err := os.Stat(old); err == nil {
		cmd.Path = old
	}
	require.Equal(t, result{"hi\n", "", 0}, runCommand(t, cmd))
}

// term is a client on a terminal.
type term struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File
	seen chan []byte
	buf  string
}

func terminal(t *testing.T, n int, args ...string) *term {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := shared.command(ctx, n, args...)
	file, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	x := &term{t: t, cmd: cmd, file: file, seen: make(chan []byte, 1024)}
	go func() {
		defer close(x.seen)
		for {
			b := make([]byte, 4096)
			n, err := file.Read(b)
			if n > 0 {
				x.seen <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *term) send(s string) {
	x.t.Helper()
	_, err := x.file.WriteString(s)
	require.NoError(x.t, err)
}

// expect reads until the text came, and forgets everything up to it.
func (x *term) expect(text string) {
	x.t.Helper()
	timeout := time.After(time.Minute)
	for {
		if _, rest, ok := strings.Cut(x.buf, text); ok {
			x.buf = rest
			return
		}
		select {
		case b, open := <-x.seen:
			if !open {
				x.t.Fatalf("the terminal closed before %q came; it showed %q", text, x.buf)
			}
			x.buf += string(b)
		case <-timeout:
			x.t.Fatalf("%q did not come; the terminal shows %q", text, x.buf)
		}
	}
}

func (x *term) wait() int {
	x.t.Helper()
	_ = x.cmd.Wait()
	return x.cmd.ProcessState.ExitCode()
}

// TestTimersOfContainers: the agent lets its own timers be late, not those of others.
func TestTimersOfContainers(t *testing.T) {
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "busybox", "sleep", "1000")
	require.Equal(t, "50000", ok(t, 2, "run", "--rm", "busybox", "cat", "/proc/self/timerslack_ns"))
	require.Equal(t, "50000", ok(t, 3, "exec", c, "cat", "/proc/self/timerslack_ns"))
	ok(t, 1, "rm", "-f", c)
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(shared.lab.Pid(1)), "timerslack_ns"))
	require.NoError(t, err)
	require.Equal(t, "250000", strings.TrimSpace(string(raw)), "the agent itself")
}
