package apitest

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// fakeContainer is guarded by the engine's lock.
type fakeContainer struct {
	f                 *Fake
	id, name          string
	config            container.Config // with what the image adds
	imageName         string
	image             digest.Digest
	files             map[string]int64
	host              container.HostConfig
	mounts            []container.MountPoint
	anonymous         []string // names of volumes that were made for it alone
	networking        network.NetworkingConfig
	created           time.Time
	started, finished time.Time
	state             container.ContainerState
	exitCode          int
	failure           string
	pid               int
	console           *console
	kill              context.CancelCauseFunc // of the running process
	exited            chan struct{}           // closed when the running process ended, replaced at start
	nextExit          chan struct{}           // closed at the next exit, then replaced
	removed           chan struct{}           // closed once it is forgotten
	execs             []string
}

func (c *fakeContainer) running() bool {
	return c.state == container.StateRunning || c.state == container.StatePaused
}

func (c *fakeContainer) emit(action events.Action, more ...string) {
	attributes := maps.Clone(c.config.Labels)
	if attributes == nil {
		attributes = map[string]string{}
	}
	attributes["image"], attributes["name"] = c.imageName, c.name
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	c.f.emit(events.ContainerEventType, action, c.id, attributes)
}

func (c *fakeContainer) argv() []string {
	return slices.Concat(c.config.Entrypoint, c.config.Cmd)
}

// start runs the process. The lock is held.
func (c *fakeContainer) start() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := c.process(ctx, c.config.Env)
	if err := p.find(c.argv()[0]); err != nil {
		cancel(nil)
		var s *startError
		if errors.As(err, &s) {
			c.exitCode, c.failure = s.code, s.text
		}
		if c.host.AutoRemove {
			c.forget()
			c.unmount()
		}
		return err
	}
	c.f.pids++
	c.state, c.started, c.finished, c.exitCode, c.failure = container.StateRunning, time.Now(), time.Time{}, 0, ""
	c.pid, c.kill, c.exited = c.f.pids, cancel, make(chan struct{})
	c.emit(events.ActionStart)
	go func() {
		code, err := p.run(ctx, c.argv())
		c.end(exitCode(code, err))
		cancel(nil)
	}()
	return nil
}

// exitCode is what a parent learns of how a process ended.
func exitCode(code int, err error) int {
	var s killSignal
	if errors.As(err, &s) {
		return 128 + int(s)
	}
	return code
}

func (c *fakeContainer) process(ctx context.Context, env []string) *process {
	p := &process{
		stdin:  contextReader{ctx, c.console.stdin},
		stdout: consoleWriter{c.console, 1}, stderr: consoleWriter{c.console, 2},
		env: map[string]string{"HOSTNAME": c.config.Hostname, "HOME": "/root"}, files: c.files,
	}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		p.env[k] = v
	}
	return p
}

// end takes note of the end of the process.
func (c *fakeContainer) end(code int) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.state, c.exitCode, c.finished, c.pid = container.StateExited, code, time.Now(), 0
	c.console.finish() // now that who sees the end of output sees the exit code
	for _, id := range c.execs {
		c.f.execs[id].kill(killed)
	}
	c.console.reopen()
	c.emit(events.ActionDie, "exitCode", strconv.Itoa(code))
	close(c.exited)
	close(c.nextExit)
	c.nextExit = make(chan struct{})
	if c.host.AutoRemove {
		c.forget()
		c.unmount()
	}
}

// forget removes a container that doesn't run. The lock is held.
func (c *fakeContainer) forget() {
	f := c.f
	if f.containers[c.id] == nil {
		return
	}
	delete(f.containers, c.id)
	delete(f.names, c.name)
	f.order = slices.DeleteFunc(f.order, func(id string) bool { return id == c.id })
	for _, id := range c.execs {
		delete(f.execs, id)
	}
	c.emit(events.ActionDestroy)
	close(c.removed)
}

// endpoints is what inspection says about networks.
func (c *fakeContainer) endpoints() map[string]*network.EndpointSettings {
	name := string(c.host.NetworkMode)
	if name == "" || name == network.NetworkDefault {
		name = network.NetworkBridge
	}
	e := &network.EndpointSettings{}
	for _, n := range c.f.networks() {
		if n.Name == name {
			e.NetworkID = n.ID
		}
	}
	if c.running() && name == network.NetworkBridge {
		e.IPAddress = netip.AddrFrom4([4]byte{172, 17, byte(c.pid >> 8), byte(c.pid)})
		e.Gateway, e.IPPrefixLen = netip.AddrFrom4([4]byte{172, 17, 0, 1}), 16
	}
	return map[string]*network.EndpointSettings{name: e}
}

func (c *fakeContainer) command() string {
	parts := c.argv()
	for i, p := range parts {
		if i > 0 && strings.ContainsAny(p, " '\"") {
			parts[i] = "'" + strings.ReplaceAll(p, "'", `'\''`) + "'"
		}
	}
	return strings.Join(parts, " ")
}

// notRunning is Docker's error for what needs a process.
func (c *fakeContainer) notRunning() error { return api.Conflict("container %s is not running", c.id) }
