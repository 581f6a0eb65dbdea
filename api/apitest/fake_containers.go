package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// CreateContainer implements api.Containers.
func (f *Fake) CreateContainer(ctx context.Context, o api.CreateOptions) (container.CreateResponse, error) {
	none := container.CreateResponse{}
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if o.Config == nil {
		return none, api.InvalidArgument("config cannot be empty in order to create a container")
	}
	if o.Name != "" {
		if err := listing.ValidateName(o.Name); err != nil {
			return none, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	image, err := f.findImage(o.Config.Image)
	if err != nil {
		return none, err
	}
	for taken := false; o.Name == "" || taken; taken = f.names[o.Name] != "" {
		o.Name = listing.RandomName(f.random, taken)
	}
	o.Name = strings.TrimPrefix(o.Name, "/")
	if id := f.names[o.Name]; id != "" {
		return none, listing.NameTaken(o.Name, id)
	}
	if o.ID == "" {
		o.ID = f.newID()
	}
	if f.containers[o.ID] != nil {
		return none, api.Conflict("a container with the ID %s exists already", o.ID)
	}
	c := &fakeContainer{
		f: f, id: o.ID, name: o.Name, config: *o.Config, imageName: o.Config.Image, image: image.id, files: image.files,
		created: time.Now(), state: container.StateCreated, kill: func(error) {},
		nextExit: make(chan struct{}), removed: make(chan struct{}),
	}
	if o.HostConfig != nil {
		c.host = *o.HostConfig
	}
	if c.host.LogConfig.Type == "" {
		c.host.LogConfig.Type = "json-file"
	}
	if o.Networking != nil {
		c.networking = *o.Networking
	}
	image.complete(&c.config)
	if c.config.Hostname == "" {
		c.config.Hostname = c.id[:12]
	}
	if len(c.argv()) == 0 {
		return none, api.InvalidArgument("no command specified")
	}
	c.console = newConsole(c.config.Tty, c.config.OpenStdin, c.config.StdinOnce)
	f.containers[c.id], f.names[c.name] = c, c.id
	f.order = append(f.order, c.id)
	c.mount()
	c.emit(events.ActionCreate)
	return container.CreateResponse{ID: c.id, Warnings: []string{}}, nil
}

// with runs do on a container under the lock.
func (f *Fake) with(ctx context.Context, id string, do func(*fakeContainer) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil {
		return err
	}
	return do(c)
}

// StartContainer implements api.Containers.
func (f *Fake) StartContainer(ctx context.Context, id string, _ api.StartOptions) error {
	return f.with(ctx, id, func(c *fakeContainer) error {
		switch {
		case c.state == container.StatePaused:
			return api.Conflict("cannot start a paused container, try unpause instead")
		case c.running():
			return api.NotModified("container %s is already started", id)
		}
		return c.start()
	})
}

// StopContainer implements api.Containers.
func (f *Fake) StopContainer(ctx context.Context, id string, o api.StopOptions) error {
	var c *fakeContainer
	var exited chan struct{}
	err := f.with(ctx, id, func(found *fakeContainer) error {
		if !found.running() {
			return api.NotModified("container %s is already stopped", id)
		}
		c, exited = found, found.exited
		// What runs here has no handler for a signal, and the first process of a
		// container ignores what it doesn't handle.
		c.emit(events.ActionKill, "signal", "15")
		return nil
	})
	if err != nil {
		return err
	}
	wait := 10
	switch {
	case o.Timeout != nil:
		wait = *o.Timeout
	case c.config.StopTimeout != nil:
		wait = *c.config.StopTimeout
	}
	var late <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(time.Duration(wait) * time.Second)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-exited:
	case <-late:
	case <-ctx.Done(): // a client that leaves doesn't keep a container running
	}
	f.mu.Lock()
	c.kill(killed)
	f.mu.Unlock()
	<-exited
	f.mu.Lock()
	defer f.mu.Unlock()
	c.emit(events.ActionStop)
	return nil
}

// RestartContainer implements api.Containers.
func (f *Fake) RestartContainer(ctx context.Context, id string, o api.StopOptions) error {
	err := f.StopContainer(ctx, id, o)
	if err != nil && api.Status(err) != 304 {
		return err
	}
	return f.with(ctx, id, func(c *fakeContainer) error {
		if err := c.start(); err != nil {
			return err
		}
		c.emit(events.ActionRestart)
		return nil
	})
}

// signals are those the suite sends; a name may start with SIG.
var signals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15}

