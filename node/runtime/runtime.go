// Package runtime starts, signals and reaps containers' processes through whatever can do that on this host.
package runtime

import (
	"context"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/shoal-engine/shoal/api"
)

// Runtime runs bundles. Its containers outlive the process that asked for them:
// after a restart, Load finds them again with their streams, logs and exit codes.
type Runtime interface {
	// Create makes a container whose process waits for Task.Start. Two containers
	// of one ID are a Conflict.
	Create(ctx context.Context, id string, b Bundle) (Task, error)
	// Load finds a container that was created earlier, by this process or one
	// before it. NotFound if there is none.
	Load(ctx context.Context, id string) (Task, error)
	// List names every container there is.
	List(ctx context.Context) ([]string, error)
}

// Bundle is all a runtime needs to know of a container.
type Bundle struct {
	Spec *specs.Spec // Root.Path is a mounted root file system; network namespaces are given by path
	// Dir is the container's own directory, where the runtime may keep state.
	Dir string
	// LogPath is the json-file log that output is appended to; empty keeps none.
	LogPath string
	// OpenStdin keeps a stdin; without it the process reads end-of-file at once.
	OpenStdin bool
	// StdinOnce closes stdin when the first attached client ends its own.
	StdinOnce   bool
	LogMaxSize  int64 // bytes before rotation; 0 never rotates
	LogMaxFiles int
	Size        api.TerminalSize // the terminal's first size
}

// Task is a created container. All methods may be called concurrently.
type Task interface {
	ID() string
	// Start lets the process run. A command that can't be executed is an *ExecError.
	Start(ctx context.Context) error
	// Status says what is known now.
	Status(ctx context.Context) (Status, error)
	// Wait blocks until the process ended, and returns at once ever after. For a
	// task that was never started it blocks until started and ended, or deleted.
	Wait(ctx context.Context) (Exit, error)
	// Signal sends a signal to the first process. Conflict if it doesn't run.
	Signal(ctx context.Context, sig int) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Resize(ctx context.Context, s api.TerminalSize) error
	// Attach connects with the streams, from the moment it returns; before Start
	// it misses nothing.
	Attach(ctx context.Context, o Streams) (api.Session, error)
	// Exec runs a further process, connected from its first byte. A command that
	// can't be executed is an *ExecError.
	Exec(ctx context.Context, execID string, p Process) (Exec, error)
	// Pids lists the processes, as host pids.
	Pids(ctx context.Context) ([]int, error)
	// Delete kills what still runs and forgets the container: its cgroup, its
	// sockets, its state. Deleting twice is no error.
	Delete(ctx context.Context) error
}

// Exec is a further process of a container.
type Exec interface {
	Pid() int
	Session() api.Session // output ends with io.EOF after the process ended; nil Duplex if no stream was asked for
	Wait(ctx context.Context) (Exit, error)
	Resize(ctx context.Context, s api.TerminalSize) error
	Signal(ctx context.Context, sig int) error
}

// Process is what Exec runs.
type Process struct {
	Spec    *specs.Process // Terminal says whether it gets one
	Streams Streams
	Size    api.TerminalSize
}

// Streams choose which of a process's standard streams to connect.
type Streams struct{ Stdin, Stdout, Stderr bool }

// State is where a task stands.
type State string

// The states of a task: Created until Start, then Running or Paused, then Stopped.
const (
	Created State = "created"
	Running State = "running"
	Paused  State = "paused"
	Stopped State = "stopped"
)

// Status of a task; Exit is set once Stopped.
type Status struct {
	State     State
	Pid       int
	StartedAt time.Time
	Exit      Exit
}

// Exit says how a process ended. A death by signal n is code 128+n.
type Exit struct {
	Code      int
	At        time.Time
	OOMKilled bool
}

// ExecError says that a command could not be executed: 127 if it is not there,
// 126 if it is not executable. Text is Docker's.
type ExecError struct {
	Code int
	Text string
}

func (e *ExecError) Error() string { return e.Text }
