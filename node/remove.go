package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// RemoveContainer implements api.Containers.
func (n *Node) RemoveContainer(ctx context.Context, id string, o api.RemoveOptions) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	if o.Links {
		return api.InvalidArgument("Conflict, cannot remove the default link name of the container")
	}
	refuse := func(s state) error {
		if s.Status == container.StatePaused {
			return api.Conflict("cannot remove container %q: container is paused and must be unpaused first", "/"+c.get().Name)
		}
		return api.Conflict("cannot remove container %q: container is %s: stop the container before removing or force remove",
			"/"+c.get().Name, s.Status)
	}
	if o.Force {
		// Otherwise a start could come between the end and the removal, again and again.
		defer c.bar()()
	}
	for {
		if s := c.get().State; s.active() {
			if !o.Force {
				return refuse(s)
			}
			if err := n.killForRemoval(c); err != nil {
				return api.Internal("cannot remove container %q: could not kill container: %w", "/"+c.get().Name, err)
			}
		}
		if err := c.op.acquire(ctx); err != nil {
			return err
		}
		if s := c.get().State; s.active() { // by a start that was under way
			c.op.release()
			continue
		}
		defer c.op.release()
		if c.get().State.Status == container.StateRemoving {
			return nil // it removed itself
		}
		return n.remove(c, o.Volumes)
	}
}

// killForRemoval ends a container's process at once.
func (n *Node) killForRemoval(c *ctr) error {
	task, end, err := n.expectEnd(c, false)
	if err != nil || task == nil {
		return err
	}
	if err := n.signal(c, task, int(unix.SIGKILL)); err != nil {
		return err
	}
	n.await(end, -1)
	return n.settle(c)
}

// remove forgets a container that has no process; op is held. Its name, its
// ports and whoever waits for the removal are free before its files are gone. What
// can't be removed now is removed by the next agent.
func (n *Node) remove(c *ctr, withVolumes bool) error {
	if err := c.update(func(r *record) error { return r.State.to(container.StateRemoving) }); err != nil {
		return err
	}
	r := c.get()
	ctx, cancel := n.cleanup()
	defer cancel()
	if err := n.deleteTask(ctx, c.id); err != nil {
		n.log.Warn("delete the task", "container", c.id, "err", err)
	}
	n.disconnect(ctx, r)
	n.index.remove(c.id, r.Name)
	if withVolumes {
		n.removeVolumes(r)
	}
	n.emit(r, events.ActionDestroy, nil)
	c.mu.Lock()
	close(c.removed)
	c.wakeLocked(true)
	c.mu.Unlock()
	c.dropPending()
	n.discard(r)
	return nil
}

// autoRemove removes a container that was run with --rm.
func (n *Node) autoRemove(c *ctr) {
	if err := n.remove(c, true); err != nil {
		n.log.Error("remove a container that has ended", "container", c.id, "err", err)
	}
}

// discard removes all that is left of a container on the host, its directory
// last: that is how the next agent finds what could not be removed.
func (n *Node) discard(r record) {
	ctx, cancel := n.cleanup()
	defer cancel()
	err := errors.Join(
		n.deleteTask(ctx, r.ID),
		n.network.Disconnect(ctx, r.ID),
		n.images.Unmount(ctx, r.ID),
	)
	if err == nil {
		err = n.images.Discard(ctx, r.ID)
	}
	if err == nil {
		err = os.RemoveAll(n.containerDir(r.ID))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("remove a container's files", "container", r.ID, "err", err)
	}
}

// deleteTask makes the runtime forget a container, if it knows it.
func (n *Node) deleteTask(ctx context.Context, id string) error {
	task, err := n.runtime.Load(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return task.Delete(ctx)
}

// PruneContainers implements api.Containers.
func (n *Node) PruneContainers(ctx context.Context, f api.Filters) (container.PruneReport, error) {
	report := container.PruneReport{ContainersDeleted: []string{}}
	all, err := n.summaries(ctx, false)
	if err != nil {
		return report, err
	}
	which, err := listing.PrunableContainers(all, f, time.Now())
	if err != nil {
		return report, err
	}
	for _, s := range which {
		size, sizeErr := n.images.Usage(ctx, s.ID)
		err := n.RemoveContainer(ctx, s.ID, api.RemoveOptions{})
		if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
			continue // it is gone, or runs again
		}
		if err != nil {
			return report, err
		}
		report.ContainersDeleted = append(report.ContainersDeleted, s.ID)
		if sizeErr == nil {
			report.SpaceReclaimed += uint64(size)
		}
	}
	n.journal.add(events.ContainerEventType, events.ActionPrune, "", map[string]string{
		"reclaimed": decimal(report.SpaceReclaimed),
	})
	return report, nil
}

// rename gives a container another name.
func (n *Node) rename(ctx context.Context, c *ctr, name string) error {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return api.InvalidArgument("Neither old nor new names may be empty")
	}
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	r := c.get()
	if r.State.Status == container.StateRemoving {
		return listing.NoSuchContainer(r.Name)
	}
	if name == r.Name {
		return api.InvalidArgument("Renaming a container with the same name as its current name")
	}
	if err := listing.ValidateName(name); err != nil {
		return api.InvalidArgument("Error when allocating new name: %w", err)
	}
	if err := n.index.claim(name, c.id); err != nil {
		return api.Conflict("Error when allocating new name: %w", err)
	}
	if err := c.update(func(r *record) error { r.Name = name; return nil }); err != nil {
		n.index.unclaim(name, c.id)
		return err
	}
	n.index.unclaim(r.Name, c.id)
	n.emit(c.get(), events.ActionRename, map[string]string{"oldName": "/" + r.Name})
	return nil
}
