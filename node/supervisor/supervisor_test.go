package supervisor_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
	"github.com/shoal-engine/shoal/node/supervisor"
)

func TestMain(m *testing.M) {
	if supervisor.IsChild(os.Args) {
		supervisor.Main()
	}
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		agent(os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

// host is a supervisor with a root file system to run things in.
type host struct {
	*supervisor.Client
	t       testing.TB
	dir     string
	rootfs  string
	seccomp bool // filters can be installed
}

func newHost(t testing.TB) *host {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h := &host{t: t, dir: t.TempDir()}
	h.rootfs = busybox(t, filepath.Join(h.dir, "rootfs"))
	h.connect()
	t.Cleanup(func() {
		require.NoError(t, h.Shutdown(context.Background(), true))
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(h.config().Dir, "supervisor.log"))
			t.Logf("supervisor.log:\n%s", log)
		}
	})
	return h
}

func (h *host) config() supervisor.Config {
	return config(h.dir)
}

func config(dir string) supervisor.Config {
	return supervisor.Config{
		Dir: filepath.Join(dir, "sv"), RunDir: filepath.Join(dir, "run"),
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (h *host) connect() {
	c, err := supervisor.Connect(h.t.Context(), h.config())
	require.NoError(h.t, err)
	h.Client = c
	hello, err := c.Hello(h.t.Context())
	require.NoError(h.t, err)
	h.seccomp = hello.Seccomp
}

// busybox makes a root file system of one executable.
func busybox(t testing.TB, dir string) string {
	src, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), src, 0o755))
	for _, name := range []string{"sh", "echo", "cat", "sleep", "true", "id", "stty", "kill", "head", "seq", "dd", "yes", "mount", "ls", "hostname", "tail", "wc", "grep", "tr", "unshare"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	return dir
}

// bundle is that of a container running a shell command.
func (h *host) bundle(o defaults.Options) runtime.Bundle {
	o.Rootfs = h.rootfs
	if !h.seccomp && o.Seccomp == "" {
		o.Seccomp = defaults.Unconfined // all a plain build can do
	}
	spec, err := defaults.Spec(o)
	require.NoError(h.t, err)
	dir, err := os.MkdirTemp(h.dir, "c-")
	require.NoError(h.t, err)
	return runtime.Bundle{Spec: spec, Dir: dir, LogPath: filepath.Join(dir, "log")}
}

func sh(script string) defaults.Options {
	return defaults.Options{Args: []string{"sh", "-c", script}}
}

func (h *host) create(id string, b runtime.Bundle) runtime.Task {
	task, err := h.Create(h.t.Context(), id, b)
	require.NoError(h.t, err)
	return task
}

func wait(t testing.TB, task interface {
	Wait(context.Context) (runtime.Exit, error)
}) runtime.Exit {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := task.Wait(ctx)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), exit.At, time.Minute)
	return exit
}

// output takes frames apart.
func output(t testing.TB, s api.Session) (stdout, stderr string) {
	b, err := io.ReadAll(s)
	require.NoError(t, err)
	if !s.Multiplexed {
		return string(b), ""
	}
	for len(b) > 0 {
		require.GreaterOrEqual(t, len(b), 8)
		n := int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
		switch b[0] {
		case 1:
			stdout += string(b[8 : 8+n])
		case 2:
			stderr += string(b[8 : 8+n])
		default:
			t.Fatalf("stream %d", b[0])
		}
		b = b[8+n:]
	}
	return stdout, stderr
}

func logText(t testing.TB, b runtime.Bundle) string {
	text, err := os.ReadFile(b.LogPath)
	require.NoError(t, err)
	return string(text)
}

var both = runtime.Streams{Stdout: true, Stderr: true}

