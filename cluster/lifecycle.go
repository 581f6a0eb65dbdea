package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// seen waits until the catalog shows a container as ok wants it, or without it.
func (r *Router) seen(ctx context.Context, id string, ok func(catalog.Container) bool) {
	r.await(ctx, settle, func(v catalog.View) bool {
		c, err := v.Container(id)
		return err != nil || ok(c)
	})
}

// StartContainer implements api.Containers. Ports that the container gave back
// when it ended are claimed again first.
func (r *Router) StartContainer(ctx context.Context, id string, o api.StartOptions) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if err := r.claimPorts(ctx, c); err != nil {
			return err
		}
		if err := e.StartContainer(ctx, c.ID, o); err != nil {
			return err
		}
		r.seen(ctx, c.ID, started(c))
		return r.confirmPorts(ctx, e, c.ID)
	})
}

// claimPorts has a container get its ports where it may have none: it gave them back
// when it ended, or another one had them when it was made.
func (r *Router) claimPorts(ctx context.Context, c catalog.Container) error {
	ended := c.State == container.StateExited || c.State == container.StateDead
	if len(c.Ports) == 0 || !ended && c.Summary.Labels[replaceLabel] == "" {
		return nil
	}
	_, err := r.store.Propose(ctx, catalog.ClaimPorts{ID: c.ID})
	return err
}

// confirmPorts ends a container that was started although another one has its ports by
// now: they were free for a moment, because it had ended when its start was asked for.
func (r *Router) confirmPorts(ctx context.Context, e api.Engine, id string) error {
	c, err := r.reader.View().Container(id)
	if err != nil || !c.Denied {
		return nil
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, err = r.store.Propose(ctx, catalog.ClaimPorts{ID: id})
	if err == nil {
		return nil
	}
	now := 0
	if ended := e.StopContainer(ctx, id, api.StopOptions{Timeout: &now}); ended != nil && !errdefs.IsNotModified(ended) {
		return errors.Join(err, ended)
	}
	r.seen(ctx, id, stopped(c))
	return err
}

// started says whether a later record of a container tells of a later start.
func started(before catalog.Container) func(catalog.Container) bool {
	return func(c catalog.Container) bool {
		return !c.Started.Equal(before.Started) || catalog.Live(c.State) && !catalog.Live(before.State)
	}
}

// stopped says whether a later record of a container tells of its end. A view that is
// late may not even know yet that it was started.
func stopped(before catalog.Container) func(catalog.Container) bool {
	return func(c catalog.Container) bool {
		return !catalog.Live(c.State) && (catalog.Live(before.State) || !c.Finished.Equal(before.Finished))
	}
}

// StopContainer implements api.Containers.
func (r *Router) StopContainer(ctx context.Context, id string, o api.StopOptions) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if err := e.StopContainer(ctx, c.ID, o); err != nil {
			return err
		}
		r.seen(ctx, c.ID, stopped(c))
		return nil
	})
}

// RestartContainer implements api.Containers.
func (r *Router) RestartContainer(ctx context.Context, id string, o api.StopOptions) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if err := r.claimPorts(ctx, c); err != nil {
			return err
		}
		if err := e.RestartContainer(ctx, c.ID, o); err != nil {
			return err
		}
		r.seen(ctx, c.ID, started(c))
		return r.confirmPorts(ctx, e, c.ID)
	})
}

// KillContainer implements api.Containers.
func (r *Router) KillContainer(ctx context.Context, id, signal string) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		return e.KillContainer(ctx, c.ID, signal)
	})
}

// PauseContainer implements api.Containers.
func (r *Router) PauseContainer(ctx context.Context, id string) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if err := e.PauseContainer(ctx, c.ID); err != nil {
			return err
		}
		r.seen(ctx, c.ID, func(c catalog.Container) bool { return c.State != container.StateRunning })
		return nil
	})
}

// UnpauseContainer implements api.Containers.
func (r *Router) UnpauseContainer(ctx context.Context, id string) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if err := e.UnpauseContainer(ctx, c.ID); err != nil {
			return err
		}
		r.seen(ctx, c.ID, func(c catalog.Container) bool { return c.State != container.StatePaused })
		return nil
	})
}

