package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

// die runs f on an agent that dies at its nth step and says whether it came so far.
func (w *world) die(t *testing.T, n int, f func(*agent)) bool {
	h := w.handle(n)
	a := w.boot(t, h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(a)
	}()
	t.Cleanup(func() {
		select {
		case <-h.release:
		default:
			close(h.release)
		}
		<-done
	})
	select {
	case <-h.died:
		return true
	case <-done:
		return false
	}
}

// TestCrashAnywhere lets an agent die before and after each of its calls to the
// runtime, the network and the image store, and expects of the next one that every
// container is either whole or wholly gone, and that nothing is left of others.
func TestCrashAnywhere(t *testing.T) {
	life := func(a *agent) {
		ctx := context.Background()
		r, err := a.CreateContainer(ctx, api.CreateOptions{Name: "cc", Config: &container.Config{Image: "busybox", Cmd: []string{"forever"}}})
		if err != nil {
			return
		}
		if a.StartContainer(ctx, r.ID, api.StartOptions{}) != nil {
			return
		}
		if a.StopContainer(ctx, r.ID, api.StopOptions{}) != nil {
			return
		}
		_ = a.RemoveContainer(ctx, r.ID, api.RemoveOptions{})
	}
	for n := 1; ; n++ {
		w := newWorld(t)
		if !w.die(t, n, life) {
			require.Greater(t, n, 20, "the test saw no calls")
			return
		}
		b := w.boot(t, w.handle(0))
		list, err := b.ListContainers(t.Context(), api.ListOptions{All: true})
		require.NoError(t, err)
		if len(list) == 0 {
			require.Empty(t, w.leftovers(), "step %d", n)
			continue
		}
		id := list[0].ID
		if list[0].State == container.StateRunning {
			require.Equal(t, []string{id}, w.busy(), "step %d", n)
			require.NoError(t, b.StopContainer(t.Context(), id, api.StopOptions{}), "step %d", n)
		} else {
			require.Empty(t, w.busy(), "step %d: %s", n, list[0].State)
		}
		b.start(t, id)
		b.state(t, id, container.StateRunning)
		require.NoError(t, b.RemoveContainer(t.Context(), id, api.RemoveOptions{Force: true}), "step %d", n)
		require.Empty(t, w.leftovers(), "step %d", n)
	}
}

func TestAdoption(t *testing.T) {
	w := newWorld(t)
	first := w.boot(t, w.handle(0))
	runs := first.create(t, "runs", nil, "forever")
	ends := first.create(t, "ends", nil, "forever")
	brief := first.create(t, "brief", &container.HostConfig{AutoRemove: true}, "forever")
	again := first.create(t, "again", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "unless-stopped"}}, "forever")
	stopped := first.create(t, "stopped", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "unless-stopped"}}, "forever")
	paused := first.create(t, "paused", nil, "forever")
	for _, id := range []string{runs, ends, brief, again, stopped, paused} {
		first.start(t, id)
	}
	require.NoError(t, first.StopContainer(t.Context(), stopped, api.StopOptions{}))
	require.NoError(t, first.PauseContainer(t.Context(), paused))
	before := first.state(t, runs, container.StateRunning)
	first.kill()
	_, err := first.ListContainers(context.Background(), api.ListOptions{})
	require.True(t, errdefs.IsUnavailable(err), "an agent that ended answers nothing: %v", err)

	for id, code := range map[string]int{ends: 7, brief: 8, again: 9} {
		w.tasks[id].end(code)
	}
	second := w.boot(t, w.handle(0))
	after := second.state(t, runs, container.StateRunning)
	require.Equal(t, before.State, after.State)
	require.Equal(t, 7, second.state(t, ends, container.StateExited).State.ExitCode)
	second.state(t, paused, container.StatePaused)
	i := second.state(t, again, container.StateRunning)
	require.Equal(t, 1, i.RestartCount)
	second.state(t, stopped, container.StateExited)
	_, err = second.InspectContainer(t.Context(), brief, api.InspectOptions{})
	require.True(t, errdefs.IsNotFound(err), "it removed itself: %v", err)

	// An adopted container is a container like any other.
	wait, err := second.WaitContainer(t.Context(), runs, container.WaitConditionNextExit)
	require.NoError(t, err)
	require.NoError(t, second.StopContainer(t.Context(), runs, api.StopOptions{}))
	require.EqualValues(t, 143, exitOf(t, wait))
}

func TestHostRestart(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	once := a.create(t, "once", nil, "forever")
	always := a.create(t, "always", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}, "forever")
	a.start(t, once)
	a.start(t, always)
	a.kill()
	clear(w.tasks) // no process survives that
	clear(w.mounted)
	clear(w.endpoints)
	b := w.boot(t, w.handle(0))
	require.Equal(t, exitLost, b.state(t, once, container.StateExited).State.ExitCode)
	b.state(t, always, container.StateRunning)
}

func TestCorruptRecord(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	bad, good := a.create(t, "bad", nil, "forever"), a.create(t, "good", nil, "forever")
	a.kill()
	path := filepath.Join(a.containerDir(bad), configFile)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b[:len(b)/2], 0o600))

	for range 2 { // it stays aside
		c := w.boot(t, w.handle(0))
		list, err := c.ListContainers(t.Context(), api.ListOptions{All: true})
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, good, list[0].ID)
		kept, err := os.ReadFile(path + ".corrupt")
		require.NoError(t, err)
		require.Equal(t, b[:len(b)/2], kept)
		c.kill()
	}
}

func TestShutdownEndsWaits(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "", nil, "forever")
	a.start(t, id)
	wait, err := a.WaitContainer(context.Background(), id, "")
	require.NoError(t, err)
	a.kill()
	_, err = wait.Recv()
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, []string{id}, w.busy(), "the container goes on")
	require.WithinDuration(t, time.Now(), w.tasks[id].status.StartedAt, time.Minute)
}

// A record of a later agent stops this one instead of being lost to both.
func TestNewerRecord(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "newer", nil, "forever")
	a.kill()
	path := filepath.Join(a.containerDir(id), configFile)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytes.Replace(b, []byte(`"version":1`), []byte(`"version":9`), 1), 0o600))
	_, err = New(a.cfg)
	require.ErrorIs(t, err, errVersion)
	require.ErrorContains(t, err, id)
	require.FileExists(t, path)
}
