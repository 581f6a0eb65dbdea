package chaos

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

// past makes operations that follow each other, one a second, unless told otherwise.
func past(ops ...Op) []Op {
	for i := range ops {
		ops[i].N = i + 1
		if ops[i].End == 0 {
			ops[i].Start = time.Duration(i) * time.Second
			ops[i].End = ops[i].Start + time.Second/2
		}
		if ops[i].Verdict == "" {
			ops[i].Verdict = Done
		}
	}
	return ops
}

func TestVerdicts(t *testing.T) {
	for want, errs := range map[Verdict][]error{
		Done: {nil},
		Refused: {
			api.NotFound("x"), api.Conflict("x"), api.InvalidArgument("x"), api.NotModified("x"),
			api.Internal("Bind for 0.0.0.0:80 failed: port is already allocated"), api.Unavailable("reach: %w", errUnsent),
		},
		Unclear: {api.Unavailable("x"), api.Internal("x"), context.DeadlineExceeded, errors.New("EOF")},
	} {
		for _, err := range errs {
			require.Equal(t, want, verdict(err), "%v", err)
		}
	}
}

func TestNamesHaveOneOwner(t *testing.T) {
	create := func(id, name string) Op { return Op{Kind: Create, ID: id, Name: name} }
	rename := func(id, name string) Op { return Op{Kind: Rename, ID: id, Name: name} }
	remove := func(id string) Op { return Op{Kind: Remove, ID: id} }
	taken := func(name string) Op { return Op{Kind: Create, Name: name, Verdict: Refused, Taken: true} }
	unclear := func(o Op) Op { o.Verdict = Unclear; return o }
	for what, c := range map[string]struct {
		found int
		ops   []Op
	}{
		"two creations":              {1, past(create("a", "x"), create("b", "x"))},
		"after a removal":            {0, past(create("a", "x"), remove("a"), create("b", "x"))},
		"after a removal, perhaps":   {0, past(create("a", "x"), unclear(remove("a")), create("b", "x"))},
		"after a creation, perhaps":  {0, past(unclear(create("", "x")), create("b", "x"))},
		"renamed onto":               {1, past(create("a", "x"), create("b", "y"), rename("b", "x"))},
		"renamed away":               {0, past(create("a", "x"), rename("a", "z"), create("b", "x"))},
		"renamed away, old name":     {1, past(create("a", "x"), rename("a", "z"), create("b", "z"))},
		"taken":                      {0, past(create("a", "x"), taken("x"))},
		"taken by nobody":            {1, past(taken("x"))},
		"taken by one that is gone":  {1, past(create("a", "x"), remove("a"), taken("x"))},
		"taken by one renamed away":  {1, past(create("a", "x"), rename("a", "y"), taken("x"))},
		"taken by one that might be": {0, past(unclear(create("", "x")), taken("x"))},
		"taken by one that goes": {0, past(
			create("a", "y"), Op{Kind: Rename, ID: "a", Name: "x", Verdict: Refused, Missing: true, Start: 2e9, End: 5e9},
			Op{Kind: Create, Name: "x", Verdict: Refused, Taken: true, Start: 3e9, End: 4e9},
		)},
		"removed while asked": {0, past(
			Op{Kind: Create, ID: "a", Name: "x", End: 1}, Op{Kind: Remove, ID: "a", Start: 2, End: 9}, Op{Kind: Create, ID: "b", Name: "x", Start: 3, End: 4},
		)},
	} {
		require.Len(t, checkNames(c.ops), c.found, what)
	}
}

func TestNothingIsMissing(t *testing.T) {
	missing := Op{Kind: Start, ID: "a", Verdict: Refused, Missing: true}
	made := Op{Kind: Create, ID: "a", Name: "x"}
	require.Len(t, checkMissing(past(made, missing)), 1)
	require.Empty(t, checkMissing(past(missing, made)))
	require.Empty(t, checkMissing(past(made, Op{Kind: Remove, ID: "a"}, missing)))
	require.Empty(t, checkMissing(past(made, Op{Kind: Remove, ID: "a", Verdict: Unclear}, missing)))
	require.Len(t, checkMissing(past(made, Op{Kind: Remove, ID: "a", Verdict: Refused}, missing)), 1)
}

