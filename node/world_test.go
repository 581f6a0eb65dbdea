package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	nodeimage "github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/jsonlog"
)

// world is all that outlives an agent, in memory: mounts, endpoints, processes.
// Agents reach it through handles, each of which can be made to die at any of its
// calls: then that call and all later ones of the handle hang.
type world struct {
	dir string

	mu        sync.Mutex
	prepared  map[string]bool
	mounted   map[string]bool
	endpoints map[string]network.Endpoint
	tasks     map[string]*fakeTask
	ports     map[uint16]string
	fail      map[string]error // by the name of the call
}

func newWorld(t testing.TB) *world {
	return &world{
		dir: t.TempDir(), prepared: map[string]bool{}, mounted: map[string]bool{},
		endpoints: map[string]network.Endpoint{}, tasks: map[string]*fakeTask{}, ports: map[uint16]string{},
		fail: map[string]error{},
	}
}

// leftovers are the containers that something in the world is about.
func (w *world) leftovers() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]bool{}
	for _, m := range []map[string]bool{w.prepared, w.mounted} {
		for id := range m {
			all[id] = true
		}
	}
	for id := range w.endpoints {
		all[id] = true
	}
	for id := range w.tasks {
		all[id] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// busy are the containers that are mounted, connected or have a task.
func (w *world) busy() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]bool{}
	for id := range w.mounted {
		all[id] = true
	}
	for id := range w.endpoints {
		all[id] = true
	}
	for id := range w.tasks {
		all[id] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// handle is one agent's way to the world.
type handle struct {
	*world
	calls   int
	dieAt   int           // the step at which the agent dies; 0 never
	died    chan struct{} // closed then
	release chan struct{} // closed: hung calls return
}

func (w *world) handle(dieAt int) *handle {
	return &handle{world: w, dieAt: dieAt, died: make(chan struct{}), release: make(chan struct{})}
}

var errDead = errors.New("the agent is dead")

// call does something unless the agent dies before or right after.
func (h *handle) call(name string, f func() error) error {
	if err := h.step(); err != nil {
		return err
	}
	h.mu.Lock()
	err := h.fail[name]
	if err == nil {
		err = f()
	}
	h.mu.Unlock()
	if dead := h.step(); dead != nil {
		return dead
	}
	return err
}

func (h *handle) step() error {
	h.mu.Lock()
	h.calls++
	n := h.calls
	h.mu.Unlock()
	if h.dieAt == 0 || n < h.dieAt {
		return nil
	}
	if n == h.dieAt {
		close(h.died)
	}
	<-h.release
	return errDead
}

// images

type fakeImages struct{ *handle }

var testImage = nodeimage.Image{
	ID:       digest.FromString("busybox"),
	Platform: ocispec.Platform{OS: "linux", Architecture: probeHost().arch},
	Tags:     []string{"busybox:latest"},
	Size:     1000,
	Config: dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{
		Cmd: []string{"forever"}, Env: []string{"PATH=/bin", "FROM=image"}, Labels: map[string]string{"of": "image"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, WorkingDir: "/srv",
	}},
}

func (f fakeImages) Get(_ context.Context, ref string) (nodeimage.Image, error) {
	if ref == "busybox" || ref == "busybox:latest" || ref == testImage.ID.String() {
		return testImage, nil
	}
	return nodeimage.Image{}, listing.NoSuchImage(ref)
}

func (f fakeImages) List(context.Context) ([]nodeimage.Image, error) {
	return []nodeimage.Image{testImage}, nil
}

func (f fakeImages) History(context.Context, string) ([]image.HistoryResponseItem, error) {
	return nil, nil
}
func (f fakeImages) Tag(context.Context, string, string) error { return nil }

func (f fakeImages) Remove(_ context.Context, ref string, _ api.ImageRemoveOptions, inUse func(digest.Digest) []string) ([]image.DeleteResponse, error) {
	if users := inUse(testImage.ID); len(users) > 0 {
		return nil, api.Conflict("image is being used by container %s", users[0])
	}
	return []image.DeleteResponse{{Untagged: ref}}, nil
}

func (f fakeImages) Pull(context.Context, api.PullOptions) (api.Stream[api.Progress], error) {
	return nil, api.Unavailable("no registry")
}

func (f fakeImages) Push(context.Context, api.PushOptions) (api.Stream[api.Progress], error) {
	return nil, api.NotImplemented("no registries")
}

func (f fakeImages) Login(context.Context, registry.AuthConfig) (registry.AuthResponse, error) {
	return registry.AuthResponse{}, api.NotImplemented("no registries")
}

func (f fakeImages) Distribution(context.Context, string, registry.AuthConfig) (registry.DistributionInspect, error) {
	return registry.DistributionInspect{}, api.NotImplemented("no registries")
}

func (f fakeImages) Load(context.Context, io.Reader, api.LoadOptions) (api.Stream[api.Progress], error) {
	return nil, api.Unavailable("no store")
}

func (f fakeImages) Import(context.Context, io.Reader, api.ImportOptions) (api.Stream[api.Progress], error) {
	return nil, api.Unavailable("no store")
}

func (f fakeImages) Save(context.Context, []string, api.Platform) (io.ReadCloser, error) {
	return nil, api.Unavailable("no store")
}
func (f fakeImages) OnChange(func(action, id, name string)) {}

func (f fakeImages) OnTrouble(func(container string, reason error, stop bool)) {}

func (f fakeImages) Coming(_ context.Context, ref string) (nodeimage.Image, error) {
	return nodeimage.Image{}, api.NotFound("No such image: %s", ref)
}

func (f fakeImages) Prepare(_ context.Context, id string, _ digest.Digest) error {
	return f.call("Prepare", func() error { f.prepared[id] = true; return nil })
}

func (f fakeImages) Mount(_ context.Context, id string) (nodeimage.Root, error) {
	root := filepath.Join(f.dir, "rootfs")
	err := f.call("Mount", func() error {
		if !f.prepared[id] {
			return api.NotFound("container %s was not prepared", id)
		}
		f.mounted[id] = true
		return os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	})
	return nodeimage.Root{Path: root}, err
}

func (f fakeImages) Unmount(_ context.Context, id string) error {
	return f.call("Unmount", func() error { delete(f.mounted, id); return nil })
}

func (f fakeImages) Discard(_ context.Context, id string) error {
	return f.call("Discard", func() error {
		if f.mounted[id] {
			return errors.New("still mounted")
		}
		delete(f.prepared, id)
		return nil
	})
}
func (f fakeImages) Usage(context.Context, string) (int64, error) { return 7, nil }

// network

type fakeNetwork struct{ *handle }

func (f fakeNetwork) Connect(_ context.Context, r network.Request) (network.Endpoint, error) {
	e := network.Endpoint{
		NetworkID: strings.Repeat("b", 64), EndpointID: strings.Repeat("e", 64), NetnsPath: "/run/netns/" + r.ContainerID[:12],
		Address: netip.MustParsePrefix("10.1.0.2/24"), Gateway: netip.MustParseAddr("10.1.0.1"),
	}
	err := f.call("Connect", func() error {
		for _, p := range r.Ports {
			if p.HostPort == 0 {
				p.HostPort = 32768 + uint16(len(f.ports))
			}
			if f.ports[p.HostPort] != "" {
				return api.Conflict("Bind for 0.0.0.0:%d failed: port is already allocated", p.HostPort)
			}
			e.Ports = append(e.Ports, p)
		}
		for _, p := range e.Ports {
			f.ports[p.HostPort] = r.ContainerID
		}
		f.endpoints[r.ContainerID] = e
		return nil
	})
	return e, err
}

func (f fakeNetwork) Disconnect(_ context.Context, id string) error {
	return f.call("Disconnect", func() error {
		delete(f.endpoints, id)
		maps.DeleteFunc(f.ports, func(_ uint16, owner string) bool { return owner == id })
		return nil
	})
}

func (f fakeNetwork) Endpoint(id string) (network.Endpoint, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.endpoints[id]
	return e, ok
}

func (f fakeNetwork) Info() network.Info {
	return network.Info{ID: strings.Repeat("b", 64), Bridge: "br", Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1"), MTU: 1500}
}

// runtime

type fakeRuntime struct{ *handle }

// fakeTask is a process that does what its first argument says: "say TEXT…"
// writes and ends, "exit N" ends, "forever" waits for a signal, "stubborn" for
// SIGKILL, "missing" can't be executed.
type fakeTask struct {
	w      *world
	id     string
	bundle runtime.Bundle

	mu     sync.Mutex
	status runtime.Status
	over   chan struct{}
	gone   chan struct{}
}

func (f fakeRuntime) Create(_ context.Context, id string, b runtime.Bundle) (runtime.Task, error) {
	t := &fakeTask{w: f.world, id: id, bundle: b, status: runtime.Status{State: runtime.Created}, over: make(chan struct{}), gone: make(chan struct{})}
	err := f.call("Create", func() error {
		if f.tasks[id] != nil {
			return api.Conflict("container %s exists", id)
		}
		f.tasks[id] = t
		return nil
	})
	if err != nil {
		return nil, err
	}
	return taskHandle{t, f.handle}, nil
}

func (f fakeRuntime) Load(_ context.Context, id string) (runtime.Task, error) {
	var t *fakeTask
	err := f.call("Load", func() error {
		if t = f.tasks[id]; t == nil {
			return api.NotFound("no task %s", id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return taskHandle{t, f.handle}, nil
}

func (f fakeRuntime) List(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.tasks)), nil
}

// taskHandle is a task as one agent reaches it.
type taskHandle struct {
	t *fakeTask
	h *handle
}

func (t taskHandle) ID() string { return t.t.id }

func (t taskHandle) Start(context.Context) error {
	return t.h.call("Start", func() error {
		args := t.t.bundle.Spec.Process.Args
		if args[0] == "missing" {
			return &runtime.ExecError{Code: 127, Text: `exec: "missing": executable file not found in $PATH`}
		}
		t.t.mu.Lock()
		t.t.status = runtime.Status{State: runtime.Running, Pid: os.Getpid(), StartedAt: time.Now()}
		t.t.mu.Unlock()
		switch args[0] {
		case "say":
			t.t.write(strings.Join(args[1:], " ") + "\n")
			t.t.end(0)
		case "exit":
			code, err := strconv.Atoi(args[1])
			if err != nil {
				return err
			}
			t.t.end(code)
		}
		return nil
	})
}

func (t *fakeTask) write(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bundle.LogPath != "" {
		w, err := jsonlog.NewWriter(t.bundle.LogPath, 0, 1)
		if err != nil {
			panic(err)
		}
		if err := errors.Join(w.Append(jsonlog.Stdout, []byte(text), time.Now()), w.Close()); err != nil {
			panic(err)
		}
	}
}

// end ends the process, once.
func (t *fakeTask) end(code int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status.State == runtime.Stopped {
		return
	}
	t.status.State = runtime.Stopped
	t.status.Exit = runtime.Exit{Code: code, At: time.Now()}
	close(t.over)
}

func (t taskHandle) Status(context.Context) (runtime.Status, error) {
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	return t.t.status, nil
}

func (t taskHandle) Wait(ctx context.Context) (runtime.Exit, error) {
	select {
	case <-t.t.over:
		t.t.mu.Lock()
		defer t.t.mu.Unlock()
		return t.t.status.Exit, nil
	case <-t.t.gone:
		return runtime.Exit{}, api.NotFound("deleted")
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (t taskHandle) Signal(_ context.Context, sig int) error {
	if s, _ := t.Status(context.Background()); s.State != runtime.Running && s.State != runtime.Paused {
		return api.Conflict("not running")
	}
	if sig == 9 || sig == 15 && t.t.bundle.Spec.Process.Args[0] != "stubborn" {
		t.t.end(128 + sig)
	}
	return nil
}

func (t taskHandle) setState(from, to runtime.State) error {
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	if t.t.status.State != from {
		return api.Conflict("task is %s", t.t.status.State)
	}
	t.t.status.State = to
	return nil
}

func (t taskHandle) Pause(context.Context) error  { return t.setState(runtime.Running, runtime.Paused) }
func (t taskHandle) Resume(context.Context) error { return t.setState(runtime.Paused, runtime.Running) }

func (t taskHandle) Resize(context.Context, api.TerminalSize) error { return nil }

func (t taskHandle) Attach(context.Context, runtime.Streams) (api.Session, error) {
	return api.Session{Duplex: &said{text: []byte("attached in state " + string(t.t.status.State))}}, nil
}

func (t taskHandle) Exec(context.Context, string, runtime.Process) (runtime.Exec, error) {
	return nil, &runtime.ExecError{Code: 126, Text: "permission denied"}
}

func (t taskHandle) Pids(context.Context) ([]int, error) { return []int{os.Getpid()}, nil }

func (t taskHandle) Delete(context.Context) error {
	return t.h.call("Delete", func() error {
		if t.h.tasks[t.t.id] == t.t {
			delete(t.h.tasks, t.t.id)
			t.t.end(137)
			close(t.t.gone)
		}
		return nil
	})
}

// agents

type agent struct {
	*Node
	h    *handle
	kill func() // ends the agent at once: what it does afterwards is no more seen
}

// boot runs an agent over the world.
func (w *world) boot(t testing.TB, h *handle) *agent {
	t.Helper()
	n, err := New(Config{
		Root: filepath.Join(w.dir, "root"), Name: "host1", Version: "test",
		Images: fakeImages{h}, Network: fakeNetwork{h}, Runtime: fakeRuntime{h},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stopped := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		select {
		case <-h.release:
		default:
			close(h.release)
		}
		stopped()
	})
	return &agent{Node: n, h: h, kill: stopped}
}

// create makes a container of a command.
func (a *agent) create(t testing.TB, name string, host *container.HostConfig, cmd ...string) string {
	t.Helper()
	r, err := a.CreateContainer(t.Context(), api.CreateOptions{
		Name: name, Config: &container.Config{Image: "busybox", Cmd: cmd}, HostConfig: host,
	})
	require.NoError(t, err)
	return r.ID
}

// state waits until a container's state is as wanted.
func (a *agent) state(t testing.TB, id string, want container.ContainerState) container.InspectResponse {
	t.Helper()
	var i container.InspectResponse
	require.Eventually(t, func() bool {
		var err error
		i, err = a.InspectContainer(context.Background(), id, api.InspectOptions{})
		return err == nil && i.State.Status == want
	}, time.Minute, time.Millisecond, "state %s", want)
	return i
}

func (a *agent) start(t testing.TB, id string) {
	t.Helper()
	require.NoError(t, a.StartContainer(t.Context(), id, api.StartOptions{}))
}