func TestRun(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	b := h.bundle(sh("echo out; echo err >&2; exit 7"))
	task := h.create("one", b)
	status, err := task.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, runtime.Created, status.State)
	require.NotZero(t, status.Pid)
	s, err := task.Attach(ctx, both)
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, task.Start(ctx))
	exit := wait(t, task)
	require.Equal(t, 7, exit.Code)
	require.False(t, exit.OOMKilled)
	stdout, stderr := output(t, s)
	require.Equal(t, "out\n", stdout)
	require.Equal(t, "err\n", stderr)
	require.Contains(t, logText(t, b), `{"log":"out\n","stream":"stdout","time":"`)
	require.Contains(t, logText(t, b), `{"log":"err\n","stream":"stderr","time":"`)

	status, err = task.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, runtime.Stopped, status.State)
	require.Equal(t, exit, status.Exit)
	require.False(t, status.StartedAt.After(exit.At))
	require.Equal(t, 409, api.Status(task.Signal(ctx, 15)))
	require.Equal(t, 409, api.Status(task.Start(ctx)))
	_, err = h.Create(ctx, "one", b)
	require.Equal(t, 409, api.Status(err))

	require.NoError(t, task.Delete(ctx))
	require.NoError(t, task.Delete(ctx))
	_, err = h.Load(ctx, "one")
	require.Equal(t, 404, api.Status(err))
	require.Contains(t, logText(t, b), "out", "the log is not the runtime's to delete")
}

func TestCommandsThatCannotRun(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	require.NoError(t, os.WriteFile(filepath.Join(h.rootfs, "plain"), []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(h.rootfs, "strange"), []byte("\x00\x01"), 0o755))
	box := h.create("box", h.bundle(sh("sleep 1000")))
	require.NoError(t, box.Start(ctx))
	t.Run("found out too late", func(t *testing.T) {
		b := h.bundle(defaults.Options{Args: []string{"/strange"}})
		task := h.create("strange", b)
		require.NoError(t, task.Start(ctx))
		require.Equal(t, 255, wait(t, task).Code)
		require.Contains(t, logText(t, b), "exec /strange: exec format error")
	})
	t.Run("a container that can't be made", func(t *testing.T) {
		b := h.bundle(defaults.Options{Args: []string{"true"}, Mounts: []specs.Mount{
			{Destination: "/mnt", Type: "bind", Source: "/not/there", Options: []string{"rbind"}},
		}})
		_, err := h.Create(ctx, "unmade", b)
		require.ErrorContains(t, err, "failed to create task for container: ")
		require.ErrorContains(t, err, "/not/there")
		_, err = h.Load(ctx, "unmade")
		require.Equal(t, 404, api.Status(err))
		left, err := os.ReadDir(b.Dir)
		require.NoError(t, err)
		require.Len(t, left, 1, "the log")
	})
	for _, c := range []struct {
		command string
		code    int
		text    string
	}{
		{"nope", 127, `exec: "nope": executable file not found in $PATH`},
		{"/nope", 127, `exec: "/nope": stat /nope: no such file or directory`},
		{"/plain", 126, `exec: "/plain": permission denied`},
		{"/bin", 126, `exec: "/bin": is a directory: permission denied`},
	} {
		t.Run(c.command, func(t *testing.T) {
			id := "bad" + strings.ReplaceAll(c.command, "/", "_")
			task := h.create(id, h.bundle(defaults.Options{Args: []string{c.command}}))
			var e *runtime.ExecError
			require.ErrorAs(t, task.Start(ctx), &e)
			require.Equal(t, c.code, e.Code)
			require.Contains(t, e.Text, "failed to create task for container: ")
			require.Contains(t, e.Text, c.text)
			require.NoError(t, task.Delete(ctx))

			_, err := box.Exec(ctx, id, runtime.Process{Spec: &specs.Process{Args: []string{c.command}, Cwd: "/", Env: []string{"PATH=/bin"}}})
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.code, e.Code)
			require.Contains(t, e.Text, "OCI runtime exec failed: ")
			require.Contains(t, e.Text, c.text)
		})
	}
}

func TestStdinOnce(t *testing.T) {
	h := newHost(t)
	b := h.bundle(defaults.Options{Args: []string{"cat"}})
	b.OpenStdin, b.StdinOnce = true, true
	task := h.create("cat", b)
	s, err := task.Attach(t.Context(), runtime.Streams{Stdin: true, Stdout: true, Stderr: true})
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, task.Start(t.Context()))
	text := strings.Repeat("more than a pipe holds\n", 50_000)
	go func() {
		_, _ = io.WriteString(s, text)
		_ = s.CloseWrite()
	}()
	stdout, _ := output(t, s)
	require.Equal(t, len(text), len(stdout))
	require.Equal(t, text, stdout)
	require.Zero(t, wait(t, task).Code)
}

