package daemon

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/jsonlog"
	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// container is one that was created and not deleted yet.
type container struct {
	d   *Daemon
	id  string
	dir string // where its state is kept

	// doing is held by what changes the container's state on purpose, and saving by
	// what writes it down; both are taken before mu, in this order.
	doing, saving sync.Mutex

	made chan struct{} // closed: the next three are set, or it is deleted
	// failed is why the command can't be executed; there is no process then.
	failed *wire.Error
	lc     *libcontainer.Container // nil if there is no process
	main   *process                // nil if there is none, and none to wait for

	mu    sync.Mutex
	state wire.Status
	execs map[string]*execution
	order []string // of execs, oldest first

	deleted chan struct{} // closed: it is gone
}

func (d *Daemon) newContainer(id, dir string) *container {
	return &container{
		d: d, id: id, dir: dir,
		state:   wire.Status{State: wire.Created},
		execs:   map[string]*execution{},
		made:    make(chan struct{}),
		deleted: make(chan struct{}),
	}
}

// create makes a container. A command that can't be executed is known only now,
// but is the answer to start, by which users expect it.
func (d *Daemon) create(k *call, _ *wire.Reply) error {
	b := k.Bundle
	if b == nil || b.Spec == nil || b.Spec.Process == nil || b.Dir == "" {
		return wire.Errorf(wire.Invalid, "the bundle lacks a spec, a process or a directory")
	}
	if !validID(k.ID) {
		return wire.Errorf(wire.Invalid, "invalid container ID: %q", k.ID)
	}
	c := d.newContainer(k.ID, b.Dir)
	c.doing.Lock()
	defer c.doing.Unlock()
	if err := d.claim(c); err != nil {
		return err
	}
	defer close(c.made)
	err := c.make(b)
	var noExec *libcontainer.ExecError
	if errors.As(err, &noExec) {
		c.failed = &wire.Error{Class: wire.NoExec, Code: noExec.Code, Text: createFailed + noExec.Text}
		err = nil
	}
	if err == nil {
		err = c.save()
	}
	if err != nil {
		return errors.Join(err, c.remove())
	}
	return nil
}

// createFailed is how Docker's words begin when a container can't be made.
const createFailed = "failed to create task for container: OCI runtime create failed: "

// claim takes an ID for a container.
func (d *Daemon) claim(c *container) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return wire.Errorf(wire.Conflict, "the supervisor is shutting down")
	}
	if _, ok := d.containers[c.id]; ok {
		return wire.Errorf(wire.Conflict, "container %s exists already", c.id)
	}
	d.containers[c.id] = c
	return nil
}

// make starts the first process, which waits then, and takes hold of its streams.
func (c *container) make(b *wire.Bundle) error {
	terminal := b.Spec.Process.Terminal
	theirs, ours, err := pipes(wire.Streams{Stdin: b.OpenStdin, Stdout: true, Stderr: true}, b.Size, terminal)
	if err != nil {
		return fmt.Errorf("make pipes: %w", err)
	}
	var log *jsonlog.Writer
	if b.LogPath != "" {
		if log, err = jsonlog.NewWriter(b.LogPath, b.LogMaxSize, b.LogMaxFiles); err != nil {
			closeStdio(theirs)
			ours.close()
			return err
		}
	}
	lc, err := c.d.factory.Create(c.id, b.Spec, theirs)
	closeStdio(theirs)
	if err != nil {
		ours.close()
		if log != nil {
			err = errors.Join(err, log.Close())
		}
		return fmt.Errorf("%s%w", createFailed, err)
	}
	p := newProcess(lc.Init(), ours, c.d.log.With("id", c.id))
	p.log, p.once = log, b.StdinOnce
	c.lc, c.main = lc, p
	c.mu.Lock()
	c.state.Pid = lc.Init().Pid()
	c.mu.Unlock()
	go p.run(c.ended)
	return nil
}

// ended completes and keeps the end of the first process.
func (c *container) ended(exit *wire.Exit) {
	exit.OOMKilled = c.lc.OOMKilled()
	if log := c.main.log; log != nil {
		if err := log.Close(); err != nil {
			c.d.log.Warn("log not closed", "id", c.id, "err", err)
		}
	}
	c.mu.Lock()
	c.state.State, c.state.Pid, c.state.Exit = wire.Stopped, 0, *exit
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.d.log.Warn("end of container not kept", "id", c.id, "err", err)
	}
	c.d.containerEnded()
}

