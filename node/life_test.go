package node

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func exitOf(t testing.TB, s api.Stream[container.WaitResponse]) int64 {
	t.Helper()
	r, err := s.Recv()
	require.NoError(t, err)
	_, err = s.Recv()
	require.ErrorIs(t, err, io.EOF)
	return r.StatusCode
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "one", nil, "exit", "3")
	wait, err := a.WaitContainer(t.Context(), "one", container.WaitConditionNextExit)
	require.NoError(t, err)
	removed, err := a.WaitContainer(t.Context(), id[:10], container.WaitConditionRemoved)
	require.NoError(t, err)

	a.start(t, "/one")
	require.EqualValues(t, 3, exitOf(t, wait))
	i := a.state(t, id, container.StateExited)
	require.Equal(t, 3, i.State.ExitCode)
	require.Equal(t, []string{"3"}, i.Args)
	require.Contains(t, i.Config.Env, "FROM=image")
	require.Eventually(t, func() bool { return len(w.busy()) == 0 }, time.Minute, time.Millisecond)

	require.NoError(t, a.RemoveContainer(t.Context(), id, api.RemoveOptions{}))
	require.EqualValues(t, 3, exitOf(t, removed))
	require.Empty(t, w.leftovers())
	_, err = a.InspectContainer(t.Context(), "one", api.InspectOptions{})
	require.EqualError(t, err, "No such container: one")
}

// TestForcedRemovalWins: however often others start a container meanwhile, a forced
// removal ends and removes it.
func TestForcedRemovalWins(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	for range 20 {
		id := a.create(t, "one", nil, "forever")
		a.start(t, id)
		gone := make(chan struct{})
		var starters sync.WaitGroup
		for range 3 {
			starters.Go(func() {
				for {
					select {
					case <-gone:
						return
					default:
						_ = a.StartContainer(t.Context(), id, api.StartOptions{}) // runs, or is gone
					}
				}
			})
		}
		err := a.RemoveContainer(t.Context(), id, api.RemoveOptions{Force: true})
		close(gone)
		starters.Wait()
		require.NoError(t, err)
		_, err = a.InspectContainer(t.Context(), id, api.InspectOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "xx", nil, "forever")
	create := func(o api.CreateOptions) error {
		if o.Config == nil {
			o.Config = &container.Config{Image: "busybox", Cmd: []string{"forever"}}
		}
		_, err := a.CreateContainer(t.Context(), o)
		return err
	}
	bind := func(spec string) error {
		return create(api.CreateOptions{HostConfig: &container.HostConfig{Binds: []string{spec}}})
	}
	for name, test := range map[string]struct {
		err   error
		class func(error) bool
		text  string
	}{
		"taken name": {create(api.CreateOptions{Name: "xx"}), errdefs.IsConflict,
			`Conflict. The container name "/xx" is already in use by container "` + id + `". You have to remove (or rename) that container to be able to reuse that name.`},
		"bad name": {create(api.CreateOptions{Name: "a b"}), errdefs.IsInvalidArgument,
			"Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		"taken ID": {create(api.CreateOptions{ID: id, Name: "other"}), errdefs.IsConflict,
			`Conflict. The container ID "` + id + `" is already in use`},
		"image": {create(api.CreateOptions{Config: &container.Config{Image: "nope"}}), errdefs.IsNotFound, "No such image: nope:latest"},
		"missing source": {create(api.CreateOptions{HostConfig: &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: "/not/there", Target: "/x"}}}}),
			errdefs.IsInvalidArgument, `invalid mount config for type "bind": bind source path does not exist: /not/there`},
		"relative target": {bind("/a:b"), errdefs.IsInvalidArgument,
			`invalid volume specification: '/a:b': invalid mount config for type "bind": invalid mount path: 'b' mount path must be absolute`},
		"mode":     {bind("/a:/b:rx"), errdefs.IsInvalidArgument, "invalid mode: rx"},
		"too many": {bind("/a:/b:ro:x"), errdefs.IsInvalidArgument, "invalid volume specification: '/a:/b:ro:x'"},
		"memory": {create(api.CreateOptions{HostConfig: &container.HostConfig{Resources: container.Resources{Memory: 1}}}),
			errdefs.IsInvalidArgument, "Minimum memory limit allowed is 6MB"},
		"network": {create(api.CreateOptions{HostConfig: &container.HostConfig{NetworkMode: "n"}}), errdefs.IsNotFound, "network n not found"},
		"rm and restart": {create(api.CreateOptions{HostConfig: &container.HostConfig{AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}}}),
			errdefs.IsInvalidArgument, "can't create 'AutoRemove' container with restart policy"},
		"kill":    {a.KillContainer(t.Context(), "xx", ""), errdefs.IsConflict, "cannot kill container: xx: container " + id + " is not running"},
		"signal":  {a.KillContainer(t.Context(), "xx", "NOPE"), errdefs.IsInvalidArgument, "invalid signal: NOPE"},
		"pause":   {a.PauseContainer(t.Context(), "xx"), errdefs.IsConflict, "container " + id + " is not running"},
		"stop":    {a.StopContainer(t.Context(), "xx", api.StopOptions{}), errdefs.IsNotModified, "container " + id + " is already stopped"},
		"exec":    {second(a.CreateExec(t.Context(), "xx", container.ExecCreateRequest{Cmd: []string{"a"}})), errdefs.IsConflict, "container " + id + " is not running"},
		"streams": {second(a.ContainerLogs(t.Context(), "xx", api.LogsOptions{})), errdefs.IsInvalidArgument, "Bad parameters: you must choose at least one stream"},
		"wait":    {second(a.WaitContainer(t.Context(), "xx", "nice")), errdefs.IsInvalidArgument, `invalid condition: "nice"`},
	} {
		t.Run(name, func(t *testing.T) {
			require.EqualError(t, test.err, test.text)
			require.True(t, test.class(test.err), "%T", test.err)
		})
	}
	require.Equal(t, []string{id}, w.leftovers(), "a refusal leaves nothing behind")
}