func TestNoStdinIsEndOfFile(t *testing.T) {
	h := newHost(t)
	task := h.create("cat", h.bundle(defaults.Options{Args: []string{"cat"}}))
	require.NoError(t, task.Start(t.Context()))
	require.Zero(t, wait(t, task).Code)
}

// A client that comes and goes leaves stdin to the next.
func TestStdinStaysOpen(t *testing.T) {
	h := newHost(t)
	b := h.bundle(sh("read a; read b; echo $a-$b"))
	b.OpenStdin = true
	task := h.create("read", b)
	require.NoError(t, task.Start(t.Context()))
	for _, line := range []string{"x\n", "y\n"} {
		s, err := task.Attach(t.Context(), runtime.Streams{Stdin: true})
		require.NoError(t, err)
		_, err = io.WriteString(s, line)
		require.NoError(t, err)
		require.NoError(t, s.CloseWrite())
		require.NoError(t, s.Close())
	}
	wait(t, task)
	require.Contains(t, logText(t, b), "y")
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	o := sh("stty size; read x; stty size; tty >/dev/null 2>&1; echo got $x")
	o.Tty = true
	b := h.bundle(o)
	b.OpenStdin = true
	b.Size = api.TerminalSize{Height: 11, Width: 33}
	task := h.create("tty", b)
	s, err := task.Attach(t.Context(), runtime.Streams{Stdin: true, Stdout: true, Stderr: true})
	require.NoError(t, err)
	defer s.Close()
	require.False(t, s.Multiplexed)
	require.NoError(t, task.Start(t.Context()))
	first := make([]byte, len("11 33\r\n"))
	_, err = io.ReadFull(s, first)
	require.NoError(t, err)
	require.Equal(t, "11 33\r\n", string(first))
	require.NoError(t, task.Resize(t.Context(), api.TerminalSize{Height: 22, Width: 44}))
	_, err = io.WriteString(s, "word\n")
	require.NoError(t, err)
	rest, err := io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, "word\r\n22 44\r\ngot word\r\n", string(rest))
	wait(t, task)
	require.Equal(t, 409, api.Status(task.Resize(t.Context(), api.TerminalSize{})))
}

func TestSignals(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	task := h.create("trap", h.bundle(sh("trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done")))
	s, err := task.Attach(ctx, both)
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, task.Start(ctx))
	_, err = io.ReadFull(s, make([]byte, 8+len("ready\n")))
	require.NoError(t, err)
	require.NoError(t, task.Signal(ctx, 10))
	require.Equal(t, 3, wait(t, task).Code)

	task = h.create("kill", h.bundle(sh("sleep 1000")))
	require.NoError(t, task.Start(ctx))
	require.NoError(t, task.Pause(ctx))
	status, err := task.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, runtime.Paused, status.State)
	require.Equal(t, 409, api.Status(task.Pause(ctx)))
	require.NoError(t, task.Resume(ctx))
	require.NoError(t, task.Pause(ctx))
	require.NoError(t, task.Signal(ctx, 9), "also of a paused one")
	require.Equal(t, 137, wait(t, task).Code)
}