// RenameContainer implements api.Containers: the catalog decides about the name,
// and the node follows.
func (r *Router) RenameContainer(ctx context.Context, id, name string) error {
	if name == "" || name == "/" {
		return api.InvalidArgument("Neither old nor new names may be empty")
	}
	name, err := validName(name)
	if err != nil {
		return err
	}
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		if r.named(ctx, c, name) {
			return api.InvalidArgument("Renaming a container with the same name as its current name")
		}
		res, err := r.store.Propose(ctx, catalog.RenameContainer{ID: c.ID, Name: name})
		if err != nil {
			return err
		}
		err = granted(ctx, func() error { return e.RenameContainer(ctx, c.ID, name) })
		if err == nil {
			return nil
		}
		back, cancel := cleanup(ctx)
		defer cancel()
		// Somebody else may have wanted the same, or the answer was lost.
		if i, e := e.InspectContainer(back, c.ID, api.InspectOptions{}); e == nil && i.Name == "/"+name {
			return nil
		}
		if errdefs.IsUnavailable(err) || listing.IsNameTaken(err) {
			r.log.Info("a node will hear of a container's name later", "container", c.ID, "name", name, "error", err)
			return nil // its publisher sees to that
		}
		was := res.Was
		if was == "" || was == name { // it was proposed a second time, after an answer was lost
			was = c.Name
		}
		_, undone := r.store.Propose(back, catalog.RenameContainer{ID: c.ID, Name: was, From: name})
		if undone != nil {
			// The class stays that of the failure: the refusal to undo doesn't mean
			// that nothing happened.
			return fmt.Errorf("%w; its name stays %s: %s", err, name, undone.Error())
		}
		return err
	})
}

// named says whether a container surely has a name already, and not only in a late view.
func (r *Router) named(ctx context.Context, c catalog.Container, name string) bool {
	if c.Name != name {
		return false
	}
	r.sync(ctx, missSync)
	now, err := r.reader.View().Container(c.ID)
	return err == nil && now.Name == name
}

// granted has a node use a name that the catalog gave to a container. There it may be
// another one's still, whose own renaming or removal the node is about to hear of.
func granted(ctx context.Context, use func() error) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for {
		err := use()
		if !listing.IsNameTaken(err) || ctx.Err() != nil {
			return err
		}
		pause(ctx, takenRetry)
	}
}

// RemoveContainer implements api.Containers.
func (r *Router) RemoveContainer(ctx context.Context, id string, o api.RemoveOptions) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		err := e.RemoveContainer(ctx, c.ID, o)
		if errdefs.IsNotFound(err) && c.State == "" && r.await(ctx, madeLimit, made(c.ID)) {
			// It was being made.
			err = e.RemoveContainer(ctx, c.ID, o)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		// A container that only the catalog knows goes all the same.
		if err := r.forget(ctx, c.ID); err != nil || !o.Volumes {
			return err
		}
		r.await(ctx, settle, r.withoutVolumes(c.NodeID, anonymous(r.reader.View(), c)))
		return nil
	})
}

// made says whether a claim has become a container, or nothing.
func made(id string) func(catalog.View) bool {
	return func(v catalog.View) bool {
		c, err := v.Container(id)
		return err != nil || c.State != ""
	}
}

func (r *Router) forget(ctx context.Context, id string) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, err := r.store.Propose(ctx, catalog.RemoveContainer{ID: id})
	return err
}

// PruneContainers implements api.Containers: every reachable node prunes its own.
func (r *Router) PruneContainers(ctx context.Context, f api.Filters) (container.PruneReport, error) {
	var mu sync.Mutex
	report := container.PruneReport{ContainersDeleted: []string{}}
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.PruneContainers(ctx, f)
		if err != nil {
			return err
		}
		for _, id := range part.ContainersDeleted {
			if err := r.forget(ctx, id); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		report.ContainersDeleted = append(report.ContainersDeleted, part.ContainersDeleted...)
		report.SpaceReclaimed += part.SpaceReclaimed
		return nil
	})
	slices.Sort(report.ContainersDeleted)
	return report, err
}

// everywhere calls all reachable nodes at once. A node that went away meanwhile is
// left out, unless it was the only one.
func (r *Router) everywhere(ctx context.Context, do func(node) error) error {
	nodes := r.engines(ctx, r.alive(r.reader.View()))
	errs := make([]error, len(nodes))
	var tasks sync.WaitGroup
	for i, n := range nodes {
		tasks.Go(func() { errs[i] = do(n) })
	}
	tasks.Wait()
	away := 0
	for i, err := range errs {
		if errors.Is(err, errdefs.ErrUnavailable) && ctx.Err() == nil {
			away++
			r.log.Warn("node left out", "node", nodes[i].Name, "error", err)
			errs[i] = nil
		}
	}
	if away == len(nodes) {
		return api.Unavailable("no node could be reached")
	}
	return errors.Join(errs...)
}

// TopContainer implements api.Observers.
func (r *Router) TopContainer(ctx context.Context, id string, psArgs []string) (container.TopResponse, error) {
	return value(ctx, r, id, func(e api.Engine, id string) (container.TopResponse, error) {
		return e.TopContainer(ctx, id, psArgs)
	})
}

// ContainerLogs implements api.Observers.
func (r *Router) ContainerLogs(ctx context.Context, id string, o api.LogsOptions) (api.Output, error) {
	return value(ctx, r, id, func(e api.Engine, id string) (api.Output, error) { return e.ContainerLogs(ctx, id, o) })
}