func second[T any](_ T, err error) error { return err }

func TestStartTwiceAndRemoveRunning(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "rr", nil, "forever")
	a.start(t, id)
	require.True(t, errdefs.IsNotModified(a.StartContainer(t.Context(), id, api.StartOptions{})))
	err := a.RemoveContainer(t.Context(), id, api.RemoveOptions{})
	require.EqualError(t, err, `cannot remove container "/rr": container is running: stop the container before removing or force remove`)
	require.True(t, errdefs.IsConflict(err))
	_, err = a.RemoveImage(t.Context(), "busybox", api.ImageRemoveOptions{})
	require.ErrorContains(t, err, id[:12])
	require.NoError(t, a.RemoveContainer(t.Context(), id, api.RemoveOptions{Force: true}))
	require.Empty(t, w.leftovers())
}

func TestFailedStartLeavesNothing(t *testing.T) {
	for _, call := range []string{"Mount", "Connect", "Create", "Start"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			a := w.boot(t, w.handle(0))
			id := a.create(t, "ff", nil, "forever")
			w.fail[call] = errors.New("no luck")
			require.ErrorContains(t, a.StartContainer(t.Context(), id, api.StartOptions{}), "no luck")
			require.Empty(t, w.busy())
			i := a.state(t, id, container.StateCreated)
			require.Equal(t, exitUnknown, i.State.ExitCode)
			require.Contains(t, i.State.Error, "no luck")

			delete(w.fail, call)
			a.start(t, id)
			i = a.state(t, id, container.StateRunning)
			require.Empty(t, i.State.Error)
		})
	}
}

func TestMissingCommand(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "mm", &container.HostConfig{AutoRemove: false}, "missing")
	session, err := a.AttachContainer(t.Context(), id, api.AttachOptions{Stream: true, Stdout: true})
	require.NoError(t, err)
	err = a.StartContainer(t.Context(), id, api.StartOptions{})
	require.True(t, errdefs.IsInvalidArgument(err))
	require.ErrorContains(t, err, "executable file not found")
	require.Equal(t, 127, a.state(t, id, container.StateCreated).State.ExitCode)
	_, err = io.ReadAll(session) // it ends
	require.NoError(t, err)

	id = a.create(t, "m2", &container.HostConfig{AutoRemove: true}, "missing")
	require.Error(t, a.StartContainer(t.Context(), id, api.StartOptions{}))
	_, err = a.InspectContainer(t.Context(), id, api.InspectOptions{})
	require.True(t, errdefs.IsNotFound(err), "one that removes itself is gone: %v", err)
}

func TestAttachBeforeStart(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "", nil, "say", "hello")
	session, err := a.AttachContainer(t.Context(), id, api.AttachOptions{Stream: true, Stdout: true})
	require.NoError(t, err)
	a.start(t, id)
	b, err := io.ReadAll(session)
	require.NoError(t, err)
	require.Equal(t, "attached in state created", string(b))
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "", nil, "say", "hello")
	a.start(t, id)
	a.state(t, id, container.StateExited)
	out, err := a.ContainerLogs(t.Context(), id, api.LogsOptions{Stdout: true, Follow: true, Tail: -1})
	require.NoError(t, err)
	b, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Equal(t, "\x01\x00\x00\x00\x00\x00\x00\x06hello\n", string(b))
}

func TestStop(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "polite", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}, "forever")
	a.start(t, id)
	require.NoError(t, a.StopContainer(t.Context(), id, api.StopOptions{}))
	require.Equal(t, 143, a.state(t, id, container.StateExited).State.ExitCode)

	stubborn := a.create(t, "stubborn", nil, "stubborn")
	a.start(t, stubborn)
	zero := 0
	require.NoError(t, a.StopContainer(t.Context(), stubborn, api.StopOptions{Timeout: &zero}))
	require.Equal(t, 137, a.state(t, stubborn, container.StateExited).State.ExitCode)

	a.start(t, id)
	require.NoError(t, a.PauseContainer(t.Context(), id))
	a.state(t, id, container.StatePaused)
	require.True(t, errdefs.IsConflict(a.PauseContainer(t.Context(), id)))
	require.NoError(t, a.UnpauseContainer(t.Context(), id))
	a.state(t, id, container.StateRunning)
	require.NoError(t, a.RestartContainer(t.Context(), id, api.StopOptions{}))
	a.state(t, id, container.StateRunning)
	require.NoError(t, a.KillContainer(t.Context(), id, "KILL"))
	a.state(t, id, container.StateExited)
}