func TestWaitOfContainerThatIsDeleted(t *testing.T) {
	h := newHost(t)
	task := h.create("never", h.bundle(sh("true")))
	result := make(chan runtime.Exit, 1)
	go func() {
		exit, _ := task.Wait(context.Background())
		result <- exit
	}()
	require.NoError(t, task.Delete(t.Context()))
	<-result
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := task.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestExec(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	b := h.bundle(sh("sleep 1000"))
	task := h.create("box", b)
	require.NoError(t, task.Start(ctx))
	proc := func(args ...string) *specs.Process {
		p := *b.Spec.Process
		p.Args = args
		return &p
	}
	t.Run("output and code", func(t *testing.T) {
		e, err := task.Exec(ctx, "e1", runtime.Process{Spec: proc("sh", "-c", "echo hi; echo oh >&2; exit 5"), Streams: both})
		require.NoError(t, err)
		stdout, stderr := output(t, e.Session())
		require.Equal(t, "hi\n", stdout)
		require.Equal(t, "oh\n", stderr)
		require.Equal(t, 5, wait(t, e).Code)
		_, err = task.Exec(ctx, "e1", runtime.Process{Spec: proc("true")})
		require.Equal(t, 409, api.Status(err))
	})
	t.Run("stdin with half-close", func(t *testing.T) {
		e, err := task.Exec(ctx, "e2", runtime.Process{Spec: proc("cat"), Streams: runtime.Streams{Stdin: true, Stdout: true}})
		require.NoError(t, err)
		_, err = io.WriteString(e.Session(), "through")
		require.NoError(t, err)
		require.NoError(t, e.Session().CloseWrite())
		stdout, _ := output(t, e.Session())
		require.Equal(t, "through", stdout)
		require.Zero(t, wait(t, e).Code)
	})
	t.Run("terminal", func(t *testing.T) {
		p := proc("sh", "-c", "stty size")
		p.Terminal = true
		e, err := task.Exec(ctx, "e3", runtime.Process{Spec: p, Streams: both, Size: api.TerminalSize{Height: 5, Width: 6}})
		require.NoError(t, err)
		stdout, _ := output(t, e.Session())
		require.Equal(t, "5 6\r\n", stdout)
	})
	t.Run("detached and killed", func(t *testing.T) {
		e, err := task.Exec(ctx, "e4", runtime.Process{Spec: proc("sleep", "1000")})
		require.NoError(t, err)
		require.Nil(t, e.Session().Duplex)
		pids, err := task.Pids(ctx)
		require.NoError(t, err)
		require.Contains(t, pids, e.Pid())
		require.NoError(t, e.Signal(ctx, 9))
		require.Equal(t, 137, wait(t, e).Code)
		require.Equal(t, 409, api.Status(e.Signal(ctx, 9)))
	})
	t.Run("a child that keeps the output open", func(t *testing.T) {
		e, err := task.Exec(ctx, "e5", runtime.Process{Spec: proc("sh", "-c", "echo first; sleep 1000 &"), Streams: both})
		require.NoError(t, err)
		stdout, _ := output(t, e.Session())
		require.Equal(t, "first\n", stdout)
		require.Zero(t, wait(t, e).Code)
	})
	t.Run("many are forgotten", func(t *testing.T) {
		for i := range 70 {
			_, err := task.Exec(ctx, fmt.Sprint("m", i), runtime.Process{Spec: proc("true")})
			require.NoError(t, err)
		}
	})
}

func TestAttachedClientThatDoesNotRead(t *testing.T) {
	h := newHost(t)
	b := h.bundle(sh("seq 1 200000"))
	b.LogMaxSize, b.LogMaxFiles = 1<<20, 2
	task := h.create("loud", b)
	slow, err := task.Attach(t.Context(), both)
	require.NoError(t, err)
	defer slow.Close()
	fast, err := task.Attach(t.Context(), both)
	require.NoError(t, err)
	defer fast.Close()
	require.NoError(t, task.Start(t.Context()))
	stdout, _ := output(t, fast)
	require.True(t, strings.HasSuffix(stdout, "\n200000\n"))
	require.Zero(t, wait(t, task).Code)
}

func TestOOM(t *testing.T) {
	_, v1 := os.Stat("/sys/fs/cgroup/memory")
	v2, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if v1 != nil && !strings.Contains(string(v2), "memory") {
		t.Skip("needs a cgroup that limits memory")
	}
	h := newHost(t)
	o := sh("x=$(tail /dev/zero); echo survived")
	o.Resources.Memory = 96 << 20 // what a build for finding races needs to get there
	task := h.create("oom", h.bundle(o))
	require.NoError(t, task.Start(t.Context()))
	exit := wait(t, task)
	require.True(t, exit.OOMKilled)
}

func TestLimitsAreClamped(t *testing.T) {
	h := newHost(t)
	o := sh("ulimit -n; cat /proc/self/oom_score_adj")
	o.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10_000_000, Soft: 10_000_000}}
	o.OOMScoreAdj = -500
	b := h.bundle(o)
	task := h.create("limits", b)
	require.NoError(t, task.Start(t.Context()))
	require.Zero(t, wait(t, task).Code)
}
