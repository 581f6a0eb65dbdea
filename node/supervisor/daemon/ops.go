package daemon

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// operation does what a call asks for and fills in the reply.
type operation func(*Daemon, *call, *wire.Reply) error

// operations are all there are.
var operations = map[wire.Op]operation{
	wire.OpHello:    (*Daemon).hello,
	wire.OpList:     func(d *Daemon, _ *call, r *wire.Reply) error { r.IDs = d.ids(); return nil },
	wire.OpShutdown: (*Daemon).end,

	wire.OpCreate: (*Daemon).create,
	wire.OpDelete: (*Daemon).delete,
	wire.OpStart:  on(func(c *container, _ *call, _ *wire.Reply) error { return c.start() }),
	wire.OpStatus: on(func(c *container, _ *call, r *wire.Reply) error { s := c.status(); r.Status = &s; return nil }),
	wire.OpWait:   on((*container).wait),
	wire.OpSignal: on(func(c *container, k *call, _ *wire.Reply) error { return c.signal(unix.Signal(k.Signal)) }),
	wire.OpPause:  on(func(c *container, _ *call, _ *wire.Reply) error { return c.pause() }),
	wire.OpResume: on(func(c *container, _ *call, _ *wire.Reply) error { return c.resume() }),
	wire.OpResize: on(func(c *container, k *call, _ *wire.Reply) error { return c.resize(k.Size) }),
	wire.OpAttach: on((*container).attach),
	wire.OpPids:   on((*container).pids),

	wire.OpExec: on((*container).exec),
	wire.OpExecWait: onExec(func(e *execution, k *call, r *wire.Reply) error {
		return waitFor(e.process, k, r)
	}),
	wire.OpExecSignal: onExec(func(e *execution, k *call, _ *wire.Reply) error {
		return e.process.signal(unix.Signal(k.Signal))
	}),
	wire.OpExecResize: onExec(func(e *execution, k *call, _ *wire.Reply) error {
		return e.process.resize(k.Size)
	}),
}

// on makes an operation of one on a container.
func on(op func(*container, *call, *wire.Reply) error) operation {
	return func(d *Daemon, k *call, r *wire.Reply) error {
		c, err := d.find(k.ID)
		if err != nil {
			return err
		}
		<-c.made
		select {
		case <-c.deleted:
			return wire.Errorf(wire.NotFound, "no such container: %s", k.ID)
		default:
			return op(c, k, r)
		}
	}
}

// onExec makes an operation of one on a further process of a container.
func onExec(op func(*execution, *call, *wire.Reply) error) operation {
	return on(func(c *container, k *call, r *wire.Reply) error {
		e, err := c.execution(k.ExecID)
		if err != nil {
			return err
		}
		return op(e, k, r)
	})
}

func (d *Daemon) hello(_ *call, r *wire.Reply) error {
	r.Hello = &wire.Hello{Pid: os.Getpid(), StartedAt: d.started, Seccomp: libcontainer.SeccompEnabled()}
	return nil
}

// end shuts down, and leaves the connection open: the caller sees by its end that
// the process is gone.
func (d *Daemon) end(k *call, _ *wire.Reply) error {
	if err := d.shutdown(k.Force); err != nil {
		return err
	}
	k.stream = func() { d.once.Do(func() { close(d.quit) }) }
	return nil
}

// waitFor answers with a process's end, or not at all if the caller leaves.
func waitFor(p *process, k *call, r *wire.Reply) error {
	select {
	case <-p.done:
		exit := p.exit
		r.Exit = &exit
		return nil
	case <-k.gone():
		return wire.Errorf(wire.Internal, "nobody waits any more")
	}
}
