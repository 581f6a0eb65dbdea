package apitest

import (
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func lifecycleTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"CreateStartWaitRemove": testLife, "ExitCodes": testExitCodes, "WaitConditions": testWaits,
		"KillIs137": testKill, "StopKillsWhatStays": testStop, "Restart": testRestart, "StartAgain": testStartAgain,
		"Pause": testPause, "Rename": testRename, "ForceRemove": testForce, "AutoRemove": testAutoRemove,
		"Prune": testPrune, "ChosenID": testChosenID, "References": testReferences, "OneWinner": testOneWinner,
		"InventedNames": testInventedNames, "Environment": testEnvironment,
	}
}

func testLife(s *suite) {
	o := s.options("sh", "-c", "echo hello")
	o.Name = s.name("life")
	id := s.create(o)

	i := s.inspect(id)
	assert.Equal(s, id, i.ID)
	assert.Equal(s, "/"+o.Name, i.Name)
	assert.Equal(s, container.StateCreated, i.State.Status)
	assert.False(s, i.State.Running)
	assert.Equal(s, s.Image, i.Config.Image)
	assert.Equal(s, []string{"sh", "-c", "echo hello"}, i.Config.Cmd)
	assert.Equal(s, "sh", i.Path)
	assert.Equal(s, []string{"-c", "echo hello"}, i.Args)
	assert.Equal(s, "yes", i.Config.Labels[s.label])
	assert.Contains(s, i.Image, "sha256:")
	assert.Equal(s, "json-file", i.HostConfig.LogConfig.Type, "docker-py reads logs only if it says so")
	created, err := time.Parse(time.RFC3339Nano, i.Created)
	require.NoError(s, err)
	assert.WithinDuration(s, time.Now(), created, limit)

	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	assert.Equal(s, 0, s.recv(wait))

	i = s.inspect(id)
	assert.Equal(s, container.StateExited, i.State.Status)
	assert.Zero(s, i.State.ExitCode)
	assert.Zero(s, i.State.Pid)
	started, err := time.Parse(time.RFC3339Nano, i.State.StartedAt)
	require.NoError(s, err)
	finished, err := time.Parse(time.RFC3339Nano, i.State.FinishedAt)
	require.NoError(s, err)
	assert.False(s, finished.Before(started))

	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{}))
	_, err = s.Engine.InspectContainer(s.ctx, id, api.InspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
}

func testExitCodes(s *suite) {
	for _, c := range []struct {
		cmd  string
		want int
	}{{"true", 0}, {"false", 1}, {"exit 3", 3}, {"exit 255", 255}} {
		id := s.finished("sh", "-c", c.cmd)
		assert.Equal(s, c.want, s.inspect(id).State.ExitCode, c.cmd)
	}
	for _, c := range []struct {
		cmd, text string
		want      int
	}{
		{"no-such-command", "executable file not found", 127},
		{"/no/such/path", "no such file or directory", 127},
		{"/etc/passwd", "permission denied", 126},
	} {
		id := s.create(s.options(c.cmd))
		err := s.Engine.StartContainer(s.ctx, id, api.StartOptions{})
		assert.True(s, errdefs.IsInvalidArgument(err), "%s: %v", c.cmd, err)
		assert.ErrorContains(s, err, c.text, c.cmd)
		i := s.inspect(id)
		assert.Equal(s, c.want, i.State.ExitCode, c.cmd)
		assert.False(s, i.State.Running, c.cmd)
	}
}

func testWaits(s *suite) {
	id := s.create(s.options("sh", "-c", "exit 3"))
	assert.Equal(s, 0, s.recv(s.wait(id, container.WaitConditionNotRunning)), "not running before it ever did")
	next := s.wait(id, container.WaitConditionNextExit)
	removed := s.wait(id, container.WaitConditionRemoved)
	s.start(id)
	assert.Equal(s, 3, s.recv(next))
	assert.Equal(s, 3, s.recv(s.wait(id, container.WaitConditionNotRunning)), "not running any more")
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{}))
	assert.Equal(s, 3, s.recv(removed))
}

