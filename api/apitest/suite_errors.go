package apitest

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func errorTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"NoSuchContainer": testNoSuchContainer, "NotModified": testNotModified, "NotRunning": testNotRunning,
		"InvalidCreates": testInvalidCreates, "NameTaken": testNameTaken, "CancelledContext": testCancelled,
	}
}

// randomID is an ID with a prefix.
func randomID(prefix string) string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(rand.UintN(256))
	}
	return prefix + hex.EncodeToString(b)[len(prefix):]
}

func testNoSuchContainer(s *suite) {
	e, ctx, id := s.Engine, s.ctx, s.name("nosuch")
	for name, err := range map[string]error{
		"start":   e.StartContainer(ctx, id, api.StartOptions{}),
		"stop":    e.StopContainer(ctx, id, api.StopOptions{}),
		"restart": e.RestartContainer(ctx, id, api.StopOptions{}),
		"kill":    e.KillContainer(ctx, id, "KILL"),
		"pause":   e.PauseContainer(ctx, id),
		"unpause": e.UnpauseContainer(ctx, id),
		"rename":  e.RenameContainer(ctx, id, s.name("x")),
		"remove":  e.RemoveContainer(ctx, id, api.RemoveOptions{}),
		"resize":  e.ResizeContainer(ctx, id, api.TerminalSize{Height: 1, Width: 1}),
		"inspect": second(e.InspectContainer(ctx, id, api.InspectOptions{})),
		"top":     second(e.TopContainer(ctx, id, nil)),
		"logs":    second(e.ContainerLogs(ctx, id, everything())),
		"wait":    second(e.WaitContainer(ctx, id, container.WaitConditionNotRunning)),
		"attach":  second(e.AttachContainer(ctx, id, api.AttachOptions{Stdout: true, Stream: true})),
		"exec":    second(e.CreateExec(ctx, id, container.ExecCreateRequest{Cmd: []string{"true"}})),
	} {
		assert.True(s, errdefs.IsNotFound(err), "%s: %v", name, err)
		if err != nil {
			assert.Equal(s, "No such container: "+id, err.Error(), name)
		}
	}
	for name, err := range map[string]error{
		"start":   second(e.StartExec(ctx, id, api.ExecStartOptions{})),
		"inspect": second(e.InspectExec(ctx, id)),
		"resize":  e.ResizeExec(ctx, id, api.TerminalSize{Height: 1, Width: 1}),
	} {
		assert.True(s, errdefs.IsNotFound(err), "%s: %v", name, err)
		assert.ErrorContains(s, err, "No such exec instance: "+id, name)
	}
}

func second[T any](_ T, err error) error { return err }

func testNotModified(s *suite) {
	id := s.running()
	assert.True(s, errdefs.IsNotModified(s.Engine.StartContainer(s.ctx, id, api.StartOptions{})))
	now := 0
	require.NoError(s, s.Engine.StopContainer(s.ctx, id, api.StopOptions{Timeout: &now}))
	assert.True(s, errdefs.IsNotModified(s.Engine.StopContainer(s.ctx, id, api.StopOptions{Timeout: &now})))
}

func testNotRunning(s *suite) {
	e, ctx, id := s.Engine, s.ctx, s.create(s.options("true"))
	for name, err := range map[string]error{
		"kill":   e.KillContainer(ctx, id, "TERM"),
		"pause":  e.PauseContainer(ctx, id),
		"top":    second(e.TopContainer(ctx, id, nil)),
		"resize": e.ResizeContainer(ctx, id, api.TerminalSize{Height: 1, Width: 1}),
		"exec":   second(e.CreateExec(ctx, id, container.ExecCreateRequest{Cmd: []string{"true"}})),
	} {
		assert.True(s, errdefs.IsConflict(err), "%s: %v", name, err)
		assert.ErrorContains(s, err, "is not running", name)
	}
	running := s.running()
	assert.True(s, errdefs.IsInvalidArgument(e.KillContainer(ctx, running, "NOSUCHSIGNAL")))
	assert.True(s, s.inspect(running).State.Running)
}

func testInvalidCreates(s *suite) {
	_, err := s.Engine.CreateContainer(s.ctx, api.CreateOptions{})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)

	o := s.options("true")
	o.Name = "not/a name"
	_, err = s.Engine.CreateContainer(s.ctx, o)
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
	assert.ErrorContains(s, err, "Invalid container name (not/a name), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")

	o = s.options("true")
	o.Config.Image = "no-such-image-" + s.label
	_, err = s.Engine.CreateContainer(s.ctx, o)
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.ErrorContains(s, err, "No such image: "+o.Config.Image+":latest")
	assert.Empty(s, s.list(api.ListOptions{All: true}), "what wasn't made isn't there")
}

func testNameTaken(s *suite) {
	o := s.options("true")
	o.Name = s.name("taken")
	id := s.create(o)
	_, err := s.Engine.CreateContainer(s.ctx, o)
	require.Error(s, err)
	assert.True(s, errdefs.IsConflict(err), "%v", err)
	assert.Equal(s, `Conflict. The container name "/`+o.Name+`" is already in use by container "`+id+
		`". You have to remove (or rename) that container to be able to reuse that name.`, err.Error())
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{}))
	s.create(o) // the name is free again
}

// testCancelled checks that the end of a context ends what was made with it.
func testCancelled(s *suite) {
	id := s.running()
	ctx, cancel := context.WithCancel(s.ctx)
	wait, err := s.Engine.WaitContainer(ctx, id, container.WaitConditionNotRunning)
	require.NoError(s, err)
	defer wait.Close()
	o := everything()
	o.Follow = true
	logs, err := s.Engine.ContainerLogs(ctx, id, o)
	require.NoError(s, err)
	defer logs.Close()
	session, err := s.Engine.AttachContainer(ctx, id, api.AttachOptions{Stdout: true, Stream: true})
	require.NoError(s, err)
	defer session.Close()
	events, err := s.Engine.Events(ctx, api.EventsOptions{Since: time.Now().Add(limit), Filters: api.Filters{"label": {s.label}}})
	require.NoError(s, err)
	defer events.Close()

	ended := make(chan string, 4)
	go func() { _, _ = wait.Recv(); ended <- "wait" }()
	go func() { _, _ = logs.Read(make([]byte, 1)); ended <- "logs" }()
	go func() { _, _ = session.Read(make([]byte, 1)); ended <- "attach" }()
	go func() { _, _ = events.Recv(); ended <- "events" }()
	select {
	case what := <-ended:
		s.Fatalf("%s ended before its context", what)
	default:
	}
	cancel()
	for range cap(ended) {
		select {
		case <-ended:
		case <-s.ctx.Done():
			s.Fatal("the end of a context left something running")
		}
	}
	assert.Error(s, second(s.Engine.InspectContainer(ctx, id, api.InspectOptions{})))
	assert.True(s, s.inspect(id).State.Running, "clients come and go, containers stay")
}
