package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
)

// How much of a container's ID its execs' IDs start with.
const execPrefix = 24

// maxExecs is how many ended execs of a container are remembered.
const maxExecs = 64

// exec is a further process of a container, from its creation on. It is not kept
// on disk: it ends with its container, and an agent that starts anew doesn't know
// the processes that the one before it started.
type exec struct {
	id    string
	of    *ctr
	asked container.ExecCreateRequest
	keys  []byte // detach sequence

	mu      sync.Mutex
	begun   bool // somebody starts it or has
	process runtime.Exec
	exit    *int          // nil until it ended
	started chan struct{} // closed: the process runs or could not be run
	over    chan struct{} // closed: it ended, which exit tells
}

// CreateExec implements api.Execs.
func (n *Node) CreateExec(ctx context.Context, id string, o container.ExecCreateRequest) (container.ExecCreateResponse, error) {
	none := container.ExecCreateResponse{}
	c, err := n.find(ctx, id)
	if err != nil {
		return none, err
	}
	if len(o.Cmd) == 0 {
		return none, api.InvalidArgument("no exec command specified")
	}
	r, _, err := c.executable()
	if err != nil {
		return none, err
	}
	keys, err := parseKeys(o.DetachKeys)
	if err != nil {
		return none, err
	}
	if o.User != "" {
		if _, err := lookUser(processRoot(r), o.User, nil); err != nil {
			return none, err
		}
	}
	x := &exec{
		id: c.id[:execPrefix] + newID(64-execPrefix), of: c, asked: o, keys: keys, started: make(chan struct{}), over: make(chan struct{}),
	}
	c.addExec(x)
	n.emit(r, events.ActionExecCreate+": "+events.Action(x.command()), map[string]string{"execID": x.id})
	return container.ExecCreateResponse{ID: x.id}, nil
}

func (x *exec) command() string {
	return x.asked.Cmd[0] + " " + strings.Join(x.asked.Cmd[1:], " ")
}

// executable is running, for a container that isn't paused either.
func (c *ctr) executable() (record, runtime.Task, error) {
	r, task, err := c.running()
	if err == nil && r.State.Status == container.StatePaused {
		err = api.Conflict("Container %s is paused, unpause the container before exec", c.id)
	}
	if r.State.Status == container.StateRestarting {
		err = api.Conflict("Container %s is restarting, wait until the container is running", c.id)
	}
	return r, task, err
}

// addExec remembers an exec, and forgets ended ones if there are many.
func (c *ctr) addExec(x *exec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, old := range c.execs {
		if len(c.execs) < maxExecs {
			break
		}
		old.mu.Lock()
		if old.exit != nil {
			delete(c.execs, id)
		}
		old.mu.Unlock()
	}
	c.execs[x.id] = x
}

// findExec finds an exec by its ID, whose beginning names its container.
func (n *Node) findExec(ctx context.Context, id string) (*exec, error) {
	if err := n.up(ctx); err != nil {
		return nil, err
	}
	if len(id) > execPrefix {
		if c, err := n.index.find(id[:execPrefix]); err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			if x := c.execs[id]; x != nil {
				return x, nil
			}
		}
	}
	return nil, api.NotFound("No such exec instance: %s", id)
}

// processRoot is the root file system as the container's first process sees it.
func processRoot(r record) string { return fmt.Sprintf("/proc/%d/root", r.State.Pid) }

// StartExec implements api.Execs.
func (n *Node) StartExec(ctx context.Context, id string, o api.ExecStartOptions) (api.Session, error) {
	x, err := n.findExec(ctx, id)
	if err != nil {
		return api.Session{}, err
	}
	r, task, err := x.of.executable()
	if err != nil {
		return api.Session{}, err
	}
	x.mu.Lock()
	begun := x.begun
	x.begun = true
	x.mu.Unlock()
	if begun {
		return api.Session{}, api.Conflict("exec command %s is already running", x.id)
	}
	defer close(x.started)
	session, err := n.runExec(ctx, x, r, task, o)
	if err == nil {
		return session, nil
	}
	code := exitUnknown
	var cannot *runtime.ExecError
	if errors.As(err, &cannot) {
		code = cannot.Code
		err = api.InvalidArgument("%w", cannot)
	}
	x.mu.Lock()
	x.exit = &code
	x.mu.Unlock()
	if o.Detach || cannot == nil {
		return api.Session{}, err
	}
	return failedSession(err, x.asked.Tty), nil
}

// runExec runs the process and connects its caller.
func (n *Node) runExec(ctx context.Context, x *exec, r record, task runtime.Task, o api.ExecStartOptions) (api.Session, error) {
	p, err := n.execProcess(x, r)
	if err != nil {
		return api.Session{}, err
	}
	size := o.Size
	if size == (api.TerminalSize{}) && x.asked.ConsoleSize != nil {
		size = api.TerminalSize{Height: x.asked.ConsoleSize[0], Width: x.asked.ConsoleSize[1]}
	}
	streams := runtime.Streams{Stdin: x.asked.AttachStdin, Stdout: x.asked.AttachStdout, Stderr: x.asked.AttachStderr}
	life := ctx
	if o.Detach {
		streams, life = runtime.Streams{}, n.life
	}
	process, err := task.Exec(life, x.id, runtime.Process{Spec: p, Streams: streams, Size: size})
	if err != nil {
		return api.Session{}, err
	}
	x.mu.Lock()
	x.process = process
	x.mu.Unlock()
	n.emit(r, events.ActionExecStart+": "+events.Action(x.command()), map[string]string{"execID": x.id})
	n.spawn(func() { n.watchExec(x, r, process) })
	session := process.Session()
	if o.Detach || session.Duplex == nil {
		if o.Detach {
			return api.Session{}, nil
		}
		session.Duplex = ended{}
	}
	session.Multiplexed = !x.asked.Tty
	session.Duplex = &untilOver{Duplex: session.Duplex, over: x.over, life: n.life.Done()}
	if x.asked.Tty && x.asked.AttachStdin {
		session.Duplex = &detachable{Duplex: session.Duplex, keys: x.keys, onDetach: func() {
			n.emit(r, events.ActionExecDetach, map[string]string{"execID": x.id})
		}}
	}
	return session, nil
}