func testKill(s *suite) {
	id := s.running()
	i := s.inspect(id)
	assert.True(s, i.State.Running)
	assert.Equal(s, container.StateRunning, i.State.Status)
	assert.Positive(s, i.State.Pid)
	wait := s.wait(id, container.WaitConditionNotRunning)
	require.NoError(s, s.Engine.KillContainer(s.ctx, id, "SIGKILL"))
	assert.Equal(s, 137, s.recv(wait))
	assert.Equal(s, 137, s.inspect(id).State.ExitCode)
}

func testStop(s *suite) {
	id := s.running() // the first process of a container ignores SIGTERM unless it handles it
	now := 0
	require.NoError(s, s.Engine.StopContainer(s.ctx, id, api.StopOptions{Timeout: &now}))
	i := s.inspect(id)
	assert.False(s, i.State.Running)
	assert.Equal(s, 137, i.State.ExitCode)
}

func testRestart(s *suite) {
	id := s.running()
	before := s.inspect(id).State
	now := 0
	require.NoError(s, s.Engine.RestartContainer(s.ctx, id, api.StopOptions{Timeout: &now}))
	after := s.inspect(id).State
	assert.True(s, after.Running)
	assert.NotEqual(s, before.StartedAt, after.StartedAt)

	stopped := s.create(s.options("sleep", "1000"))
	require.NoError(s, s.Engine.RestartContainer(s.ctx, stopped, api.StopOptions{Timeout: &now}))
	assert.True(s, s.inspect(stopped).State.Running, "what didn't run runs after a restart")
}

func testStartAgain(s *suite) {
	id := s.finished("sh", "-c", "echo again")
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	s.recv(wait)
	out, _ := s.logs(id, everything())
	assert.Equal(s, "again\nagain\n", out, "the log goes on")
}

func testPause(s *suite) {
	id := s.running()
	require.NoError(s, s.Engine.PauseContainer(s.ctx, id))
	i := s.inspect(id)
	assert.Equal(s, container.StatePaused, i.State.Status)
	assert.True(s, i.State.Paused)
	assert.True(s, i.State.Running, "Docker calls paused containers running")
	list := s.list(api.ListOptions{})
	require.Len(s, list, 1)
	assert.Contains(s, list[0].Status, "(Paused)")
	assert.True(s, errdefs.IsConflict(s.Engine.PauseContainer(s.ctx, id)))
	require.NoError(s, s.Engine.UnpauseContainer(s.ctx, id))
	assert.Equal(s, container.StateRunning, s.inspect(id).State.Status)
	assert.True(s, errdefs.IsConflict(s.Engine.UnpauseContainer(s.ctx, id)))
}

func testRename(s *suite) {
	o := s.options("true")
	o.Name = s.name("old")
	id := s.create(o)
	other := s.options("true")
	other.Name = s.name("other")
	s.create(other)

	require.NoError(s, s.Engine.RenameContainer(s.ctx, o.Name, s.name("new")))
	assert.Equal(s, "/"+s.name("new"), s.inspect(id).Name)
	assert.Equal(s, id, s.inspect(s.name("new")).ID)
	_, err := s.Engine.InspectContainer(s.ctx, o.Name, api.InspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.True(s, errdefs.IsConflict(s.Engine.RenameContainer(s.ctx, id, other.Name)))
	assert.True(s, errdefs.IsInvalidArgument(s.Engine.RenameContainer(s.ctx, id, "!")))

	again := s.options("true")
	again.Name = o.Name
	s.create(again) // the old name is free
}

func testForce(s *suite) {
	id := s.running()
	err := s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{})
	assert.True(s, errdefs.IsConflict(err), "%v", err)
	removed := s.wait(id, container.WaitConditionRemoved)
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{Force: true}))
	assert.Equal(s, 137, s.recv(removed))
	_, err = s.Engine.InspectContainer(s.ctx, id, api.InspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
}

