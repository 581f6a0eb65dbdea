package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
	"github.com/shoal-engine/shoal/node/supervisor"
)

// agent is a process that starts containers and then waits for its death.
func agent(dir, rootfs string) {
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	c, err := supervisor.Connect(ctx, config(dir))
	check(err)
	hello, err := c.Hello(ctx)
	check(err)
	start := func(id string, o defaults.Options, stdin bool) runtime.Task {
		o.Rootfs = rootfs
		if !hello.Seccomp {
			o.Seccomp = defaults.Unconfined
		}
		spec, err := defaults.Spec(o)
		check(err)
		bundle := filepath.Join(dir, id)
		check(os.MkdirAll(bundle, 0o700))
		task, err := c.Create(ctx, id, runtime.Bundle{
			Spec: spec, Dir: bundle, LogPath: filepath.Join(bundle, "log"), OpenStdin: stdin, StdinOnce: stdin,
		})
		check(err)
		check(task.Start(ctx))
		return task
	}
	start("brief", sh("echo all there is; exit 4"), false)
	start("long", sh("i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 6"), false)
	cat := start("cat", sh("cat; exit 8"), true)
	s, err := cat.Attach(ctx, runtime.Streams{Stdin: true, Stdout: true})
	check(err)
	_, err = io.WriteString(s, "from the first agent\n")
	check(err)
	_, err = io.ReadFull(s, make([]byte, 8+len("from the first agent\n")))
	check(err)
	fmt.Println("ready")
	select {}
}

// A killed agent loses no container, no line of a log and no exit code.
func TestAgentDies(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.Shutdown(t.Context(), false), "the agent shall start it")
	cmd := exec.Command("/proc/self/exe", "agent", h.dir, h.rootfs)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()

	h.connect()
	ids, err := h.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"brief", "cat", "long"}, ids)
	load := func(id string) runtime.Task {
		task, err := h.Load(t.Context(), id)
		require.NoError(t, err)
		return task
	}
	text := func(id string) string {
		b, err := os.ReadFile(filepath.Join(h.dir, id, "log"))
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, 4, wait(t, load("brief")).Code)
	require.Contains(t, text("brief"), "all there is")
	require.Equal(t, 6, wait(t, load("long")).Code)
	for i := range 200 {
		require.Contains(t, text("long"), fmt.Sprintf(`"line %d\n"`, i))
	}
	require.Equal(t, 200, strings.Count(text("long"), "\n"))

	// The agent's death was not the end of the input that it carried.
	cat := load("cat")
	s, err := cat.Attach(t.Context(), runtime.Streams{Stdin: true, Stdout: true})
	require.NoError(t, err)
	defer s.Close()
	_, err = io.WriteString(s, "from the second\n")
	require.NoError(t, err)
	require.NoError(t, s.CloseWrite())
	stdout, _ := output(t, s)
	require.Equal(t, "from the second\n", stdout)
	require.Equal(t, 8, wait(t, cat).Code)
}

// Containers outlive their supervisor, too, if not their streams.
func TestSupervisorDies(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	runs := h.create("runs", h.bundle(sh("trap 'exit 5' TERM; while :; do sleep 0.05; done")))
	require.NoError(t, runs.Start(ctx))
	ended := h.create("ended", h.bundle(sh("exit 9")))
	require.NoError(t, ended.Start(ctx))
	require.Equal(t, 9, wait(t, ended).Code)
	gone := h.create("gone", h.bundle(sh("sleep 1000")))
	require.NoError(t, gone.Start(ctx))
	status, err := gone.Status(ctx)
	require.NoError(t, err)

	hello, err := h.Hello(ctx)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(hello.Pid, syscall.SIGKILL))
	require.NoError(t, syscall.Kill(status.Pid, syscall.SIGKILL))
	require.Eventually(t, func() bool { _, err := h.Hello(ctx); return api.Status(err) == 503 }, time.Minute, 10*time.Millisecond)
	require.Eventually(t, func() bool { return !runsNow(status.Pid) }, time.Minute, 10*time.Millisecond)

	h.connect()
	require.Equal(t, 9, wait(t, ended).Code)
	exit := wait(t, gone)
	require.NotZero(t, exit.Code)
	require.NoError(t, gone.Delete(ctx))
	require.NoError(t, ended.Delete(ctx))
	status, err = runs.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, runtime.Running, status.State)
	pids, err := runs.Pids(ctx)
	require.NoError(t, err)
	require.Contains(t, pids, status.Pid)
	require.NoError(t, runs.Signal(ctx, 15))
	require.Equal(t, 5, wait(t, runs).Code)
	require.NoError(t, runs.Delete(ctx))
}

