package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/node/runtime"
)

// loadRecords reads the records of all containers. A corrupt one is logged, set
// aside under another name, and its container left alone; the others load.
func (n *Node) loadRecords() error {
	root := filepath.Join(n.cfg.Root, "containers")
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !validID(e.Name()) {
			continue
		}
		dir := filepath.Join(root, e.Name())
		r, err := loadRecord(dir)
		switch {
		case errors.Is(err, errCorrupt):
			path := filepath.Join(dir, configFile)
			n.log.Error("a container's record is corrupt and set aside", "container", e.Name(), "path", path+".corrupt", "err", err)
			if err := os.Rename(path, path+".corrupt"); err != nil {
				return fmt.Errorf("set a corrupt record aside: %w", err)
			}
		case errors.Is(err, fs.ErrNotExist):
			// Half-made, or set aside before; adopt tells them apart.
		case err != nil:
			return fmt.Errorf("read the record of container %s: %w", e.Name(), err)
		default:
			if err := n.index.claim(r.Name, r.ID); err != nil {
				return fmt.Errorf("two containers of one name, %s and another: %w", dir, err)
			}
			n.index.add(newCtr(dir, r))
		}
	}
	return nil
}

// adopt brings records and reality together: containers that run are watched
// again, those that ended meanwhile get their true end, half-made ones go, and
// restart policies are honoured.
func (n *Node) adopt(ctx context.Context) error {
	if err := n.removeLeftovers(ctx); err != nil {
		return err
	}
	for _, c := range n.index.all() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.adoptOne(ctx, c); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	there := n.foundAtStart()
	n.spawn(func() { n.honourPolicies(there) })
	return nil
}

// removeLeftovers removes containers that were never finished or are half gone:
// directories without a record, and what the runtime knows and no record does. The
// container of a record that was set aside stays as it is.
func (n *Node) removeLeftovers(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(n.cfg.Root, "containers"))
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		if !validID(id) || n.index.has(id) || n.setAside(id) {
			continue
		}
		n.log.Info("remove a half-made container", "container", id)
		n.discard(record{ID: id})
	}
	ids, err := n.runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the runtime for its containers: %w", err)
	}
	for _, id := range ids {
		if n.index.has(id) || n.setAside(id) {
			continue
		}
		n.log.Info("end a container that has no record", "container", id)
		n.discard(record{ID: id})
	}
	return nil
}

// setAside says whether a container's record was corrupt.
func (n *Node) setAside(id string) bool {
	_, err := os.Stat(filepath.Join(n.containerDir(id), configFile+".corrupt"))
	return err == nil
}

// adoptOne finds out what became of one container. Nobody else knows it yet, but
// its op lock is held since an end that is noticed at once waits for it.
func (n *Node) adoptOne(ctx context.Context, c *ctr) error {
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	r := c.get()
	if r.State.Status == container.StateRemoving {
		n.index.remove(c.id, r.Name)
		n.discard(r)
		return nil
	}
	task, status, err := n.taskOf(ctx, c.id)
	if err != nil {
		return err
	}
	switch {
	case task != nil && (status.State == runtime.Running || status.State == runtime.Paused):
		return n.adoptRunning(c, task, status)
	case task != nil && status.State == runtime.Stopped && !r.ends(status):
		return n.adoptEnded(c, task, status)
	case r.State.live():
		// The runtime lost it: the host was restarted.
		status = runtime.Status{StartedAt: r.State.StartedAt, Exit: runtime.Exit{Code: exitLost, At: time.Now()}}
		return n.adoptEnded(c, task, status)
	}
	// It doesn't run and didn't: whatever a half-done start left goes.
	n.release(c, task)
	return nil
}

// ends says whether a record tells of the end that a status shows already.
func (r record) ends(s runtime.Status) bool {
	return !r.State.live() && !r.State.FinishedAt.IsZero() && !s.StartedAt.After(r.State.FinishedAt)
}

// taskOf asks the runtime for a container; nil if it doesn't know it.
func (n *Node) taskOf(ctx context.Context, id string) (runtime.Task, runtime.Status, error) {
	task, err := n.runtime.Load(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, runtime.Status{}, nil
	}
	if err != nil {
		return nil, runtime.Status{}, fmt.Errorf("ask the runtime: %w", err)
	}
	status, err := task.Status(ctx)
	if err != nil {
		return nil, status, fmt.Errorf("ask the runtime: %w", err)
	}
	return task, status, nil
}

// adoptRunning takes over a container that runs, whatever its record says.
func (n *Node) adoptRunning(c *ctr, task runtime.Task, s runtime.Status) error {
	err := c.update(func(r *record) error {
		if r.State.Status == container.StatePaused {
			r.State.Status = container.StateRunning
		}
		started := r.State.StartedAt
		if err := n.setRunning(r, s); err != nil {
			return err
		}
		if s.StartedAt.IsZero() {
			r.State.StartedAt = started
		}
		if s.State == runtime.Paused {
			return r.State.to(container.StatePaused)
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.take(c, task)
	n.spawn(func() { n.watch(c, task) })
	return nil
}

// take makes a task the container's.
func (n *Node) take(c *ctr, task runtime.Task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.task, c.ended = task, make(chan struct{})
	// A stop that the last agent began is not undone by a restart policy.
	c.stopping = c.rec.Stopped
}

// adoptEnded deals with an end that nobody saw, as finish does with others.
func (n *Node) adoptEnded(c *ctr, task runtime.Task, s runtime.Status) error {
	err := c.update(func(r *record) error {
		if r.State.live() {
			return nil
		}
		return n.setRunning(r, s)
	})
	if err != nil {
		return err
	}
	n.take(c, task)
	n.finish(c, task, s.Exit)
	return nil
}

// found is a container as the agent found it when it began.
type found struct {
	*ctr
	finished time.Time
}

// foundAtStart are the containers that were here when the agent began. Those made later are
// no matter of policies that say what happens then.
func (n *Node) foundAtStart() []found {
	all := n.index.all()
	slices.SortFunc(all, func(a, b *ctr) int { return strings.Compare(a.id, b.id) })
	out := make([]found, len(all))
	for i, c := range all {
		out[i] = found{c, c.get().State.FinishedAt}
	}
	return out
}

// honourPolicies starts what shall run and doesn't: containers whose pause before
// a restart the last agent didn't live to see, and those that restart always. What has
// run and ended meanwhile was somebody's wish.
func (n *Node) honourPolicies(there []found) {
	for _, c := range there {
		if c.op.acquire(n.life) != nil {
			return
		}
		r := c.get()
		if n.wanted(c.ctr, r) && (r.State.Status == container.StateRestarting || r.State.FinishedAt.Equal(c.finished)) {
			if err := n.start(c.ctr, false); err != nil {
				n.log.Error("start a container as its restart policy says", "container", c.id, "err", err)
			}
		}
		c.op.release()
	}
}

// wanted says whether a restart policy wants a container to run that doesn't.
func (n *Node) wanted(c *ctr, r record) bool {
	switch r.State.Status {
	case container.StateRestarting:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.revive == nil // else its pause goes on
	case container.StateExited:
		return r.HostConfig.RestartPolicy.IsAlways() || policyRestarts(r, r.State.ExitCode)
	}
	return false
}
