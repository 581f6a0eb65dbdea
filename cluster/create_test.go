package cluster

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// lateStore is a replica without content that can or can't be brought up to date.
type lateStore struct {
	*catalog.State
	err error
}

func (lateStore) Propose(context.Context, catalog.Command) (catalog.Result, error) {
	return catalog.Result{}, catalog.ErrNoLeader
}
func (s lateStore) Sync(context.Context) error { return s.err }

// TestOnlyAnUpToDateViewTellsOfRemovals: a router whose replica hasn't heard of its own
// claim yet doesn't take it for removed.
func TestOnlyAnUpToDateViewTellsOfRemovals(t *testing.T) {
	for _, err := range []error{nil, catalog.ErrNoLeader} {
		s := lateStore{catalog.NewState(), err}
		r := NewRouter(RouterConfig{Self: "a", Store: s, Reader: s})
		require.Equal(t, err == nil, r.removed(t.Context(), "x"))
	}
}
