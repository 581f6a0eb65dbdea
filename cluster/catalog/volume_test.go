package catalog_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// volumes are those of a state as name@node, with a question mark if only claimed.
func volumes(s *catalog.State) []string {
	names := []string{}
	for _, v := range s.View().Volumes() {
		name := v.Name + "@" + v.NodeID
		if !v.Made {
			name += "?"
		}
		names = append(names, name)
	}
	return names
}

func TestClaimsOfVolumes(t *testing.T) {
	s := withNodes(t, "a", "b")
	got := propose(t, s, catalog.ClaimVolume{Name: "data", NodeID: "id-a"})
	require.Equal(t, "id-a", got.Volume.NodeID)
	require.False(t, got.Volume.Made)
	got = propose(t, s, catalog.ClaimVolume{Name: "data", NodeID: "id-b"})
	require.Equal(t, "id-a", got.Volume.NodeID, "the name is taken")
	propose(t, s, catalog.ReleaseVolume{Name: "data", NodeID: "id-b"})
	require.Equal(t, []string{"data@id-a?"}, volumes(s))
	propose(t, s, catalog.ReleaseVolume{Name: "data", NodeID: "id-a"})
	require.Empty(t, volumes(s))
	for name, c := range map[string]catalog.Command{
		"no name": catalog.ClaimVolume{NodeID: "id-a"}, "a path": catalog.ClaimVolume{Name: "../x", NodeID: "id-a"},
	} {
		_, err := s.Propose(t.Context(), c)
		require.True(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
	_, err := s.Propose(t.Context(), catalog.ClaimVolume{Name: "data", NodeID: "id-z"})
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func TestReportsOfVolumes(t *testing.T) {
	s := withNodes(t, "a", "b")
	propose(t, s, catalog.ClaimVolume{Name: "claimed", NodeID: "id-a"})
	propose(t, s, catalog.ClaimVolume{Name: "made", NodeID: "id-a"})
	report := func(seq uint64, full bool, gone []string, names ...string) catalog.Result {
		c := catalog.PutVolumes{NodeID: "id-a", Seq: seq, Full: full, Gone: gone}
		for _, n := range names {
			c.Volumes = append(c.Volumes, catalog.Volume{Name: n})
		}
		return propose(t, s, c)
	}
	require.EqualValues(t, 1, report(1, true, nil, "made", "old").Seq)
	require.Equal(t, []string{"claimed@id-a?", "made@id-a", "old@id-a"}, volumes(s), "a claim isn't the node's to take back")
	propose(t, s, catalog.ReleaseVolume{Name: "made", NodeID: "id-a"})
	require.Zero(t, report(1, true, nil).Seq, "stale")
	require.Equal(t, []string{"claimed@id-a?", "made@id-a", "old@id-a"}, volumes(s))
	report(2, false, []string{"old", "claimed", "unknown"})
	require.Equal(t, []string{"claimed@id-a?", "made@id-a"}, volumes(s))
	report(3, true, nil, "other")
	require.Equal(t, []string{"claimed@id-a?", "other@id-a"}, volumes(s))

	// Nodes that had each their own come together.
	propose(t, s, catalog.PutVolumes{NodeID: "id-b", Seq: 1, Full: true, Volumes: []catalog.Volume{{Name: "other"}}})
	require.Equal(t, []string{"claimed@id-a?", "other@id-a", "other@id-b"}, volumes(s))
	require.Equal(t, "id-a", propose(t, s, catalog.ClaimVolume{Name: "other", NodeID: "id-b"}).Volume.NodeID, "the older one")
	_, _, seq := s.Seq("id-a")
	require.EqualValues(t, 3, seq)
	propose(t, s, catalog.RemoveNode{ID: "id-a"})
	require.Equal(t, []string{"other@id-b"}, volumes(s))
}
