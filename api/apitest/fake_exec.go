package apitest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
)

// fakeExec is guarded by the engine's lock.
type fakeExec struct {
	id       string
	c        *fakeContainer
	config   container.ExecCreateRequest
	started  bool
	running  bool
	exitCode *int
	pid      int
	console  *console
	kill     context.CancelCauseFunc
}

// CreateExec implements api.Execs.
func (f *Fake) CreateExec(
	ctx context.Context, containerID string, o container.ExecCreateRequest,
) (made container.ExecCreateResponse, err error) {
	err = f.with(ctx, containerID, func(c *fakeContainer) error {
		switch {
		case len(o.Cmd) == 0:
			return api.InvalidArgument("No exec command specified")
		case c.state == container.StatePaused:
			return api.Conflict("container %s is paused, unpause the container before exec", containerID)
		case !c.running():
			return c.notRunning()
		}
		e := &fakeExec{
			id: c.id[:24] + f.newID()[24:], c: c, config: o, kill: func(error) {},
			console: newConsole(o.Tty, o.AttachStdin, true),
		}
		f.execs[e.id] = e
		c.execs = append(c.execs, e.id)
		c.emit(events.Action("exec_create: "+strings.Join(o.Cmd, " ")), "execID", e.id)
		made.ID = e.id
		return nil
	})
	return made, err
}

// findExec looks an exec up. The lock is held.
func (f *Fake) findExec(id string) (*fakeExec, error) {
	if e := f.execs[id]; e != nil {
		return e, nil
	}
	return nil, api.NotFound("No such exec instance: %s", id)
}

// StartExec implements api.Execs.
func (f *Fake) StartExec(ctx context.Context, execID string, o api.ExecStartOptions) (api.Session, error) {
	if err := ctx.Err(); err != nil {
		return api.Session{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.findExec(execID)
	switch {
	case err != nil:
		return api.Session{}, err
	case e.started:
		return api.Session{}, api.Conflict("Error: Exec command %s has already run", execID)
	case !e.c.running():
		return api.Session{}, e.c.notRunning()
	}
	var s api.Session
	if !o.Detach {
		s = e.console.attach(ctx, api.AttachOptions{
			Stdin: e.config.AttachStdin, Stdout: e.config.AttachStdout, Stderr: e.config.AttachStderr, Stream: true,
		})
	}
	return s, e.run(o.Detach)
}

// run starts the process. The lock is held.
func (e *fakeExec) run(detached bool) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := e.c.process(ctx, append(e.c.config.Env, e.config.Env...))
	p.stdin, p.stdout, p.stderr = contextReader{ctx, e.console.stdin}, consoleWriter{e.console, 1}, consoleWriter{e.console, 2}
	e.started = true
	if err := p.find(e.config.Cmd[0]); err != nil {
		cancel(nil)
		var s *startError
		if errors.As(err, &s) {
			e.exitCode = &s.code
		}
		if detached {
			return err
		}
		_, _ = fmt.Fprintf(p.stdout, "%v\r\n", err) // a console takes all
		e.console.finish()
		return nil
	}
	e.c.f.pids++
	e.running, e.pid, e.kill = true, e.c.f.pids, cancel
	e.c.emit(events.Action("exec_start: "+strings.Join(e.config.Cmd, " ")), "execID", e.id)
	go func() {
		code, err := p.run(ctx, e.config.Cmd)
		e.end(exitCode(code, err))
		cancel(nil)
	}()
	return nil
}

func (e *fakeExec) end(code int) {
	f := e.c.f
	f.mu.Lock()
	e.running, e.exitCode = false, &code
	e.c.emit(events.ActionExecDie, "execID", e.id, "exitCode", fmt.Sprint(code))
	f.mu.Unlock()
	e.console.finish() // last, so that who saw the end of output sees the exit code
}

// ResizeExec implements api.Execs.
func (f *Fake) ResizeExec(ctx context.Context, execID string, _ api.TerminalSize) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.findExec(execID)
	switch {
	case err != nil:
		return err
	case !e.running:
		return api.Conflict("exec process is not started")
	}
	return ctx.Err()
}

// InspectExec implements api.Execs.
func (f *Fake) InspectExec(ctx context.Context, execID string) (container.ExecInspectResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.findExec(execID)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	return container.ExecInspectResponse{
		ID: e.id, Running: e.running, ExitCode: e.exitCode, ContainerID: e.c.id, Pid: e.pid,
		OpenStdin: e.config.AttachStdin, OpenStdout: e.config.AttachStdout, OpenStderr: e.config.AttachStderr,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: e.config.Tty, Entrypoint: e.config.Cmd[0], Arguments: e.config.Cmd[1:], User: e.config.User,
		},
	}, ctx.Err()
}