// untilOver ends a session's output after the exec's end is written down, so that
// who has read it all can ask for the exit code.
type untilOver struct {
	api.Duplex
	over, life <-chan struct{}
}

func (u *untilOver) Read(p []byte) (int, error) {
	n, err := u.Duplex.Read(p)
	if err == io.EOF {
		select {
		case <-u.over:
		case <-u.life:
		}
	}
	return n, err
}

// watchExec writes down how an exec ended.
func (n *Node) watchExec(x *exec, r record, p runtime.Exec) {
	exit, err := p.Wait(n.life)
	if n.life.Err() != nil {
		return
	}
	if err != nil {
		n.log.Warn("lost sight of an exec", "container", r.ID, "exec", x.id, "err", err)
		exit.Code = exitLost
	}
	x.mu.Lock()
	x.exit = &exit.Code
	x.mu.Unlock()
	close(x.over)
	n.emit(r, events.ActionExecDie, map[string]string{"execID": x.id, "exitCode": strconv.Itoa(exit.Code)})
}

// execProcess composes what the runtime runs.
func (n *Node) execProcess(x *exec, r record) (*specs.Process, error) {
	h, asked := r.HostConfig, x.asked
	name := asked.User
	if name == "" {
		name = r.Config.User
	}
	who, err := lookUser(processRoot(r), name, h.GroupAdd)
	if err != nil {
		return nil, err
	}
	caps, err := defaults.Capabilities(h.Privileged || asked.Privileged, h.CapAdd, h.CapDrop)
	if err != nil {
		return nil, err
	}
	safety, err := parseSecurity(h.SecurityOpt)
	if err != nil {
		return nil, err
	}
	cwd := r.Config.WorkingDir
	if asked.WorkingDir != "" {
		cwd = asked.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	if !path.IsAbs(cwd) {
		return nil, api.InvalidArgument("Cwd must be an absolute path")
	}
	base := []string{"PATH=" + defaults.DefaultPath, "HOSTNAME=" + r.Config.Hostname}
	if asked.Tty {
		base = append(base, "TERM=xterm")
	}
	p := &specs.Process{
		Terminal: asked.Tty, Args: asked.Cmd, Cwd: cwd, NoNewPrivileges: safety.noNewPrivileges,
		Env:          environment(mergeEnv(mergeEnv(asked.Env, r.Config.Env), base), who.home),
		User:         specs.User{UID: who.uid, GID: who.gid, AdditionalGids: who.groups, Umask: h.Umask},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
	if who.uid != 0 {
		p.Capabilities.Effective, p.Capabilities.Permitted = nil, nil
	}
	return p, nil
}

// failedSession tells the caller of an exec why there is none, in the stream.
func failedSession(err error, tty bool) api.Session {
	text := []byte(err.Error() + "\r\n")
	if !tty {
		text = stdcopy.Append(nil, stdcopy.Stderr, text)
	}
	return api.Session{Duplex: &said{text: text}, Multiplexed: !tty}
}

// said is a session of fixed output.
type said struct {
	ended
	text []byte
}

func (s *said) Read(p []byte) (int, error) {
	if len(s.text) == 0 {
		return s.ended.Read(p)
	}
	n := copy(p, s.text)
	s.text = s.text[n:]
	return n, nil
}

// ResizeExec implements api.Execs.
func (n *Node) ResizeExec(ctx context.Context, id string, s api.TerminalSize) error {
	x, err := n.findExec(ctx, id)
	if err != nil {
		return err
	}
	select {
	case <-x.started:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	x.mu.Lock()
	p, over := x.process, x.exit != nil
	x.mu.Unlock()
	if p == nil || over {
		return api.InvalidArgument("exec process is not started")
	}
	return p.Resize(ctx, s)
}

// InspectExec implements api.Execs.
func (n *Node) InspectExec(ctx context.Context, id string) (container.ExecInspectResponse, error) {
	x, err := n.findExec(ctx, id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	privileged := x.asked.Privileged
	i := container.ExecInspectResponse{
		ID: x.id, ContainerID: x.of.id, ExitCode: x.exit, Running: x.process != nil && x.exit == nil,
		OpenStdin: x.asked.AttachStdin, OpenStdout: x.asked.AttachStdout, OpenStderr: x.asked.AttachStderr,
		DetachKeys: []byte(x.asked.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.asked.Tty, Entrypoint: x.asked.Cmd[0], Arguments: slices.Clone(x.asked.Cmd[1:]),
			Privileged: &privileged, User: x.asked.User,
		},
	}
	if x.process != nil {
		i.Pid = x.process.Pid()
	}
	return i, nil
}
