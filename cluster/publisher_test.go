package cluster

import (
	"bytes"
	"context"
	"log/slog"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// slowStore loses the answer to a report, which takes effect only when the next comes.
type slowStore struct {
	*catalog.State
	lose bool
	held catalog.Command
}

func (s *slowStore) Propose(ctx context.Context, c catalog.Command) (catalog.Result, error) {
	if _, report := c.(catalog.PutContainers); report && s.lose {
		s.lose, s.held = false, c
		return catalog.Result{}, catalog.ErrNoLeader
	}
	if s.held != nil {
		if _, err := s.State.Propose(ctx, s.held); err != nil {
			return catalog.Result{}, err
		}
		s.held = nil
	}
	return s.State.Propose(ctx, c)
}

// TestReportOvertakenByItself: a report whose number went to an older one, whose answer
// was lost, is not taken for said.
func TestReportOvertakenByItself(t *testing.T) {
	fake := apitest.NewFake("a", 1)
	defer fake.Close()
	progress, err := fake.LoadImages(t.Context(), bytes.NewReader(apitest.Busybox(t)), api.LoadOptions{})
	require.NoError(t, err)
	for _, err := range api.All(progress) {
		require.NoError(t, err)
	}
	s := &slowStore{State: catalog.NewState()}
	_, err = s.Propose(t.Context(), catalog.PutNode{Node: catalog.Node{ID: "a", Name: "a"}})
	require.NoError(t, err)
	p := NewPublisher("a", fake, s, slog.New(slog.DiscardHandler))
	require.NoError(t, p.publish(t.Context(), marks{all: true}))

	made, err := fake.CreateContainer(t.Context(), api.CreateOptions{Name: "x1", Config: &container.Config{Image: "busybox", Cmd: []string{"sleep", "1000"}}})
	require.NoError(t, err)
	news := marks{containers: map[string]bool{made.ID: true}}
	s.lose = true
	require.ErrorIs(t, p.publish(t.Context(), news), catalog.ErrNoLeader)
	require.NoError(t, fake.StartContainer(t.Context(), made.ID, api.StartOptions{}))
	require.NoError(t, p.publish(t.Context(), news))
	c, err := s.View().Container("x1")
	require.NoError(t, err)
	require.Equal(t, container.StateRunning, c.State)
}
