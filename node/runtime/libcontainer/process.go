package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Process is a process of a container.
type Process struct {
	factory *Factory
	lc      *libcontainer.Process // nil: it is not our child
	pid     int
	pidfd   *os.File
	// Console is the terminal's other end, nil without one. It is the caller's.
	Console *os.File
}

// Exit says how a process ended.
type Exit struct {
	Code int // 128+n for a death by signal n
	At   time.Time
}

// Pid is the process's number on the host.
func (p *Process) Pid() int { return p.pid }

// Signal sends a signal to the process; ErrNotRunning if it has ended.
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return ErrNotRunning // closed, after Wait
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrNotRunning
	}
	return sent
}

// Wait waits until the process ended, without a thread of its own, and reaps it.
// It is called once.
func (p *Process) Wait() Exit {
	p.ended()
	exit := Exit{At: time.Now(), Code: unknownExit}
	if p.lc == nil {
		exit.Code = foreignExit(p.pid, p.pidfd)
	} else {
		// The error says that the code is not 0, or nothing of use.
		if state, _ := p.lc.Wait(); state != nil {
			exit.Code = exitCode(state.Sys().(syscall.WaitStatus))
		}
		p.factory.forget(p.pid)
	}
	_ = p.pidfd.Close() // says nothing
	return exit
}

// ended blocks until the pidfd says that the process is over.
func (p *Process) ended() {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	// Its error is that of a closed file, which only Wait does.
	_ = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// openPid opens a process so that its end can be waited for with all others.
func openPid(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// start starts a container's first or a further process.
func (c *Container) start(spec *specs.Process, o Stdio, first bool) (*Process, error) {
	lp, err := process(spec, o, first)
	if err != nil {
		return nil, err
	}
	var console *os.File
	if o.Terminal {
		ours, theirs, err := socketPair()
		if err != nil {
			return nil, err
		}
		defer ours.Close()
		defer theirs.Close()
		lp.ConsoleSocket, console = theirs, ours
	}
	p := &Process{factory: c.factory, lc: lp}
	if err := c.factory.fork(func() error { return c.run(lp, p) }); err != nil {
		return nil, execError(err)
	}
	if console != nil {
		if p.Console, err = receiveFile(console); err != nil {
			_ = p.Signal(unix.SIGKILL) // its end is what we wait for
			p.Wait()
			return nil, fmt.Errorf("receive terminal: %w", err)
		}
	}
	return p, nil
}

// run starts a process and opens it; what it started it also ends if that fails.
func (c *Container) run(lp *libcontainer.Process, p *Process) error {
	if err := c.lc.Start(lp); err != nil {
		return err
	}
	var err error
	if p.pid, err = lp.Pid(); err != nil {
		return err
	}
	if p.pidfd, err = openPid(p.pid); err != nil {
		_ = lp.Signal(unix.SIGKILL) // it can't have been reaped yet
		_, _ = lp.Wait()
		return err
	}
	c.factory.remember(p.pid)
	return nil
}

func process(p *specs.Process, o Stdio, first bool) (*libcontainer.Process, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("no command specified")
	}
	lp := &libcontainer.Process{
		Init: first,
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		Label: p.SelinuxLabel, AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler, IOPriority: p.IOPriority,
		ConsoleHeight: o.Height, ConsoleWidth: o.Width,
	}
	// An interface of a nil *os.File would not be nil.
	if o.Stdin != nil {
		lp.Stdin = o.Stdin
	}
	if o.Stdout != nil {
		lp.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		lp.Stderr = o.Stderr
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, r := range p.Rlimits {
		kind, ok := rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("wrong rlimit value: %s", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Hard: r.Hard, Soft: r.Soft})
	}
	return lp, nil
}

// notFound and notExecutable are how the process that failed to become the
// command says so; its errors reach us as text alone.
var (
	notFound      = regexp.MustCompile(`(exec: "(?s:.*)": |exec .*: |chdir to cwd .*)(executable file not found in \$PATH|.*no such file or directory|.*not a directory)`)
	notExecutable = regexp.MustCompile(`(exec: "(?s:.*)": |exec .*: |chdir to cwd .*)(.*permission denied|.*is a directory)`)
)

// execError makes an *ExecError of an error that says that a command can't be
// executed.
func execError(err error) error {
	switch text := err.Error(); {
	case notFound.MatchString(text):
		return &ExecError{Code: 127, Text: text}
	case notExecutable.MatchString(text):
		// By these words alone clients before Docker 23 tell 126 from 125.
		if denied := unix.EACCES.Error(); !strings.Contains(text, denied) {
			text += ": " + denied
		}
		return &ExecError{Code: 126, Text: text}
	}
	return err
}
