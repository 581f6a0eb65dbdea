package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version is that of this package. It grows when a caller may need to know that a
// supervisor is older; it never makes one refuse the other.
const Version = 1

// Tag tells supervisors of different data directories apart, where they share a
// run directory or the host's cgroups. The path shall be absolute and clean.
func Tag(dir string) string {
	hash := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(hash[:6])
}

// Socket is the name of a data directory's supervisor's socket.
func Socket(dir string) string { return "sv-" + Tag(dir) + ".sock" }

// Op is an operation.
type Op string

// The operations, by what they are about: the supervisor, a container (ID), or a
// further process in one (ID and ExecID).
const (
	OpHello    Op = "hello"
	OpList     Op = "list"
	OpShutdown Op = "shutdown" // Force ends what runs

	OpCreate Op = "create" // Bundle
	OpStart  Op = "start"
	OpStatus Op = "status"
	OpWait   Op = "wait"
	OpSignal Op = "signal" // Signal
	OpPause  Op = "pause"
	OpResume Op = "resume"
	OpResize Op = "resize" // Size
	OpAttach Op = "attach" // Streams
	OpPids   Op = "pids"
	OpDelete Op = "delete"

	OpExec       Op = "exec" // Process, Streams, Size
	OpExecWait   Op = "exec-wait"
	OpExecSignal Op = "exec-signal" // Signal
	OpExecResize Op = "exec-resize" // Size
)

// Request is a call.
type Request struct {
	Version int            `json:"v"`
	Op      Op             `json:"op"`
	ID      string         `json:"id,omitempty"`
	ExecID  string         `json:"exec,omitempty"`
	Bundle  *Bundle        `json:"bundle,omitempty"`
	Process *specs.Process `json:"process,omitempty"`
	Streams Streams        `json:"streams,omitzero"`
	Size    Size           `json:"size,omitzero"`
	Signal  int            `json:"signal,omitempty"`
	Force   bool           `json:"force,omitempty"`
}

// Reply answers a call: with an Error, or with what the operation is about.
type Reply struct {
	Version     int      `json:"v"`
	Error       *Error   `json:"error,omitempty"`
	Hello       *Hello   `json:"hello,omitempty"`
	IDs         []string `json:"ids,omitempty"`
	Status      *Status  `json:"status,omitempty"`
	Exit        *Exit    `json:"exit,omitempty"`
	Pid         int      `json:"pid,omitempty"`
	Pids        []int    `json:"pids,omitempty"`
	Multiplexed bool     `json:"multiplexed,omitempty"`
}

// Hello says who the supervisor is.
type Hello struct {
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"started"`
	Seccomp   bool      `json:"seccomp"` // filters can be installed
}

// Bundle is all of a container.
type Bundle struct {
	Spec        *specs.Spec `json:"spec"`
	Dir         string      `json:"dir"`
	LogPath     string      `json:"log,omitempty"`
	LogMaxSize  int64       `json:"logMaxSize,omitempty"`
	LogMaxFiles int         `json:"logMaxFiles,omitempty"`
	OpenStdin   bool        `json:"openStdin,omitempty"`
	StdinOnce   bool        `json:"stdinOnce,omitempty"`
	Size        Size        `json:"size,omitzero"`
}

// Streams choose which of a process's streams a connection carries.
type Streams struct {
	Stdin  bool `json:"in,omitempty"`
	Stdout bool `json:"out,omitempty"`
	Stderr bool `json:"err,omitempty"`
}

// Any says whether there is one.
func (s Streams) Any() bool { return s.Stdin || s.Stdout || s.Stderr }

// Size of a terminal, in characters.
type Size struct {
	Height uint16 `json:"h,omitempty"`
	Width  uint16 `json:"w,omitempty"`
}

// State is where a container stands.
type State string

// The states of a container.
const (
	Created State = "created"
	Running State = "running"
	Paused  State = "paused"
	Stopped State = "stopped"
)

// Status of a container; Exit is of a stopped one.
type Status struct {
	State     State     `json:"state"`
	Pid       int       `json:"pid,omitempty"`
	StartedAt time.Time `json:"started,omitzero"`
	Exit      Exit      `json:"exit,omitzero"`
}

// Exit says how a process ended.
type Exit struct {
	Code      int       `json:"code"`
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oom,omitempty"`
}

// Class of an error.
type Class string

// The classes of errors.
const (
	NotFound    Class = "not-found"
	Conflict    Class = "conflict"
	Invalid     Class = "invalid"
	Unsupported Class = "unsupported"
	Internal    Class = "internal"
	NoExec      Class = "no-exec" // the command can't be executed; Code says why
)

// Error of an operation. Text is for users.
type Error struct {
	Class Class  `json:"class"`
	Text  string `json:"text"`
	Code  int    `json:"code,omitempty"` // the exit code Docker gives to NoExec
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an Error.
func Errorf(c Class, format string, a ...any) *Error {
	return &Error{Class: c, Text: fmt.Sprintf(format, a...)}
}
