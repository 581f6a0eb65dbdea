package apitest

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// Fake is an engine in memory. Its containers are goroutines that understand sh
// -c, echo, cat, sleep, true, false and exit, and its networks are names. It
// keeps the contract otherwise, so that what stands on an engine can be tested
// without one.
type Fake struct {
	name string

	mu         sync.Mutex // guards all below
	random     *rand.Rand
	containers map[string]*fakeContainer
	order      []string // IDs, oldest first
	names      map[string]string
	images     map[digest.Digest]*fakeImage
	tags       map[string]digest.Digest // by full reference
	execs      map[string]*fakeExec
	volumes    map[string]volume.Volume
	remote     map[string][]byte // archives that can be pulled, by full reference
	history    []events.Message
	happened   chan struct{} // closed and replaced at every event
	pids       int
}

var _ api.Engine = (*Fake)(nil)

// NewFake makes an empty engine. The name is its host's; the seed decides IDs and
// names.
func NewFake(name string, seed uint64) *Fake {
	return &Fake{
		name:       name,
		random:     rand.New(rand.NewPCG(seed, 0)),
		containers: map[string]*fakeContainer{}, names: map[string]string{},
		images: map[digest.Digest]*fakeImage{}, tags: map[string]digest.Digest{},
		execs: map[string]*fakeExec{}, volumes: map[string]volume.Volume{}, remote: map[string][]byte{}, happened: make(chan struct{}),
		pids: 100,
	}
}

// Serve lets ref be pulled: it is what the archive's first image becomes.
func (f *Fake) Serve(ref string, archive []byte) error {
	full, err := fullRef(ref)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remote[full] = archive
	return nil
}

// Close kills every container and waits for the last.
func (f *Fake) Close() error {
	f.mu.Lock()
	var left []<-chan struct{}
	for _, c := range f.containers {
		if c.running() {
			c.kill(killed)
			left = append(left, c.exited)
		}
	}
	f.mu.Unlock()
	for _, exited := range left {
		<-exited
	}
	return nil
}

// newID is 64 hexadecimal digits. The lock is held.
func (f *Fake) newID() string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(f.random.UintN(256))
	}
	return hex.EncodeToString(b)
}

// find looks a container up. The lock is held.
func (f *Fake) find(ref string) (*fakeContainer, error) {
	id, err := listing.Resolve(ref, func(yield func(id, name string) bool) {
		for id, c := range f.containers {
			if !yield(id, c.name) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return f.containers[id], nil
}

// emit records an event and wakes who follows. The lock is held.
func (f *Fake) emit(t events.Type, action events.Action, id string, attributes map[string]string) {
	now := time.Now()
	f.history = append(f.history, events.Message{
		Type: t, Action: action, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: events.Actor{ID: id, Attributes: attributes},
	})
	close(f.happened)
	f.happened = make(chan struct{})
}

// Events implements api.System.
func (f *Fake) Events(ctx context.Context, o api.EventsOptions) (api.Stream[events.Message], error) {
	f.mu.Lock()
	next := len(f.history)
	if !o.Since.IsZero() {
		next = 0
	}
	f.mu.Unlock()
	s, send, finish := api.Pipe[events.Message](ctx)
	go func() { finish(f.follow(ctx, o, next, send)) }()
	return s, nil
}

// follow sends events from a position on.
func (f *Fake) follow(ctx context.Context, o api.EventsOptions, next int, send func(events.Message) error) error {
	var late <-chan time.Time
	if !o.Until.IsZero() {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		late = t.C
	}
	for {
		f.mu.Lock()
		fresh, happened := f.history[next:], f.happened
		next = len(f.history)
		f.mu.Unlock()
		for _, m := range fresh {
			at := time.Unix(0, m.TimeNano)
			if at.Before(o.Since) || !o.Until.IsZero() && at.After(o.Until) || !listing.EventMatches(o.Filters, m) {
				continue
			}
			if err := send(m); err != nil {
				return err
			}
		}
		select {
		case <-happened:
		case <-late:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Ping implements api.System.
func (f *Fake) Ping(ctx context.Context) (api.Ping, error) {
	return api.Ping{APIVersion: "1.56", MinAPIVersion: "1.40", OSType: "linux", BuilderVersion: "1", Swarm: "inactive"}, ctx.Err()
}

// Version implements api.System.
func (f *Fake) Version(ctx context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Fake"}, Version: "0.0.0-fake", APIVersion: "1.56", MinAPIVersion: "1.40",
		Os: "linux", Arch: runtime.GOARCH, GoVersion: runtime.Version(), KernelVersion: "0.0.0-fake",
	}, ctx.Err()
}

// Info implements api.System.
func (f *Fake) Info(ctx context.Context) (system.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := system.Info{
		ID: f.name, Name: f.name, Containers: len(f.containers), Images: len(f.images), Driver: "fake",
		OSType: "linux", OperatingSystem: "Fake", Architecture: runtime.GOARCH, NCPU: runtime.NumCPU(),
		ServerVersion: "0.0.0-fake", KernelVersion: "0.0.0-fake", LoggingDriver: "json-file", CgroupVersion: "2",
		DefaultRuntime: "fake", SystemTime: time.Now().Format(time.RFC3339Nano),
	}
	for _, c := range f.containers {
		switch {
		case c.state == container.StatePaused:
			i.ContainersPaused++
		case c.running():
			i.ContainersRunning++
		default:
			i.ContainersStopped++
		}
	}
	return i, ctx.Err()
}

// networks are the three that every engine has.
func (f *Fake) networks() []network.Inspect {
	var all []network.Inspect
	for _, name := range []string{"bridge", "host", "none"} {
		driver := name
		if name == "none" {
			driver = "null"
		}
		all = append(all, network.Inspect{Network: network.Network{
			Name: name, ID: digest.FromString(f.name + name).Encoded(), Scope: "local", Driver: driver, EnableIPv4: true,
			Created: time.Unix(0, 0).UTC(),
		}, Containers: map[string]network.EndpointResource{}})
	}
	return all
}

// ListNetworks implements api.Networks.
func (f *Fake) ListNetworks(ctx context.Context, filters api.Filters) ([]network.Inspect, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return listing.Networks(f.networks(), filters)
}

// InspectNetwork implements api.Networks.
func (f *Fake) InspectNetwork(ctx context.Context, id string, _ api.NetworkInspectOptions) (network.Inspect, error) {
	if err := ctx.Err(); err != nil {
		return network.Inspect{}, err
	}
	for _, n := range f.networks() {
		if n.Name == id || n.ID == id || len(id) > 3 && strings.HasPrefix(n.ID, id) {
			return n, nil
		}
	}
	return network.Inspect{}, api.NotFound("network %s not found", id)
}

// killSignal is what ended a process.
type killSignal int

const killed killSignal = 9

func (s killSignal) Error() string { return fmt.Sprintf("signal %d", int(s)) }
