package agent

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// TestHolderOfAMomentAgoIsFound: an image was loaded on one node just now, and another
// is told to fetch it before it has heard of that.
func TestHolderOfAMomentAgoIsFound(t *testing.T) {
	d := digest.FromString("manifest")
	here := catalog.NewState()
	synced := 0
	l := locator{here, func(ctx context.Context) error {
		synced++
		_, err := here.Propose(ctx, catalog.PutNode{Node: catalog.Node{ID: "holder", Name: "holder"}})
		require.NoError(t, err)
		_, err = here.Propose(ctx, catalog.PutImages{NodeID: "holder", Seq: 1, Full: true, Images: []catalog.Image{{NodeID: "holder", Digest: d.String()}}})
		require.NoError(t, err)
		return nil
	}}
	for range 2 {
		var found []string
		for p, err := range l.Find(t.Context(), d) {
			require.NoError(t, err)
			found = append(found, p.ID)
		}
		require.Equal(t, []string{"holder"}, found)
	}
	require.Equal(t, 1, synced, "who is known already needs no waiting")
}
