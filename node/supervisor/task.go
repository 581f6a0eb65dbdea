package supervisor

import (
	"context"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// task is a container of the supervisor's.
type task struct {
	client *Client
	id     string
}

func (t *task) ID() string { return t.id }

func (t *task) do(ctx context.Context, r wire.Request) error {
	r.ID = t.id
	_, err := t.client.call(ctx, r)
	return err
}

func (t *task) Start(ctx context.Context) error {
	return t.do(ctx, wire.Request{Op: wire.OpStart})
}

func (t *task) Signal(ctx context.Context, sig int) error {
	return t.do(ctx, wire.Request{Op: wire.OpSignal, Signal: sig})
}

func (t *task) Pause(ctx context.Context) error {
	return t.do(ctx, wire.Request{Op: wire.OpPause})
}

func (t *task) Resume(ctx context.Context) error {
	return t.do(ctx, wire.Request{Op: wire.OpResume})
}

func (t *task) Resize(ctx context.Context, s api.TerminalSize) error {
	return t.do(ctx, wire.Request{Op: wire.OpResize, Size: size(s)})
}

func (t *task) Delete(ctx context.Context) error {
	return t.do(ctx, wire.Request{Op: wire.OpDelete})
}

func (t *task) Status(ctx context.Context) (runtime.Status, error) {
	r, err := t.client.call(ctx, wire.Request{Op: wire.OpStatus, ID: t.id})
	if err != nil {
		return runtime.Status{}, err
	}
	if r.Status == nil {
		return runtime.Status{}, api.Internal("the supervisor gives no status")
	}
	return runtime.Status{
		State: runtime.State(r.Status.State), Pid: r.Status.Pid,
		StartedAt: r.Status.StartedAt, Exit: exit(&r.Status.Exit),
	}, nil
}

func (t *task) Wait(ctx context.Context) (runtime.Exit, error) {
	r, err := t.client.call(ctx, wire.Request{Op: wire.OpWait, ID: t.id})
	if err != nil {
		return runtime.Exit{}, err
	}
	return exit(r.Exit), nil
}

func (t *task) Pids(ctx context.Context) ([]int, error) {
	r, err := t.client.call(ctx, wire.Request{Op: wire.OpPids, ID: t.id})
	return r.Pids, err
}

func (t *task) Attach(ctx context.Context, o runtime.Streams) (api.Session, error) {
	r, conn, err := t.client.open(ctx, wire.Request{Op: wire.OpAttach, ID: t.id, Streams: wire.Streams(o)})
	if err != nil {
		return api.Session{}, err
	}
	return api.Session{Duplex: conn, Multiplexed: r.Multiplexed}, nil
}

func (t *task) Exec(ctx context.Context, execID string, p runtime.Process) (runtime.Exec, error) {
	r, conn, err := t.client.open(ctx, wire.Request{
		Op: wire.OpExec, ID: t.id, ExecID: execID,
		Process: p.Spec, Streams: wire.Streams(p.Streams), Size: size(p.Size),
	})
	if err != nil {
		return nil, err
	}
	e := &process{task: t, id: execID, pid: r.Pid}
	if wire.Streams(p.Streams).Any() {
		e.session = api.Session{Duplex: conn, Multiplexed: r.Multiplexed}
	} else {
		_ = conn.Close() // no more comes
	}
	return e, nil
}

// process is a further process of a container.
type process struct {
	task    *task
	id      string
	pid     int
	session api.Session
}

func (e *process) Pid() int             { return e.pid }
func (e *process) Session() api.Session { return e.session }

func (e *process) Wait(ctx context.Context) (runtime.Exit, error) {
	r, err := e.task.client.call(ctx, wire.Request{Op: wire.OpExecWait, ID: e.task.id, ExecID: e.id})
	if err != nil {
		return runtime.Exit{}, err
	}
	return exit(r.Exit), nil
}

func (e *process) Resize(ctx context.Context, s api.TerminalSize) error {
	return e.task.do(ctx, wire.Request{Op: wire.OpExecResize, ExecID: e.id, Size: size(s)})
}

func (e *process) Signal(ctx context.Context, sig int) error {
	return e.task.do(ctx, wire.Request{Op: wire.OpExecSignal, ExecID: e.id, Signal: sig})
}

func size(s api.TerminalSize) wire.Size {
	return wire.Size{Height: uint16(min(s.Height, 1<<16-1)), Width: uint16(min(s.Width, 1<<16-1))}
}

func exit(e *wire.Exit) runtime.Exit {
	if e == nil {
		return runtime.Exit{}
	}
	return runtime.Exit{Code: e.Code, At: e.At, OOMKilled: e.OOMKilled}
}
