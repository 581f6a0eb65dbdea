package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// The exit codes that a failed start leaves behind besides an ExecError's own.
const exitUnknown = 128

// StartContainer implements api.Containers.
func (n *Node) StartContainer(ctx context.Context, id string, _ api.StartOptions) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	switch r := c.get(); {
	case r.State.Status == container.StateRemoving || c.isBarred() && !r.State.active():
		return api.Conflict("container is marked for removal and cannot be started")
	case r.State.Status == container.StatePaused:
		return api.Conflict("cannot start a paused container, try unpause instead")
	case r.State.Status == container.StateRunning:
		return api.NotModified("container %s is already running", c.id)
	}
	c.mu.Lock()
	c.delay = 0
	c.mu.Unlock()
	return n.start(c, true)
}

// start runs a container's process; op is held. byUser resets what restart
// policies count. A failure leaves nothing behind but its reason in the record; a
// container that removes itself is then removed.
func (n *Node) start(c *ctr, byUser bool) error {
	r := c.get()
	task, err := n.launch(c, r)
	if err != nil {
		return n.failStart(c, err)
	}
	status, err := task.Status(n.life)
	if err != nil || status.StartedAt.IsZero() {
		status.StartedAt = time.Now()
	}
	c.mu.Lock()
	err = c.updateLocked(func(r *record) error {
		if byUser {
			r.RestartCount, r.Stopped = 0, false
		}
		return n.setRunning(r, status)
	})
	if err == nil {
		c.task, c.ended, c.stopping, c.revive = task, make(chan struct{}), false, nil
	}
	c.mu.Unlock()
	if err != nil {
		n.release(c, task)
		return n.failStart(c, err)
	}
	c.connectPending(n.life, task) // who came while it started
	n.emit(r, events.ActionStart, nil)
	n.spawn(func() { n.watch(c, task) })
	return nil
}

// setRunning writes down that a process runs. The state may already say so if an
// earlier agent started it.
func (n *Node) setRunning(r *record, s runtime.Status) error {
	if r.State.Status != container.StateRunning {
		if err := r.State.to(container.StateRunning); err != nil {
			return err
		}
	}
	r.State.Pid, r.State.StartedAt = s.Pid, s.StartedAt.UTC()
	r.State.ExitCode, r.State.OOMKilled, r.State.Error = 0, false, ""
	r.State.FinishedAt = time.Time{}
	for i := range r.Mounts {
		r.Mounts[i].Fill = false // a volume takes the image's files once
	}
	return nil
}

// launch does all that is needed for a process to run, or undoes it.
func (n *Node) launch(c *ctr, r record) (_ runtime.Task, err error) {
	var undo []func(context.Context) error
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := n.cleanup()
		defer cancel()
		for i := len(undo) - 1; i >= 0; i-- {
			if err := undo[i](ctx); err != nil {
				n.log.Warn("undo a failed start", "container", c.id, "err", err)
			}
		}
		c.dropPending()
	}()

	undo = append(undo, func(ctx context.Context) error { return n.images.Unmount(ctx, c.id) })
	root, err := n.images.Mount(n.life, c.id)
	if err != nil {
		return nil, fmt.Errorf("mount the container's file system: %w", err)
	}
	undo = append(undo, func(ctx context.Context) error { n.disconnect(ctx, r); return nil })
	place, err := n.connect(n.life, r)
	if err != nil {
		return nil, err
	}
	spec, err := n.spec(r, root, place)
	if err != nil {
		return nil, err
	}
	size, files, err := logLimits(r.HostConfig)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(ctx context.Context) error { return n.deleteTask(ctx, c.id) })
	task, err := n.runtime.Create(n.life, c.id, runtime.Bundle{
		Spec: spec, Dir: c.dir, LogPath: logPath(c.dir, r),
		OpenStdin: r.Config.OpenStdin, StdinOnce: r.Config.StdinOnce,
		LogMaxSize: size, LogMaxFiles: files,
		Size: api.TerminalSize{Height: r.HostConfig.ConsoleSize[0], Width: r.HostConfig.ConsoleSize[1]},
	})
	if err != nil {
		return nil, err
	}
	c.connectPending(n.life, task)
	waiting, err := task.Status(n.life)
	if err != nil {
		return nil, err
	}
	before := executable(waiting.Pid)
	if err := task.Start(n.life); err != nil {
		return nil, err
	}
	awaitCommand(n.life, waiting.Pid, before)
	return task, nil
}

// A started process is the runtime's own program for a moment more, before it
// becomes the container's command. Who is told of the start must not meet it:
// signals would have another meaning to it, and top would show it.
const (
	commandPoll = 200 * time.Microsecond
	commandTime = time.Second // a machine that is slower than that has other troubles
)

// awaitCommand waits until a process isn't the program that it was, or isn't at all.
func awaitCommand(ctx context.Context, pid int, before string) {
	if before == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	poll := time.NewTicker(commandPoll)
	defer poll.Stop()
	for {
		now := executable(pid)
		if now == "" || now != before && hasArguments(pid) {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

// hasArguments says whether a process shows its arguments, as it does a little
// after it changed its program.
func hasArguments(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0
}

// executable is the program that a process runs; empty if there is none.
func executable(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return path
}

// failStart writes down why a start failed and says so.
func (n *Node) failStart(c *ctr, cause error) error {
	code := exitUnknown
	var exec *runtime.ExecError
	if errors.As(cause, &exec) {
		code = exec.Code
		cause = api.InvalidArgument("%w", exec)
	}
	c.mu.Lock()
	err := c.forceLocked(func(r *record) error {
		r.State.Error, r.State.ExitCode = cause.Error(), code
		if r.State.Status == container.StateRestarting {
			r.State.FinishedAt = time.Now().UTC()
			return r.State.to(container.StateExited)
		}
		return nil
	})
	remove := c.rec.HostConfig.AutoRemove
	c.revive = nil
	c.wakeLocked(false)
	c.mu.Unlock()
	if err != nil {
		n.log.Error("write down a failed start", "container", c.id, "err", err)
	}
	if remove {
		n.autoRemove(c)
	}
	return cause
}

// release frees what launch took, after the process is gone or to end it.
func (n *Node) release(c *ctr, task runtime.Task) {
	ctx, cancel := n.cleanup()
	defer cancel()
	if task != nil {
		if err := task.Delete(ctx); err != nil {
			n.log.Warn("delete the task", "container", c.id, "err", err)
		}
	}
	n.disconnect(ctx, c.get())
	if err := n.images.Unmount(ctx, c.id); err != nil {
		n.log.Warn("unmount the container's file system", "container", c.id, "err", err)
	}
}