func TestExpectations(t *testing.T) {
	made := Op{Kind: Create, ID: "a", Name: "x"}
	on := func(kind Kind, v Verdict) Op { return Op{Kind: kind, ID: "a", Name: "y", Verdict: v, Started: "s"} }
	for what, c := range map[string]struct {
		want Expected
		ops  []Op
	}{
		"made":              {Expected{There: true, Name: "x", State: container.StateCreated}, past(made)},
		"started":           {Expected{There: true, Name: "x", State: container.StateRunning, Started: "s"}, past(made, on(Start, Done))},
		"start refused":     {Expected{There: true, Name: "x", State: container.StateCreated}, past(made, on(Start, Refused))},
		"start unclear":     {Expected{There: true, Name: "x"}, past(made, on(Start, Unclear))},
		"started twice":     {Expected{There: true, Name: "x", State: container.StateRunning}, past(made, on(Start, Done), on(Stop, Done), on(Start, Done))},
		"stopped":           {Expected{There: true, Name: "x", State: container.StateExited}, past(made, on(Start, Done), on(Stop, Done))},
		"renamed":           {Expected{There: true, Name: "y", State: container.StateCreated}, past(made, on(Rename, Done))},
		"renamed, perhaps":  {Expected{There: true, State: container.StateCreated}, past(made, on(Rename, Unclear))},
		"removed":           {Expected{Gone: true, Name: "x", State: container.StateCreated}, past(made, on(Remove, Done))},
		"removed, perhaps":  {Expected{Name: "x", State: container.StateCreated}, past(made, on(Remove, Unclear))},
		"removal refused":   {Expected{There: true, Name: "x", State: container.StateCreated}, past(made, on(Remove, Refused))},
		"at the same time":  {Expected{There: true, Name: "x"}, past(made, Op{Kind: Start, ID: "a", Start: 5e9, End: 7e9}, Op{Kind: Stop, ID: "a", Start: 6e9, End: 8e9})},
		"one within other":  {Expected{There: true, Name: "x"}, past(made, Op{Kind: Start, ID: "a", Start: 5e9, End: 9e9}, Op{Kind: Stop, ID: "a", Start: 6e9, End: 7e9})},
		"three overlapping": {Expected{There: true, Name: "x"}, past(made, Op{Kind: Start, ID: "a", Start: 5e9, End: 9e9}, Op{Kind: Stop, ID: "a", Start: 6e9, End: 7e9}, Op{Kind: Stop, ID: "a", Start: 8e9, End: 10e9})},
	} {
		got := expect(c.ops)["a"]
		got.Op = Op{}
		require.Equal(t, c.want, got, what)
	}
}

func TestListingsThatContradictThemselves(t *testing.T) {
	one := func(id, name string, state container.ContainerState, port uint16) container.Summary {
		return container.Summary{ID: id, Names: []string{"/" + name}, State: state, Ports: []container.PortSummary{{PublicPort: port, Type: "tcp"}}}
	}
	run, end := container.StateRunning, container.StateExited
	require.Empty(t, contradictions([]container.Summary{one("a", "x", run, 1), one("b", "y", run, 2), one("c", "z", end, 2), one("d", "u", run, 0), one("e", "v", run, 0)}))
	require.Len(t, contradictions([]container.Summary{one("a", "x", run, 1), one("b", "x", end, 2)}), 1)
	require.Len(t, contradictions([]container.Summary{one("a", "x", run, 1), one("b", "y", run, 1)}), 1)
}

func TestDifferences(t *testing.T) {
	one := func(name, status string) container.Summary {
		return container.Summary{Names: []string{"/" + name}, Status: status}
	}
	type list = map[string]container.Summary
	diff := func(a, b list) int { return len(differences("one", a, "other", b)) }
	require.Zero(t, diff(list{"a": one("x", "")}, list{"a": one("x", "")}))
	require.Equal(t, 1, diff(list{"a": one("x", "")}, list{}))
	require.Equal(t, 1, diff(list{}, list{"a": one("x", "")}))
	require.Equal(t, 1, diff(list{"a": one("x", "")}, list{"a": one("y", "")}))
	require.Equal(t, 1, diff(list{"a": one("x", "Up (Unreachable: node node2)")}, list{"a": one("x", "")}))
}

func TestGaps(t *testing.T) {
	var log string
	for i := range minLines {
		log += fmt.Sprintln(i + 1)
	}
	require.NoError(t, gapless(log))
	require.Error(t, gapless(""))
	require.Error(t, gapless(log+fmt.Sprintln(minLines+2)))
	require.Error(t, gapless(log+fmt.Sprintln(minLines)))
}

func TestPlans(t *testing.T) {
	a, b := Plan(1, nodes, roundLength), Plan(1, nodes, roundLength)
	require.Equal(t, a, b, "a seed means one plan")
	require.NotEqual(t, a, Plan(2, nodes, roundLength))
	seen := map[Harm]bool{}
	for seed := range uint64(200) {
		for _, s := range Plan(seed, nodes, roundLength) {
			seen[s.Harm] = true
			for _, n := range s.Nodes {
				require.True(t, 1 <= n && n <= nodes)
			}
		}
	}
	for _, h := range harms {
		require.True(t, seen[h], "nobody ever gets to %s", h)
	}
}
