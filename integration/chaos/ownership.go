package chaos

import (
	"fmt"
	"math"
	"slices"
	"time"
)

const forever = time.Duration(math.MaxInt64)

// span is a container's possession of a name: sure within from..to, which may be
// empty, and possible within first..last.
type span struct {
	id, name    string
	from, to    time.Duration
	first, last time.Duration
	because     string
}

// checkNames says of the answers alone whether a name ever had two owners, and
// whether one was called taken that nobody can have had.
func checkNames(ops []Op) []string {
	var found []string
	byName := map[string][]span{}
	for _, s := range spans(ops) {
		for _, o := range byName[s.name] {
			if o.id != s.id && max(o.from, s.from) < min(o.to, s.to) {
				found = append(found, fmt.Sprintf("name %s had two owners at a time: %s; %s", s.name, o.because, s.because))
			}
		}
		byName[s.name] = append(byName[s.name], s)
	}
	for _, o := range ops {
		possible := slices.ContainsFunc(byName[o.Name], func(s span) bool {
			return s.because != o.String() && s.first <= o.End && s.last >= o.Start
		})
		if o.Taken && !possible {
			found = append(found, "a name was free but called taken: "+o.String())
		}
	}
	return found
}

// spans are all possessions of names that a history tells of.
func spans(ops []Op) []span {
	var out []span
	for _, o := range ops {
		if o.Kind != Create && o.Kind != Rename || o.Taken {
			continue
		}
		s := span{id: o.ID, name: o.Name, from: forever, first: o.Start, last: forever, because: o.String()}
		switch o.Verdict {
		case Done:
			s.from, s.to = o.End, forever
			s.limit(ops, o)
		case Refused: // it may have had the name for a moment
			s.last = o.End
		}
		out = append(out, s)
	}
	return out
}

// limit bounds a possession by the operations that may have ended it.
func (s *span) limit(ops []Op, got Op) {
	for _, o := range ops {
		frees := o.Kind == Remove || o.Kind == Rename
		if !frees || o.ID != got.ID || o.N == got.N || o.Taken {
			continue
		}
		if o.Verdict == Unclear || o.End >= got.Start {
			s.to = min(s.to, o.Start) // it may work from its start on
		}
		if o.Start > got.End && (o.Verdict == Done || o.Missing) {
			s.last = min(s.last, o.End)
		}
	}
}

// checkMissing finds answers "no such container" about one that was there.
func checkMissing(ops []Op) []string {
	made, ended := map[string]time.Duration{}, map[string]time.Duration{}
	for _, o := range ops {
		if o.Kind == Create && o.Verdict == Done {
			made[o.ID] = o.End
		}
		if at, known := ended[o.ID]; o.Kind == Remove && o.Verdict != Refused && (!known || o.Start < at) {
			ended[o.ID] = o.Start
		}
	}
	var found []string
	for _, o := range ops {
		there, ok := made[o.ID]
		gone, removed := ended[o.ID]
		if o.Missing && ok && o.Start > there && (!removed || o.End < gone) {
			found = append(found, "a container was there but called missing: "+o.String())
		}
	}
	return found
}
