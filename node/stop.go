package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// defaultStopTimeout is how long a container may take to end, in seconds.
const defaultStopTimeout = 10

// StopContainer implements api.Containers. Once begun, it goes on also if the
// caller goes away.
func (n *Node) StopContainer(ctx context.Context, id string, o api.StopOptions) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	r := c.get()
	if !r.State.active() {
		return api.NotModified("container %s is already stopped", c.id)
	}
	if err := n.stop(c, o, false); err != nil {
		return err
	}
	n.emit(r, events.ActionStop, nil)
	return nil
}

// RestartContainer implements api.Containers.
func (n *Node) RestartContainer(ctx context.Context, id string, o api.StopOptions) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	r := c.get()
	if r.State.active() {
		if err := n.stop(c, o, true); err != nil {
			return fmt.Errorf("Cannot restart container %s: %w", id, err)
		}
		n.emit(r, events.ActionStop, nil)
	}
	if err := n.StartContainer(ctx, c.id, api.StartOptions{}); err != nil && !errdefs.IsNotModified(err) {
		return fmt.Errorf("Cannot restart container %s: %w", id, err)
	}
	n.emit(r, events.ActionRestart, nil)
	return nil
}

// stop ends a container's process and returns after all it held is free. keep
// says that the container starts again, so that it must not remove itself.
func (n *Node) stop(c *ctr, o api.StopOptions, keep bool) error {
	r := c.get()
	sig, err := stopSignal(r, o.Signal)
	if err != nil {
		return err
	}
	timeout := defaultStopTimeout
	if r.Config.StopTimeout != nil {
		timeout = *r.Config.StopTimeout
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	task, end, err := n.expectEnd(c, keep)
	if err != nil || task == nil {
		return err
	}
	if err := n.signal(c, task, sig); err != nil {
		return err
	}
	if !n.await(end, timeout) {
		if err := n.signal(c, task, int(unix.SIGKILL)); err != nil {
			return err
		}
		n.await(end, -1)
	}
	return n.settle(c)
}

// expectEnd writes down that somebody asked for the container's end, so that no
// restart policy revives it. task is nil if there is no process (any more).
func (n *Node) expectEnd(c *ctr, keep bool) (runtime.Task, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.updateLocked(func(r *record) error { r.Stopped = !keep; return nil }); err != nil {
		return nil, nil, err
	}
	if c.rec.State.Status == container.StateRestarting {
		if c.revive != nil {
			c.revive()
		}
		err := c.updateLocked(func(r *record) error { return r.State.to(container.StateExited) })
		c.wakeLocked(false)
		return nil, nil, err
	}
	if !c.rec.State.live() {
		return nil, nil, nil
	}
	c.stopping, c.keep = true, keep
	return c.task, c.ended, nil
}

// await waits until end closes, for so many seconds or, negative, for as long as
// the node lives.
func (n *Node) await(end <-chan struct{}, seconds int) bool {
	var timeout <-chan time.Time
	if seconds >= 0 {
		t := time.NewTimer(time.Duration(seconds) * time.Second)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-end:
		return true
	case <-timeout:
		return false
	case <-n.life.Done():
		return true
	}
}

// settle waits until what follows a container's end is done.
func (n *Node) settle(c *ctr) error {
	if err := c.op.acquire(n.life); err != nil {
		return err
	}
	c.op.release()
	return nil
}

// stopSignal is the signal that asks a container to end.
func stopSignal(r record, asked string) (int, error) {
	if asked == "" {
		asked = r.Config.StopSignal
	}
	if asked == "" {
		return int(unix.SIGTERM), nil
	}
	return parseSignal(asked)
}

// signal sends a signal; a paused container is resumed, so that it can act on it.
// A process that is gone already is no error.
func (n *Node) signal(c *ctr, task runtime.Task, sig int) error {
	err := task.Signal(n.life, sig)
	if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	n.emit(c.get(), events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
	if c.get().State.Status == container.StatePaused {
		if err := n.resume(c, task); err != nil && !errdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}

// KillContainer implements api.Containers.
func (n *Node) KillContainer(ctx context.Context, id, signal string) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	sig := int(unix.SIGKILL)
	if signal != "" {
		if sig, err = parseSignal(signal); err != nil {
			return err
		}
	}
	r, task, err := c.running()
	if r.State.Status == container.StateRestarting {
		if _, _, err := n.expectEnd(c, false); err != nil {
			return err
		}
		return nil
	}
	if err != nil {
		return api.Conflict("cannot kill container: %s: %w", id, err)
	}
	if stop, err := stopSignal(r, ""); err == nil && sig != stop && sig != int(unix.SIGKILL) {
		if err := task.Signal(ctx, sig); err != nil {
			return err
		}
		n.emit(r, events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
		return nil
	}
	task, end, err := n.expectEnd(c, false)
	if err != nil || task == nil {
		return err
	}
	if err := n.signal(c, task, sig); err != nil {
		return err
	}
	if sig == int(unix.SIGKILL) {
		n.await(end, -1)
		return n.settle(c)
	}
	return nil
}

// PauseContainer implements api.Containers.
func (n *Node) PauseContainer(ctx context.Context, id string) error {
	return n.whileRunning(ctx, id, func(c *ctr, r record, task runtime.Task) error {
		if r.State.Status == container.StatePaused {
			return api.Conflict("container %s is already paused", c.id)
		}
		if err := task.Pause(ctx); err != nil {
			return fmt.Errorf("cannot pause container %s: %w", c.id, err)
		}
		err := c.update(func(r *record) error { return r.State.to(container.StatePaused) })
		if err != nil {
			return errors.Join(err, task.Resume(n.life))
		}
		n.emit(r, events.ActionPause, nil)
		return nil
	})
}

// UnpauseContainer implements api.Containers.
func (n *Node) UnpauseContainer(ctx context.Context, id string) error {
	return n.whileRunning(ctx, id, func(c *ctr, r record, task runtime.Task) error {
		if r.State.Status != container.StatePaused {
			return api.Conflict("container %s is not paused", c.id)
		}
		return n.resume(c, task)
	})
}

func (n *Node) resume(c *ctr, task runtime.Task) error {
	if err := task.Resume(n.life); err != nil {
		return fmt.Errorf("cannot unpause container %s: %w", c.id, err)
	}
	err := c.update(func(r *record) error {
		if r.State.Status != container.StatePaused {
			return nil
		}
		return r.State.to(container.StateRunning)
	})
	if err == nil {
		n.emit(c.get(), events.ActionUnPause, nil)
	}
	return err
}

// whileRunning does something to a running container while nothing else happens
// to it.
func (n *Node) whileRunning(ctx context.Context, id string, f func(*ctr, record, runtime.Task) error) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	r, task, err := c.running()
	if err != nil {
		return err
	}
	return f(c, r, task)
}

// RenameContainer implements api.Containers.
func (n *Node) RenameContainer(ctx context.Context, id, name string) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	return n.rename(ctx, c, name)
}