func TestAutoRemove(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "brief", &container.HostConfig{AutoRemove: true, Binds: []string{"named:/n"}, Tmpfs: map[string]string{"/t": ""}}, "exit", "4")
	wait, err := a.WaitContainer(t.Context(), id, container.WaitConditionRemoved)
	require.NoError(t, err)
	a.start(t, id)
	require.EqualValues(t, 4, exitOf(t, wait))
	a.create(t, "brief", nil, "exit", "0") // its name is free
	require.Eventually(t, func() bool { return len(w.leftovers()) == 1 }, time.Minute, time.Millisecond)
}

func TestPorts(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	publish := func(hostPort string) *container.HostConfig {
		return &container.HostConfig{PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: hostPort}}}}
	}
	one := a.create(t, "one", publish("8080"), "forever")
	a.start(t, one)
	i := a.state(t, one, container.StateRunning)
	require.Equal(t, "8080", i.NetworkSettings.Ports[network.MustParsePort("80/tcp")][0].HostPort)
	require.Equal(t, "10.1.0.2", i.NetworkSettings.Networks["bridge"].IPAddress.String())

	two := a.create(t, "two", publish("8080"), "forever")
	require.ErrorContains(t, a.StartContainer(t.Context(), two, api.StartOptions{}), "port is already allocated")
	three := a.create(t, "three", publish("8080-8082"), "forever")
	a.start(t, three)
	list, err := a.ListContainers(t.Context(), api.ListOptions{})
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.EqualValues(t, 8081, list[0].Ports[0].PublicPort)

	require.NoError(t, a.StopContainer(t.Context(), one, api.StopOptions{}))
	a.start(t, two)
	i = a.state(t, one, container.StateExited)
	require.Empty(t, i.NetworkSettings.Ports, "a stopped container has no ports")
	n, err := a.InspectNetwork(t.Context(), "bridge", api.NetworkInspectOptions{})
	require.NoError(t, err)
	require.Len(t, n.Containers, 2)
}

func TestRename(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	id := a.create(t, "old", nil, "forever")
	a.create(t, "other", nil, "forever")
	require.True(t, errdefs.IsConflict(a.RenameContainer(t.Context(), "old", "other")))
	require.True(t, errdefs.IsInvalidArgument(a.RenameContainer(t.Context(), "old", "old")))
	require.NoError(t, a.RenameContainer(t.Context(), "old", "new"))
	i, err := a.InspectContainer(t.Context(), "new", api.InspectOptions{})
	require.NoError(t, err)
	require.Equal(t, id, i.ID)
	a.create(t, "old", nil, "forever")
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	began := time.Now()
	id := a.create(t, "ee", &container.HostConfig{AutoRemove: true}, "exit", "5")
	wait, err := a.WaitContainer(t.Context(), id, container.WaitConditionRemoved)
	require.NoError(t, err)
	a.start(t, id)
	exitOf(t, wait)
	s, err := a.Events(t.Context(), api.EventsOptions{Since: began, Until: time.Now(), Filters: api.Filters{"type": {"container"}}})
	require.NoError(t, err)
	var got []events.Action
	for m, err := range api.All(s) {
		require.NoError(t, err)
		require.Equal(t, id, m.Actor.ID)
		require.Equal(t, "ee", m.Actor.Attributes["name"])
		if m.Action == events.ActionDie {
			require.Equal(t, "5", m.Actor.Attributes["exitCode"])
		}
		got = append(got, m.Action)
	}
	require.Equal(t, []events.Action{"create", "start", "die", "destroy"}, got)
}

func TestRestartPolicies(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	policy := func(name container.RestartPolicyMode, most int) *container.HostConfig {
		return &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: name, MaximumRetryCount: most}}
	}
	id := a.create(t, "thrice", policy("on-failure", 2), "exit", "1")
	a.start(t, id)
	i := a.state(t, id, container.StateExited)
	require.Equal(t, 2, i.RestartCount)
	require.Equal(t, 1, i.State.ExitCode)

	fine := a.create(t, "fine", policy("on-failure", 2), "exit", "0")
	a.start(t, fine)
	require.Zero(t, a.state(t, fine, container.StateExited).RestartCount)

	always := a.create(t, "always", policy("always", 0), "exit", "0")
	a.start(t, always)
	require.Eventually(t, func() bool {
		i, err := a.InspectContainer(context.Background(), always, api.InspectOptions{})
		return err == nil && i.RestartCount >= 2
	}, time.Minute, time.Millisecond)
	require.NoError(t, a.StopContainer(t.Context(), always, api.StopOptions{}))
	a.state(t, always, container.StateExited)
	require.NoError(t, a.RemoveContainer(t.Context(), always, api.RemoveOptions{}))
}
