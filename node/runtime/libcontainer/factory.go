package libcontainer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"

	_ "github.com/opencontainers/cgroups/devices" // device rules, which containers can't do without
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	_ "github.com/shoal-engine/shoal/node/runtime/libcontainer/reexec" // what runs inside
)

// Errors of this package that callers tell apart.
var (
	ErrExists     = libcontainer.ErrExist
	ErrNotExist   = libcontainer.ErrNotExist
	ErrInvalidID  = libcontainer.ErrInvalidID
	ErrNotRunning = libcontainer.ErrNotRunning
)

// ExecError says that a process was not started because its command can't be
// executed. Code is the exit code Docker gives for the reason, Text the reason.
type ExecError struct {
	Code int
	Text string
}

func (e *ExecError) Error() string { return e.Text }

// Factory makes containers. Its methods may be called concurrently.
type Factory struct {
	// Root is where libcontainer keeps a directory per container.
	Root string
	// CgroupParent holds the cgroups of containers that name none.
	CgroupParent string
	Logger       *slog.Logger

	// starting is held for reading while children are forked that are not in pids
	// yet, and for writing while unknown children are reaped.
	starting sync.RWMutex
	mu       sync.Mutex
	pids     map[int]bool // our children that somebody waits for
	filters  filters
}

// Stdio is what a process gets: files, which remain the caller's, or nil for
// /dev/null; or a terminal of a size.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	Terminal              bool
	Height, Width         uint16
}

// Container is one that was made. Its methods may be called concurrently.
type Container struct {
	factory *Factory
	lc      *libcontainer.Container
	init    *Process
}

// Create makes a container whose first process waits for Start. An *ExecError
// says that its command can't be executed. Nothing is left after an error.
func (f *Factory) Create(id string, spec *specs.Spec, o Stdio) (*Container, error) {
	if spec.Linux == nil || spec.Process == nil || spec.Root == nil {
		return nil, errors.New("the spec lacks linux, process or root")
	}
	if spec.Linux.Seccomp != nil && !SeccompEnabled() {
		return nil, ErrNoSeccomp
	}
	spec = f.possible(id, spec)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id,
		Spec:       spec,
	})
	if err != nil {
		return nil, fmt.Errorf("convert spec: %w", err)
	}
	if config.Seccomp, err = f.filters.precompile(config.Seccomp); err != nil {
		return nil, err
	}
	lc, err := libcontainer.Create(f.Root, id, config)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	c := &Container{factory: f, lc: lc}
	if c.init, err = c.start(spec.Process, o, true); err != nil {
		if dErr := lc.Destroy(); dErr != nil {
			f.Logger.Warn("container not removed after it failed to start", "id", id, "err", dErr)
		}
		return nil, err
	}
	return c, nil
}

// possible copies a spec with what this host refuses replaced by what comes
// closest, and with a cgroup's path.
func (f *Factory) possible(id string, spec *specs.Spec) *specs.Spec {
	s, linux := *spec, *spec.Linux
	if linux.CgroupsPath == "" {
		linux.CgroupsPath = path.Join("/", f.CgroupParent, id)
	}
	s.Linux = &linux
	s.Process = f.possibleProcess(id, spec.Process)
	return &s
}

// Load finds a container that another process made and that still runs. Its
// first process is not our child.
func (f *Factory) Load(id string) (*Container, error) {
	lc, err := libcontainer.Load(f.Root, id)
	if err != nil {
		return nil, err
	}
	state, err := lc.State()
	if err != nil {
		return nil, err
	}
	p, err := openPid(state.InitProcessPid)
	if err != nil {
		return nil, err
	}
	// Asked after opening: the number may have passed on to another process.
	if status, err := lc.Status(); err != nil || status == libcontainer.Stopped {
		return nil, errors.Join(ErrNotRunning, err, p.Close())
	}
	return &Container{factory: f, lc: lc, init: &Process{factory: f, pid: state.InitProcessPid, pidfd: p}}, nil
}

// Discard removes what is left of a container that runs no more.
func (f *Factory) Discard(id string) error {
	lc, err := libcontainer.Load(f.Root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return lc.Destroy()
}

// RemoveParent removes the cgroup that holds those of the containers, once there
// are none.
func (f *Factory) RemoveParent() error {
	name := path.Join("/", f.CgroupParent)
	v1, err := filepath.Glob("/sys/fs/cgroup/*" + name)
	if err != nil {
		return err
	}
	for _, dir := range append(v1, "/sys/fs/cgroup"+name) {
		if rErr := os.Remove(dir); rErr != nil && !errors.Is(rErr, os.ErrNotExist) {
			err = errors.Join(err, rErr)
		}
	}
	return err
}

// Init is the container's first process.
func (c *Container) Init() *Process { return c.init }

// Start lets the first process go on to its command.
func (c *Container) Start() error { return c.lc.Exec() }

// Exec starts a further process. An *ExecError says that its command can't be
// executed.
func (c *Container) Exec(p *specs.Process, o Stdio) (*Process, error) {
	return c.start(c.factory.possibleProcess(c.lc.ID(), p), o, false)
}

// Signal sends a signal to the first process. SIGKILL reaches all processes, also
// if the container is paused.
func (c *Container) Signal(sig os.Signal) error { return c.lc.Signal(sig) }

// Pause stops all processes where they are.
func (c *Container) Pause() error { return c.lc.Pause() }

// Resume lets them go on.
func (c *Container) Resume() error { return c.lc.Resume() }

// Pids lists all processes.
func (c *Container) Pids() ([]int, error) { return c.lc.Processes() }

// OOMKilled says whether a process was killed for lack of memory.
func (c *Container) OOMKilled() bool {
	state, err := c.lc.State()
	if err != nil {
		return false
	}
	var kills uint64
	if dir, ok := state.CgroupPaths["memory"]; ok {
		kills, err = fs.OOMKillCount(dir)
	} else {
		kills, err = fs2.OOMKillCount(state.CgroupPaths[""])
	}
	return err == nil && kills > 0
}

// Destroy removes what is left of a container whose first process has ended.
func (c *Container) Destroy() error { return c.lc.Destroy() }
