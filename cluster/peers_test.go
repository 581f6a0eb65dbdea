package cluster

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/identity"
)

// peerBook is a wire that only notes whom it was told of.
type peerBook map[string]bool

func (b peerBook) ID() string                          { return "self" }
func (b peerBook) SetPeer(id string, _ []string)       { b[id] = true }
func (b peerBook) ForgetPeer(id string)                { delete(b, id) }
func (b peerBook) Listen(string) (net.Listener, error) { return nil, net.ErrClosed }
func (b peerBook) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, net.ErrClosed
}

type noGossip struct{ Members }

func (noGossip) Forget(string) {}

// TestReplayForgetsNobody: a replica learns in steps how much of its log counts, and may
// be stuck in the middle unless the leader reaches it. So it must not take the members
// of a step for those of now.
func TestReplayForgetsNobody(t *testing.T) {
	store := catalog.NewState()
	put := func(id string) catalog.View {
		_, err := store.Propose(t.Context(), catalog.PutNode{Node: catalog.Node{ID: id, Name: id}})
		require.NoError(t, err)
		return store.View()
	}
	put("leader")
	step := put("self")
	_, err := store.Propose(t.Context(), catalog.RemoveNode{ID: "leader"})
	require.NoError(t, err)
	without := store.View()
	put("leader")
	now := put("third")

	wire := peerBook{}
	state, err := identity.NewCluster("self")
	require.NoError(t, err)
	s := &session{cfg: Config{Wire: wire, Dir: t.TempDir()}, members: noGossip{}, state: state}
	s.cfg.Self.ID = "self"
	gone, err := s.notePeers(now)
	require.NoError(t, err)
	require.Empty(t, gone)
	require.Equal(t, peerBook{"leader": true, "third": true}, wire)
	kept, err := identity.LoadState(s.cfg.Dir)
	require.NoError(t, err)

	again := &session{cfg: s.cfg, members: noGossip{}, state: kept, peers: kept.Peers, peersAt: kept.PeersAt}
	for _, v := range []catalog.View{step, without} {
		require.True(t, again.isOld(v))
		gone, err = again.notePeers(v)
		require.NoError(t, err)
		require.Empty(t, gone)
		require.Equal(t, peerBook{"leader": true, "third": true}, wire)
	}
	require.False(t, again.isOld(now))
	_, err = store.Propose(t.Context(), catalog.RemoveNode{ID: "third"})
	require.NoError(t, err)
	gone, err = again.notePeers(store.View())
	require.NoError(t, err)
	require.Equal(t, []string{"third"}, gone, "what was removed since must go")
}