func testAutoRemove(s *suite) {
	o := s.options("sh", "-c", "exit 5")
	o.HostConfig.AutoRemove = true
	id := s.create(o)
	removed := s.wait(id, container.WaitConditionRemoved)
	s.start(id)
	assert.Equal(s, 5, s.recv(removed))
	_, err := s.Engine.InspectContainer(s.ctx, id, api.InspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)

	o = s.options("no-such-command")
	o.HostConfig.AutoRemove = true
	id = s.create(o)
	assert.Error(s, s.Engine.StartContainer(s.ctx, id, api.StartOptions{}))
	_, err = s.Engine.InspectContainer(s.ctx, id, api.InspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "what couldn't start goes too: %v", err)
}

func testPrune(s *suite) {
	stopped, running := s.finished("true"), s.running()
	report, err := s.Engine.PruneContainers(s.ctx, api.Filters{"label": {s.label}})
	require.NoError(s, err)
	assert.Equal(s, []string{stopped}, report.ContainersDeleted)
	assert.True(s, s.inspect(running).State.Running)
	_, err = s.Engine.PruneContainers(s.ctx, api.Filters{"bogus": {"x"}})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
}

func testChosenID(s *suite) {
	o := s.options("true")
	o.ID = randomID("")
	assert.Equal(s, o.ID, s.create(o))
	assert.Equal(s, o.ID, s.inspect(o.ID).ID)
}

func testReferences(s *suite) {
	o := s.options("true")
	o.Name = s.name("ref")
	shared := randomID("")[:20]
	o.ID = randomID(shared + "a")
	s.create(o)
	o.Name, o.ID = "", randomID(shared+"b")
	s.create(o)
	for _, ref := range []string{s.name("ref"), "/" + s.name("ref"), shared + "a"} {
		assert.True(s, strings.HasPrefix(s.inspect(ref).ID, shared+"a"), ref)
	}
	_, err := s.Engine.InspectContainer(s.ctx, shared, api.InspectOptions{})
	assert.ErrorContains(s, err, "multiple IDs found with provided prefix: "+shared)
}

func testOneWinner(s *suite) {
	const racers = 8
	o := s.options("true")
	o.Name = s.name("race")
	var wg sync.WaitGroup
	ids, errs := make([]string, racers), make([]error, racers)
	for i := range racers {
		wg.Go(func() {
			made, err := s.Engine.CreateContainer(s.ctx, o)
			ids[i], errs[i] = made.ID, err
		})
	}
	wg.Wait()
	winners := 0
	for i, err := range errs {
		if err == nil {
			winners++
			s.remove(ids[i])
			continue
		}
		assert.True(s, errdefs.IsConflict(err), "%v", err)
		assert.ErrorContains(s, err, `Conflict. The container name "/`+o.Name+`" is already in use by container "`)
	}
	assert.Equal(s, 1, winners)
}

func testInventedNames(s *suite) {
	a, b := s.inspect(s.create(s.options("true"))), s.inspect(s.create(s.options("true")))
	assert.Regexp(s, `^/[a-z]+_[a-z]+[0-9]*$`, a.Name)
	assert.NotEqual(s, a.Name, b.Name)
}

func testEnvironment(s *suite) {
	o := s.options("sh", "-c", `echo "$GREETING" $HOSTNAME`)
	o.Config.Env, o.Config.Hostname = []string{"GREETING=hello  you"}, "here"
	id := s.create(o)
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	s.recv(wait)
	out, _ := s.logs(id, everything())
	assert.Equal(s, "hello  you here\n", out)
	env := s.inspect(id).Config.Env
	assert.Contains(s, env, "GREETING=hello  you")
	assert.Contains(s, strings.Join(env, "\n"), "PATH=", "the image's own environment is part of it")
}
