package daemon

import (
	"errors"
	"fmt"

	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// keptExecs is how many ended processes of a container are remembered, for who
// asks for their exit codes late.
const keptExecs = 64

// execFailed is how Docker's words begin when a process can't be started.
const execFailed = "OCI runtime exec failed: exec failed: "

// execution is a further process of a container.
type execution struct {
	process *process
}

// exec starts a further process.
func (c *container) exec(k *call, r *wire.Reply) error {
	if k.Process == nil || k.ExecID == "" {
		return wire.Errorf(wire.Invalid, "a process or its ID is missing")
	}
	if err := c.is(wire.Running); err != nil {
		return err
	}
	e := &execution{}
	if err := c.addExec(k.ExecID, e); err != nil {
		return err
	}
	err := c.run(e, k)
	if err != nil {
		c.dropExec(k.ExecID)
		var noExec *libcontainer.ExecError
		if errors.As(err, &noExec) {
			return &wire.Error{Class: wire.NoExec, Code: noExec.Code, Text: execFailed + noExec.Text}
		}
		return fmt.Errorf("%s%w", execFailed, err)
	}
	r.Pid = e.process.lc.Pid()
	if k.Streams.Any() {
		r.Multiplexed = e.process.attach(k)
	}
	go e.process.run(func(*wire.Exit) {})
	return nil
}

func (c *container) run(e *execution, k *call) error {
	theirs, ours, err := pipes(k.Streams, k.Size, k.Process.Terminal)
	if err != nil {
		return fmt.Errorf("make pipes: %w", err)
	}
	lc, err := c.lc.Exec(k.Process, theirs)
	closeStdio(theirs)
	if err != nil {
		ours.close()
		return err
	}
	p := newProcess(lc, ours, c.d.log.With("id", c.id, "exec", k.ExecID))
	p.once, p.hub.private = true, true
	c.mu.Lock()
	defer c.mu.Unlock()
	e.process = p
	return nil
}

// addExec claims an ID, and forgets the oldest processes that have ended.
func (c *container) addExec(id string, e *execution) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[id]; ok {
		return wire.Errorf(wire.Conflict, "exec %s exists already", id)
	}
	c.execs[id] = e
	c.order = append(c.order, id)
	surplus := len(c.order) - keptExecs
	kept := c.order[:0]
	for _, id := range c.order {
		if surplus > 0 && c.execs[id].over() {
			delete(c.execs, id)
			surplus--
			continue
		}
		kept = append(kept, id)
	}
	c.order = kept
	return nil
}

func (c *container) dropExec(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id)
	for i, other := range c.order {
		if other == id {
			c.order = append(c.order[:i], c.order[i+1:]...)
			return
		}
	}
}

// execution gives a further process that was started.
func (c *container) execution(id string) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.execs[id]
	if !ok || e.process == nil {
		return nil, wire.Errorf(wire.NotFound, "no such exec: %s", id)
	}
	return e, nil
}

func (e *execution) over() bool {
	if e.process == nil {
		return false
	}
	select {
	case <-e.process.done:
		return true
	default:
		return false
	}
}