func parseSignal(s string) (int, error) {
	if s == "" {
		return 9, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	if n := signals[strings.TrimPrefix(strings.ToUpper(s), "SIG")]; n > 0 {
		return n, nil
	}
	return 0, api.InvalidArgument("invalid signal: %s", s)
}

// KillContainer implements api.Containers.
func (f *Fake) KillContainer(ctx context.Context, id, signal string) error {
	n, err := parseSignal(signal)
	if err != nil {
		return err
	}
	var exited chan struct{}
	err = f.with(ctx, id, func(c *fakeContainer) error {
		if !c.running() {
			return c.notRunning()
		}
		c.emit(events.ActionKill, "signal", strconv.Itoa(n))
		if n == int(killed) {
			exited = c.exited
			c.kill(killed)
		}
		return nil
	})
	if err == nil && exited != nil {
		<-exited
	}
	return err
}

// PauseContainer implements api.Containers.
func (f *Fake) PauseContainer(ctx context.Context, id string) error {
	return f.with(ctx, id, func(c *fakeContainer) error {
		switch {
		case c.state == container.StatePaused:
			return api.Conflict("container %s is already paused", c.id)
		case !c.running():
			return c.notRunning()
		}
		c.state = container.StatePaused
		c.emit(events.ActionPause)
		return nil
	})
}

// UnpauseContainer implements api.Containers.
func (f *Fake) UnpauseContainer(ctx context.Context, id string) error {
	return f.with(ctx, id, func(c *fakeContainer) error {
		if c.state != container.StatePaused {
			return api.Conflict("container %s is not paused", c.id)
		}
		c.state = container.StateRunning
		c.emit(events.ActionUnPause)
		return nil
	})
}

// RenameContainer implements api.Containers.
func (f *Fake) RenameContainer(ctx context.Context, id, name string) error {
	return f.with(ctx, id, func(c *fakeContainer) error {
		if name == "" {
			return api.InvalidArgument("neither old nor new names may be empty")
		}
		if err := listing.ValidateName(name); err != nil {
			return err
		}
		name = strings.TrimPrefix(name, "/")
		switch holder := f.names[name]; {
		case name == c.name:
			return api.InvalidArgument("renaming a container with the same name as its current name")
		case holder != "":
			return listing.NameTaken(name, holder)
		}
		old := c.name
		delete(f.names, old)
		c.name, f.names[name] = name, c.id
		c.emit(events.ActionRename, "oldName", "/"+old)
		return nil
	})
}

// RemoveContainer implements api.Containers.
func (f *Fake) RemoveContainer(ctx context.Context, id string, o api.RemoveOptions) error {
	var c *fakeContainer
	var exited chan struct{}
	err := f.with(ctx, id, func(found *fakeContainer) error {
		c = found
		switch {
		case !c.running():
			c.forget()
			if o.Volumes {
				c.unmount()
			}
		case !o.Force:
			return api.Conflict("cannot remove container %q: container is running: "+
				"stop the container before removing or force remove", "/"+c.name)
		default:
			exited = c.exited
			c.kill(killed)
		}
		return nil
	})
	if err != nil || exited == nil {
		return err
	}
	<-exited
	f.mu.Lock()
	defer f.mu.Unlock()
	c.forget()
	if o.Volumes {
		c.unmount()
	}
	return nil
}

// PruneContainers implements api.Containers.
func (f *Fake) PruneContainers(ctx context.Context, filters api.Filters) (container.PruneReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found, err := listing.PrunableContainers(f.summaries(), filters, time.Now())
	if err != nil {
		return container.PruneReport{}, err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, s := range found {
		f.containers[s.ID].forget()
		report.ContainersDeleted = append(report.ContainersDeleted, s.ID)
	}
	return report, ctx.Err()
}

// summaries are all containers, newest first. The lock is held.
func (f *Fake) summaries() []container.Summary {
	var all []container.Summary
	now := time.Now()
	for _, id := range slices.Backward(f.order) {
		c := f.containers[id]
		s := container.Summary{
			ID: c.id, Names: []string{"/" + c.name}, Image: c.imageName, ImageID: c.image.String(), Command: c.command(),
			Created: c.created.Unix(), Labels: c.config.Labels, State: c.state,
			Status: listing.Status(c.state, c.started, c.finished, c.exitCode, "", now),
			Ports:  []container.PortSummary{}, Mounts: slices.Clone(c.mounts),
			NetworkSettings: &container.NetworkSettingsSummary{Networks: c.endpoints()},
		}
		s.HostConfig.NetworkMode = string(c.host.NetworkMode)
		for p := range c.config.ExposedPorts {
			s.Ports = append(s.Ports, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		all = append(all, s)
	}
	return all
}

// ListContainers implements api.Observers.
func (f *Fake) ListContainers(ctx context.Context, o api.ListOptions) ([]container.Summary, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.Filters.Has("ancestor") {
		o.Filters = maps.Clone(o.Filters)
		for _, v := range o.Filters["ancestor"] {
			if image, err := f.findImage(v); err == nil {
				o.Filters["ancestor"] = append(slices.Clone(o.Filters["ancestor"]), image.id.String())
			}
		}
	}
	found, err := listing.Containers(f.summaries(), o)
	if err != nil {
		return nil, err
	}
	return found, ctx.Err()
}

// InspectContainer implements api.Observers.
func (f *Fake) InspectContainer(
	ctx context.Context, id string, _ api.InspectOptions,
) (i container.InspectResponse, err error) {
	err = f.with(ctx, id, func(c *fakeContainer) error {
		argv := c.argv()
		i = container.InspectResponse{
			ID: c.id, Name: "/" + c.name, Created: c.created.UTC().Format(time.RFC3339Nano), Path: argv[0], Args: argv[1:],
			Image: c.image.String(), Driver: "fake", Platform: "linux", Mounts: slices.Clone(c.mounts),
			ExecIDs: slices.Clone(c.execs), HostConfig: &c.host, Config: &c.config,
			NetworkSettings: &container.NetworkSettings{Ports: network.PortMap{}, Networks: c.endpoints()},
			State: &container.State{
				Status: c.state, Running: c.running(), Paused: c.state == container.StatePaused, Pid: c.pid,
				ExitCode: c.exitCode, Error: c.failure,
				StartedAt: c.started.UTC().Format(time.RFC3339Nano), FinishedAt: c.finished.UTC().Format(time.RFC3339Nano),
			},
		}
		return nil
	})
	return i, err
}

// TopContainer implements api.Observers.
func (f *Fake) TopContainer(ctx context.Context, id string, _ []string) (top container.TopResponse, err error) {
	err = f.with(ctx, id, func(c *fakeContainer) error {
		if !c.running() {
			return c.notRunning()
		}
		top.Titles = strings.Fields("UID PID PPID C STIME TTY TIME CMD")
		row := func(pid int, cmd string) {
			top.Processes = append(top.Processes, []string{"root", fmt.Sprint(pid), "1", "0", "00:00", "?", "00:00:00", cmd})
		}
		row(c.pid, c.command())
		for _, e := range c.execs {
			if x := f.execs[e]; x.running {
				row(x.pid, strings.Join(x.config.Cmd, " "))
			}
		}
		return nil
	})
	return top, err
}

// ContainerLogs implements api.Observers.
func (f *Fake) ContainerLogs(ctx context.Context, id string, o api.LogsOptions) (out api.Output, err error) {
	if !o.Stdout && !o.Stderr {
		return api.Output{}, api.InvalidArgument("You must choose at least one stream")
	}
	err = f.with(ctx, id, func(c *fakeContainer) error {
		out = c.console.logs(ctx, o, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return c.running()
		})
		return nil
	})
	return out, err
}

// WaitContainer implements api.Observers.
func (f *Fake) WaitContainer(
	ctx context.Context, id string, condition container.WaitCondition,
) (s api.Stream[container.WaitResponse], err error) {
	err = f.with(ctx, id, func(c *fakeContainer) error {
		var until chan struct{}
		switch condition {
		case container.WaitConditionRemoved:
		case container.WaitConditionNextExit:
			until = c.nextExit
		case container.WaitConditionNotRunning, "":
			until = c.nextExit
			if !c.running() {
				until = make(chan struct{})
				close(until)
			}
		default:
			return api.InvalidArgument("invalid condition: %q", string(condition))
		}
		s = api.One(ctx, func(ctx context.Context) (container.WaitResponse, error) {
			select {
			case <-until:
			case <-c.removed:
			case <-ctx.Done():
				return container.WaitResponse{}, context.Cause(ctx)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			return container.WaitResponse{StatusCode: int64(c.exitCode)}, nil
		})
		return nil
	})
	return s, err
}

// AttachContainer implements api.Terminals.
func (f *Fake) AttachContainer(ctx context.Context, id string, o api.AttachOptions) (s api.Session, err error) {
	err = f.with(ctx, id, func(c *fakeContainer) error {
		if c.state == container.StatePaused {
			return api.Conflict("container %s is paused, unpause the container before attach", id)
		}
		s = c.console.attach(ctx, o)
		c.emit(events.ActionAttach)
		return nil
	})
	return s, err
}

// ResizeContainer implements api.Terminals.
func (f *Fake) ResizeContainer(ctx context.Context, id string, _ api.TerminalSize) error {
	return f.with(ctx, id, func(c *fakeContainer) error {
		if !c.running() {
			return c.notRunning()
		}
		c.emit(events.ActionResize)
		return nil
	})
}