func (c *container) status() wire.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// alive says whether there is a process, be it started yet or not.
func (c *container) alive() bool {
	<-c.made
	return c.lc != nil && c.status().State != wire.Stopped
}

// is fails unless the container is in one of some states.
func (c *container) is(states ...wire.State) error {
	now := c.status().State
	for _, s := range states {
		if s == now {
			return nil
		}
	}
	if now == wire.Created || now == wire.Stopped {
		return wire.Errorf(wire.Conflict, "container %s is not running", c.id)
	}
	return wire.Errorf(wire.Conflict, "container %s is %s", c.id, now)
}

// become changes the state, unless the container has ended meanwhile.
func (c *container) become(s wire.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.State != wire.Stopped {
		c.state.State = s
	}
}

func (c *container) start() error {
	c.doing.Lock()
	defer c.doing.Unlock()
	if c.failed != nil {
		return c.failed
	}
	if s := c.status().State; s != wire.Created {
		return wire.Errorf(wire.Conflict, "container %s was started already", c.id)
	}
	// Before it runs, so that it can't have ended before it started.
	c.mu.Lock()
	c.state.State, c.state.StartedAt = wire.Running, time.Now()
	c.mu.Unlock()
	if err := c.lc.Start(); err != nil {
		c.become(wire.Created)
		return fmt.Errorf("start container: %w", err)
	}
	return c.save()
}

// wait answers with the container's end.
func (c *container) wait(k *call, r *wire.Reply) error {
	if c.main != nil {
		return waitFor(c.main, k, r)
	}
	if s := c.status(); s.State == wire.Stopped {
		r.Exit = &s.Exit
		return nil
	}
	select {
	case <-c.deleted:
		return wire.Errorf(wire.NotFound, "container %s was deleted before it ran", c.id)
	case <-k.gone():
		return wire.Errorf(wire.Internal, "nobody waits any more")
	}
}

func (c *container) signal(sig unix.Signal) error {
	if err := c.is(wire.Running, wire.Paused); err != nil {
		return err
	}
	return c.lc.Signal(sig)
}

func (c *container) pause() error {
	c.doing.Lock()
	defer c.doing.Unlock()
	if err := c.is(wire.Running); err != nil {
		return err
	}
	if err := c.lc.Pause(); err != nil {
		return err
	}
	c.become(wire.Paused)
	return c.save()
}

func (c *container) resume() error {
	c.doing.Lock()
	defer c.doing.Unlock()
	if err := c.is(wire.Paused); err != nil {
		return err
	}
	if err := c.lc.Resume(); err != nil {
		return err
	}
	c.become(wire.Running)
	return c.save()
}

// live gives the first process while there is one.
func (c *container) live() (*process, error) {
	if c.main == nil {
		return nil, wire.Errorf(wire.Conflict, "container %s is not running", c.id)
	}
	return c.main, nil
}

func (c *container) resize(s wire.Size) error {
	p, err := c.live()
	if err != nil {
		return err
	}
	return p.resize(s)
}

func (c *container) attach(k *call, r *wire.Reply) error {
	p, err := c.live()
	if err != nil {
		return err
	}
	r.Multiplexed = p.attach(k)
	return nil
}

func (c *container) pids(_ *call, r *wire.Reply) error {
	if err := c.is(wire.Running, wire.Paused); err != nil {
		return err
	}
	pids, err := c.lc.Pids()
	r.Pids = pids
	return err
}

// delete kills what runs and forgets the container; again is no error.
func (d *Daemon) delete(k *call, _ *wire.Reply) error {
	c, err := d.find(k.ID)
	if err != nil {
		return nil
	}
	return c.delete()
}

func (c *container) delete() error {
	c.doing.Lock()
	defer c.doing.Unlock()
	select {
	case <-c.deleted:
		return nil
	default:
	}
	if c.alive() {
		if err := c.lc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
			return fmt.Errorf("kill container: %w", err)
		}
	}
	if c.main != nil {
		<-c.main.done
	}
	var err error
	if c.lc != nil {
		err = c.lc.Destroy()
	} else {
		err = c.d.factory.Discard(c.id)
	}
	if err != nil {
		return err
	}
	return c.remove()
}

// remove forgets a container that has no process any more.
func (c *container) remove() error {
	err := errors.Join(c.unsave(), c.d.forget(c))
	close(c.deleted)
	return err
}
