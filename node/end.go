package node

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/node/runtime"
)

// Pauses before a restart policy starts a container again: they double from the
// first to the last, and begin anew after a process that ran for long enough.
const (
	firstDelay   = 100 * time.Millisecond
	lastDelay    = time.Minute
	longEnoughUp = 10 * time.Second
)

// watch waits for a container's process and deals with its end. It returns early
// when the node shuts down: then the next agent deals with the end.
func (n *Node) watch(c *ctr, task runtime.Task) {
	exit, err := task.Wait(n.life)
	if n.life.Err() != nil {
		return
	}
	if err != nil {
		n.log.Error("lost sight of a container's process", "container", c.id, "err", err)
		exit = runtime.Exit{Code: exitLost, At: time.Now()}
	}
	if c.op.acquire(n.life) != nil {
		return
	}
	defer c.op.release()
	n.finish(c, task, exit)
}

// exitLost is the exit code of a process whose true one nobody knows.
const exitLost = 255

// finish deals with the end of a container's process; op is held. Who waits for
// the end is answered before files are cleaned up, but after ports are free.
func (n *Node) finish(c *ctr, task runtime.Task, exit runtime.Exit) {
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	r := c.get()
	ctx, cancel := n.cleanup()
	defer cancel()
	if len(r.HostConfig.PortBindings) > 0 || r.HostConfig.PublishAllPorts {
		n.disconnect(ctx, r)
	}
	up := max(exit.At.Sub(r.State.StartedAt), 0)
	c.mu.Lock()
	restart := !c.stopping && policyRestarts(r, exit.Code)
	err := c.forceLocked(func(r *record) error {
		r.State.Pid, r.State.ExitCode, r.State.OOMKilled = 0, exit.Code, exit.OOMKilled
		r.State.FinishedAt = exit.At.UTC()
		if restart {
			r.RestartCount++
			return r.State.to(container.StateRestarting)
		}
		return r.State.to(container.StateExited)
	})
	c.mu.Unlock()
	if err != nil {
		n.log.Error("write down the end of a container", "container", c.id, "err", err)
	}
	if exit.OOMKilled {
		n.emit(r, events.ActionOOM, nil)
	}
	n.emit(r, events.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(up.Seconds())),
	})
	c.mu.Lock()
	c.task = nil
	c.wakeLocked(false)
	close(c.ended)
	keep := c.stopping && c.keep
	c.mu.Unlock()
	n.release(c, task)
	switch {
	case restart:
		n.restartLater(c, up)
	case r.HostConfig.AutoRemove && !keep:
		n.autoRemove(c)
	}
}

// policyRestarts says whether a container's restart policy wants it back.
func policyRestarts(r record, code int) bool {
	switch p := r.HostConfig.RestartPolicy; p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return !r.Stopped
	case container.RestartPolicyOnFailure:
		return !r.Stopped && code != 0 && (p.MaximumRetryCount == 0 || r.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// restartLater starts a container again after a pause that grows.
func (n *Node) restartLater(c *ctr, up time.Duration) {
	ctx, cancel := context.WithCancel(n.life)
	c.mu.Lock()
	if c.delay == 0 || up >= longEnoughUp {
		c.delay = firstDelay
	} else {
		c.delay = min(2*c.delay, lastDelay)
	}
	delay := c.delay
	c.revive = cancel
	c.mu.Unlock()
	n.spawn(func() {
		defer cancel()
		pause := time.NewTimer(delay)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		if c.op.acquire(ctx) != nil {
			return
		}
		defer c.op.release()
		if ctx.Err() != nil || c.get().State.Status != container.StateRestarting {
			return
		}
		if err := n.start(c, false); err != nil {
			n.log.Error("restart a container", "container", c.id, "err", err)
		}
	})
}
