package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Verdict is what an answer says about whether something happened.
type Verdict string

// Verdicts.
const (
	Done    Verdict = "done"
	Refused Verdict = "refused" // it did not happen, and will not
	Unclear Verdict = "unclear" // it may have happened, or may yet
)

// errUnsent marks requests that never left: nobody listened.
var errUnsent = errors.New("no agent listens")

// verdict reads an answer. Whatever isn't plainly the caller's mistake is unclear.
func verdict(err error) Verdict {
	switch {
	case err == nil:
		return Done
	case errors.Is(err, errUnsent), errdefs.IsNotFound(err), errdefs.IsConflict(err),
		errdefs.IsInvalidArgument(err), errdefs.IsNotModified(err),
		strings.Contains(err.Error(), "port is already allocated"): // a 500 in Docker's API
		return Refused
	}
	return Unclear
}

// Kind of an operation.
type Kind string

// Kinds.
const (
	Create  Kind = "create"
	Start   Kind = "start"
	Stop    Kind = "stop"
	Rename  Kind = "rename"
	Remove  Kind = "remove"
	Tag     Kind = "tag"
	Resolve Kind = "resolve"
)

// Op is one operation of a driver.
type Op struct {
	N          int // from 1 on; a container carries that of its creation as a label
	Node       int
	Kind       Kind
	ID         string // of the container; of a creation only when done
	Name       string // asked for
	Port       uint16 // published; 0 none
	Start, End time.Duration
	Verdict    Verdict
	Missing    bool   // refused because there is no such container
	Taken      bool   // refused because another container has the name
	Started    string // of a start: what inspection said right afterwards, if it did
	Err        string
}

func (o Op) String() string {
	s := fmt.Sprintf("%8.3f-%.3f #%d node%d %s %.12s %s", o.Start.Seconds(), o.End.Seconds(), o.N, o.Node, o.Kind, o.ID, o.Name)
	if o.Port != 0 {
		s += fmt.Sprint(" port ", o.Port)
	}
	return s + " " + string(o.Verdict) + " " + o.Err
}

// History is what happened in a round. Its methods may be called concurrently.
type History struct {
	began time.Time
	mu    sync.Mutex
	next  int
	ops   []Op
}

// NewHistory begins now.
func NewHistory() *History { return &History{began: time.Now()} }

// Now is the time since the beginning.
func (h *History) Now() time.Duration { return time.Since(h.began) }

// Begin numbers an operation and notes when it starts.
func (h *History) Begin(o Op) Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	o.N, o.Start = h.next, h.Now()
	return o
}

// Finish keeps an operation with its outcome.
func (h *History) Finish(o Op, err error) Op {
	o.End, o.Verdict = h.Now(), verdict(err)
	if err != nil {
		o.Err = err.Error()
		o.Missing = errdefs.IsNotFound(err) && strings.Contains(o.Err, "No such container")
		o.Taken = errdefs.IsConflict(err) && strings.Contains(o.Err, "is already in use by container")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	return o
}

// Ops are all finished operations in the order of their starts.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.ops)
	slices.SortFunc(out, func(a, b Op) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// removedBefore are the containers whose removal was acknowledged before a moment.
func (h *History) removedBefore(t time.Duration) map[string]time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]time.Duration{}
	for _, o := range h.ops {
		if o.Kind == Remove && o.Verdict == Done && o.End < t {
			out[o.ID] = o.End
		}
	}
	return out
}
