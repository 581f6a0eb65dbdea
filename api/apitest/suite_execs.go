package apitest

import (
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func execTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"OutputAndExitCode": testExec, "Stdin": testExecStdin, "CannotRun": testExecCannotRun,
		"Detached": testExecDetached, "OnlyOnce": testExecOnce, "Terminal": testExecTerminal,
		"EndsWithContainer": testExecEnds, "Paused": testExecPaused,
	}
}

// exec makes an exec of all three streams.
func (s *suite) exec(id string, change func(*container.ExecCreateRequest), cmd ...string) string {
	s.Helper()
	o := container.ExecCreateRequest{AttachStdout: true, AttachStderr: true, Cmd: cmd}
	if change != nil {
		change(&o)
	}
	made, err := s.Engine.CreateExec(s.ctx, id, o)
	require.NoError(s, err)
	require.Equal(s, id[:24], made.ID[:24], "an exec's ID says where its container is")
	return made.ID
}

func (s *suite) startExec(id string, o api.ExecStartOptions) api.Session {
	s.Helper()
	session, err := s.Engine.StartExec(s.ctx, id, o)
	require.NoError(s, err)
	s.Cleanup(func() {
		if session.Duplex != nil {
			_ = session.Close()
		}
	})
	return session
}

// execCode is the exit code of an exec whose output has ended.
func (s *suite) execCode(id string) int {
	s.Helper()
	i, err := s.Engine.InspectExec(s.ctx, id)
	require.NoError(s, err)
	require.False(s, i.Running)
	require.NotNil(s, i.ExitCode)
	return *i.ExitCode
}

func testExec(s *suite) {
	id := s.running()
	x := s.exec(id, func(o *container.ExecCreateRequest) { o.Env = []string{"WHO=me"} },
		"sh", "-c", "echo out $WHO; echo err >&2; exit 3")
	i, err := s.Engine.InspectExec(s.ctx, x)
	require.NoError(s, err)
	assert.Equal(s, id, i.ContainerID)
	assert.False(s, i.Running)
	assert.Nil(s, i.ExitCode, "what hasn't run has no exit code")

	session := s.startExec(x, api.ExecStartOptions{})
	assert.True(s, session.Multiplexed)
	stdout, stderr := s.split(session, session.Multiplexed)
	assert.Equal(s, "out me\n", stdout)
	assert.Equal(s, "err\n", stderr)
	assert.Equal(s, 3, s.execCode(x))
}

func testExecStdin(s *suite) {
	x := s.exec(s.running(), func(o *container.ExecCreateRequest) { o.AttachStdin = true }, "cat")
	session := s.startExec(x, api.ExecStartOptions{})
	_, err := io.WriteString(session, "in\n")
	require.NoError(s, err)
	i, err := s.Engine.InspectExec(s.ctx, x)
	require.NoError(s, err)
	assert.True(s, i.Running)
	assert.Positive(s, i.Pid)
	require.NoError(s, session.CloseWrite())
	stdout, _ := s.split(session, session.Multiplexed)
	assert.Equal(s, "in\n", stdout)
	assert.Equal(s, 0, s.execCode(x))
}

func testExecCannotRun(s *suite) {
	id := s.running()
	for _, c := range []struct {
		cmd, text string
		want      int
	}{{"no-such-command", "executable file not found", 127}, {"/etc/passwd", "permission denied", 126}} {
		x := s.exec(id, nil, c.cmd)
		session := s.startExec(x, api.ExecStartOptions{})
		stdout, stderr := s.split(session, session.Multiplexed)
		assert.Contains(s, stdout+stderr, c.text)
		assert.Equal(s, c.want, s.execCode(x), c.cmd)
	}
	assert.True(s, s.inspect(id).State.Running)
}

func testExecDetached(s *suite) {
	id := s.running()
	watch := s.events(api.Filters{"container": {id}, "event": {"exec_die"}})
	x := s.exec(id, nil, "sh", "-c", "exit 4")
	session := s.startExec(x, api.ExecStartOptions{Detach: true})
	assert.Nil(s, session.Duplex)
	m, err := watch.Recv()
	require.NoError(s, err)
	assert.Equal(s, x, m.Actor.Attributes["execID"])
	assert.Equal(s, 4, s.execCode(x))
}

func testExecOnce(s *suite) {
	x := s.exec(s.running(), nil, "true")
	session := s.startExec(x, api.ExecStartOptions{})
	s.split(session, session.Multiplexed)
	_, err := s.Engine.StartExec(s.ctx, x, api.ExecStartOptions{})
	assert.True(s, errdefs.IsConflict(err), "%v", err)
	_, err = s.Engine.CreateExec(s.ctx, s.running(), container.ExecCreateRequest{})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
}

func testExecTerminal(s *suite) {
	x := s.exec(s.running(), func(o *container.ExecCreateRequest) { o.Tty = true }, "sh", "-c", "echo tty")
	session := s.startExec(x, api.ExecStartOptions{Tty: true, Size: api.TerminalSize{Height: 10, Width: 20}})
	assert.False(s, session.Multiplexed)
	out, _ := s.split(session, session.Multiplexed)
	assert.Equal(s, "tty\r\n", out)
}

func testExecEnds(s *suite) {
	id := s.running()
	session := s.startExec(s.exec(id, nil, "sleep", "1000"), api.ExecStartOptions{})
	require.NoError(s, s.Engine.KillContainer(s.ctx, id, "KILL"))
	s.split(session, session.Multiplexed) // ends
}

func testExecPaused(s *suite) {
	id := s.running()
	require.NoError(s, s.Engine.PauseContainer(s.ctx, id))
	_, err := s.Engine.CreateExec(s.ctx, id, container.ExecCreateRequest{Cmd: []string{"true"}})
	assert.True(s, errdefs.IsConflict(err), "%v", err)
	require.NoError(s, s.Engine.UnpauseContainer(s.ctx, id))
}