// runsNow says whether a process is there that has not ended.
func runsNow(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestManyAtOnce(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	before := cgroups(t)
	var group sync.WaitGroup
	for i := range 20 {
		b := h.bundle(sh(fmt.Sprintf("echo %d; exit %d", i, i)))
		group.Go(func() {
			task, err := h.Create(ctx, fmt.Sprint("c", i), b)
			if !noError(t, err) {
				return
			}
			s, err := task.Attach(ctx, both)
			if !noError(t, err) || !noError(t, task.Start(ctx)) {
				return
			}
			exit, err := task.Wait(ctx)
			if !noError(t, err) {
				return
			}
			if exit.Code != i {
				t.Errorf("container %d ended with %d", i, exit.Code)
			}
			text, err := io.ReadAll(s)
			noError(t, err)
			if want := fmt.Sprintf("%d\n", i); string(text[8:]) != want {
				t.Errorf("container %d said %q", i, text)
			}
			noError(t, s.Close())
			noError(t, task.Delete(ctx))
		})
	}
	group.Wait()
	ids, err := h.List(ctx)
	require.NoError(t, err)
	require.Empty(t, ids)
	hello, err := h.Hello(ctx)
	require.NoError(t, err)
	require.Empty(t, children(t, hello.Pid), "children of the supervisor")
	require.Equal(t, before, cgroups(t), "cgroups")
	left, err := os.ReadDir(filepath.Join(h.config().Dir, "containers"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// noError is require.NoError for goroutines.
func noError(t *testing.T, err error) bool {
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// cgroups lists those of containers of any supervisor.
func cgroups(t *testing.T) []string {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/shoal-*/*/cgroup.procs")
	require.NoError(t, err)
	return dirs
}

func children(t *testing.T, pid int) string {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	all := ""
	for _, l := range lists {
		b, err := os.ReadFile(l)
		require.NoError(t, err)
		all += string(b)
	}
	return all
}

// What a container of the host's PID namespace leaves behind is reaped.
func TestOrphansAreReaped(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	o := sh("(sleep 0.2 & ) ; exit 0")
	o.PID.Host = true
	task := h.create("orphans", h.bundle(o))
	require.NoError(t, task.Start(ctx))
	require.Zero(t, wait(t, task).Code)
	hello, err := h.Hello(ctx)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return children(t, hello.Pid) == "" }, time.Minute, 20*time.Millisecond)
}

func TestConnectIsRaceFree(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.Shutdown(t.Context(), false))
	pids := make(chan int, 5)
	for range cap(pids) {
		go func() {
			c, err := supervisor.Connect(context.Background(), h.config())
			if !noError(t, err) {
				pids <- 0
				return
			}
			hello, err := c.Hello(context.Background())
			noError(t, err)
			pids <- hello.Pid
		}()
	}
	first := <-pids
	require.NotZero(t, first)
	for range cap(pids) - 1 {
		require.Equal(t, first, <-pids)
	}
}

func TestShutdown(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	task := h.create("runs", h.bundle(sh("sleep 1000")))
	require.NoError(t, task.Start(ctx))
	status, err := task.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, 409, api.Status(h.Shutdown(ctx, false)))
	require.NoError(t, h.Shutdown(ctx, true))
	require.False(t, runsNow(status.Pid))
	require.NoError(t, h.Shutdown(ctx, true), "nobody is there any more")
	_, err = task.Status(ctx)
	require.Equal(t, 503, api.Status(err))
}

// A socket's path has a limit, a data directory's has none.
func TestLongDirectory(t *testing.T) {
	h := newHost(t)
	long := filepath.Join(h.dir, strings.Repeat("a", 100), strings.Repeat("b", 100))
	c, err := supervisor.Connect(t.Context(), supervisor.Config{Dir: long, Logger: h.config().Logger})
	require.NoError(t, err)
	require.NoError(t, c.Shutdown(t.Context(), false))
}

func BenchmarkRun(b *testing.B) {
	h := newHost(b)
	for _, c := range []struct {
		name    string
		seccomp string
	}{{"seccomp", ""}, {"unconfined", defaults.Unconfined}} {
		b.Run(c.name, func(b *testing.B) {
			bundle := h.bundle(defaults.Options{Args: []string{"true"}, Seccomp: c.seccomp})
			for i := 0; b.Loop(); i++ {
				task := h.create(fmt.Sprint(c.name, i), bundle)
				require.NoError(b, task.Start(b.Context()))
				wait(b, task)
				require.NoError(b, task.Delete(b.Context()))
			}
		})
	}
}

func BenchmarkExec(b *testing.B) {
	h := newHost(b)
	bundle := h.bundle(sh("sleep 1000"))
	task := h.create("box", bundle)
	require.NoError(b, task.Start(b.Context()))
	p := *bundle.Spec.Process
	p.Args = []string{"true"}
	for i := 0; b.Loop(); i++ {
		e, err := task.Exec(b.Context(), fmt.Sprint(i), runtime.Process{Spec: &p})
		require.NoError(b, err)
		wait(b, e)
	}
}