// WaitContainer implements api.Observers. The answer comes once the catalog shows the
// end as well.
func (r *Router) WaitContainer(ctx context.Context, id string, cond container.WaitCondition) (api.Stream[container.WaitResponse], error) {
	var out api.Stream[container.WaitResponse]
	err := r.at(ctx, id, func(e api.Engine, c catalog.Container) error {
		s, err := e.WaitContainer(ctx, c.ID, cond)
		if err != nil {
			return err
		}
		out = s
		ended := func(now catalog.Container) bool {
			return cond != container.WaitConditionRemoved && !now.Finished.Equal(c.Finished)
		}
		if cond == container.WaitConditionNextExit || cond == container.WaitConditionRemoved || catalog.Live(c.State) {
			out = settling[container.WaitResponse]{s, func() { r.seen(ctx, c.ID, ended) }}
		}
		return nil
	})
	return out, err
}

// settling waits for the catalog before it gives out a value.
type settling[T any] struct {
	api.Stream[T]
	settle func()
}

func (s settling[T]) Recv() (T, error) {
	v, err := s.Stream.Recv()
	if err == nil {
		s.settle()
	}
	return v, err
}

// InspectContainer implements api.Observers.
func (r *Router) InspectContainer(ctx context.Context, id string, o api.InspectOptions) (container.InspectResponse, error) {
	return value(ctx, r, id, func(e api.Engine, id string) (container.InspectResponse, error) {
		return e.InspectContainer(ctx, id, o)
	})
}

// AttachContainer implements api.Terminals.
func (r *Router) AttachContainer(ctx context.Context, id string, o api.AttachOptions) (api.Session, error) {
	return value(ctx, r, id, func(e api.Engine, id string) (api.Session, error) { return e.AttachContainer(ctx, id, o) })
}

// ResizeContainer implements api.Terminals.
func (r *Router) ResizeContainer(ctx context.Context, id string, s api.TerminalSize) error {
	return r.at(ctx, id, func(e api.Engine, c catalog.Container) error { return e.ResizeContainer(ctx, c.ID, s) })
}

// CreateExec implements api.Execs.
func (r *Router) CreateExec(ctx context.Context, id string, o container.ExecCreateRequest) (container.ExecCreateResponse, error) {
	return value(ctx, r, id, func(e api.Engine, id string) (container.ExecCreateResponse, error) {
		return e.CreateExec(ctx, id, o)
	})
}

// StartExec implements api.Execs.
func (r *Router) StartExec(ctx context.Context, execID string, o api.ExecStartOptions) (api.Session, error) {
	return exec(ctx, r, execID, func(e api.Engine) (api.Session, error) { return e.StartExec(ctx, execID, o) })
}

// ResizeExec implements api.Execs.
func (r *Router) ResizeExec(ctx context.Context, execID string, s api.TerminalSize) error {
	_, err := exec(ctx, r, execID, func(e api.Engine) (struct{}, error) {
		return struct{}{}, e.ResizeExec(ctx, execID, s)
	})
	return err
}

// InspectExec implements api.Execs.
func (r *Router) InspectExec(ctx context.Context, execID string) (container.ExecInspectResponse, error) {
	return exec(ctx, r, execID, func(e api.Engine) (container.ExecInspectResponse, error) {
		return e.InspectExec(ctx, execID)
	})
}

// exec passes a call on to the node of an exec's container.
func exec[T any](ctx context.Context, r *Router, execID string, do func(api.Engine) (T, error)) (T, error) {
	var none T
	owner, err := execOwner(execID)
	if err != nil {
		return none, err
	}
	out, err := value(ctx, r, owner, func(e api.Engine, _ string) (T, error) { return do(e) })
	return out, noSuchExec(execID, err)
}

// SetContainerTags edits a container's tags and returns all of them.
func (r *Router) SetContainerTags(ctx context.Context, ref string, set map[string]string, remove []string) (map[string]string, error) {
	c, err := r.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(set)+len(remove) > 0 {
		if _, err := r.store.Propose(ctx, catalog.ContainerTags{ID: c.ID, Set: set, Remove: remove}); err != nil {
			return nil, err
		}
	}
	c, err = r.reader.View().Container(c.ID)
	return c.Tags, err
}

// SetNodeTags edits a node's tags and returns all of them.
func (r *Router) SetNodeTags(ctx context.Context, ref string, set map[string]string, remove []string) (map[string]string, error) {
	n, ok := r.reader.View().Node(ref)
	if !ok {
		r.sync(ctx, missSync)
		if n, ok = r.reader.View().Node(ref); !ok {
			return nil, noSuchNode(ref)
		}
	}
	if len(set)+len(remove) > 0 {
		if _, err := r.store.Propose(ctx, catalog.NodeTags{ID: n.ID, Set: set, Remove: remove}); err != nil {
			return nil, err
		}
		n, _ = r.reader.View().Node(n.ID)
	}
	return n.Tags, nil
}

func noSuchNode(ref string) error { return api.NotFound("node %s not found", ref) }
