package chaos

import (
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/container"
)

// Expected is what a history says of a container that was surely made. Empty fields
// are unknown: something was unclear, or went on at the same time.
type Expected struct {
	Op          Op
	There, Gone bool // neither: unknown
	Name        string
	State       container.ContainerState
	Started     string // when its only start was, if nothing can have ended it
}

// expect is what must be true in the end, by container ID.
func expect(ops []Op) map[string]Expected {
	about := map[string][]Op{}
	for _, o := range ops {
		if o.ID != "" && o.Verdict != Refused {
			about[o.ID] = append(about[o.ID], o)
		}
	}
	out := map[string]Expected{}
	for _, made := range ops {
		if made.Kind != Create || made.Verdict != Done {
			continue
		}
		e := Expected{Op: made, There: true}
		for _, o := range about[made.ID] {
			if o.Kind == Remove {
				e.There, e.Gone = false, e.Gone || o.Verdict == Done
			}
		}
		if named, ok := last(about[made.ID], Create, Rename); ok {
			e.Name = named.Name
		}
		e.State, e.Started = expectState(about[made.ID])
		out[made.ID] = e
	}
	return out
}

func expectState(ops []Op) (state container.ContainerState, started string) {
	o, ok := last(ops, Create, Start, Stop)
	switch {
	case !ok:
		return "", ""
	case o.Kind == Create:
		return container.StateCreated, ""
	case o.Kind == Stop:
		return container.StateExited, ""
	}
	starts, stops := 0, 0
	for _, o := range ops {
		switch o.Kind {
		case Start:
			starts++
		case Stop:
			stops++
		}
	}
	if starts == 1 && stops == 0 {
		started = o.Started
	}
	return container.StateRunning, started
}

// last is the operation of some kinds that was surely the last to work.
func last(ops []Op, kinds ...Kind) (Op, bool) {
	var l Op
	for _, o := range ops {
		if !slices.Contains(kinds, o.Kind) {
			continue
		}
		if o.Verdict == Unclear || o.Start <= l.End && l.N != 0 {
			return Op{}, false
		}
		l = o
	}
	return l, l.N != 0
}

// byLabel finds the operation that made a container.
func byLabel(ops []Op, labels map[string]string) (Op, bool) {
	n, err := strconv.Atoi(labels[opLabel])
	if err != nil {
		return Op{}, false
	}
	i := slices.IndexFunc(ops, func(o Op) bool { return o.N == n })
	if i < 0 {
		return Op{}, false
	}
	return ops[i], true
}
