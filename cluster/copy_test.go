package cluster

import (
	"encoding/json"
	"testing"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestTallyOfACopy(t *testing.T) {
	c := tally{node: "n1", name: func(id string) string { return "name-" + id }, layers: map[string]jsonstream.Progress{}}
	aux := json.RawMessage(`{"peers":{"a":70,"b":30}}`)
	steps := []struct {
		in             api.Progress
		current, total int64 // of what is told; total 0: nothing is
	}{
		{api.Progress{ID: "1", Status: "Pulling from library/x"}, 0, 0},
		{api.Progress{ID: "l1", Status: "Downloading", Progress: &jsonstream.Progress{Current: 10, Total: 100}}, 10, 100},
		{api.Progress{ID: "l2", Status: "Downloading", Progress: &jsonstream.Progress{Current: 5, Total: 50}}, 15, 150},
		{api.Progress{ID: "l1", Status: "Extracting", Progress: &jsonstream.Progress{Current: 1, Total: 100}}, 0, 0},
		{api.Progress{ID: "l1", Status: "Download complete"}, 105, 150},
		{api.Progress{Aux: &aux}, 105, 150},
		{api.Progress{ID: "l2", Status: "Downloading", Progress: &jsonstream.Progress{Current: 20, Total: 50}, Aux: &aux}, 120, 150},
		{api.Progress{ID: "l2", Status: "Download complete"}, 150, 150},
	}
	var last api.Progress
	for _, s := range steps {
		line, ok := c.add(s.in)
		require.Equal(t, s.total > 0, ok, "%+v", s.in)
		if !ok {
			continue
		}
		require.Equal(t, "n1", line.ID)
		require.Equal(t, s.current, line.Progress.Current)
		require.Equal(t, s.total, line.Progress.Total)
		last = line
	}
	require.JSONEq(t, `{"peers":{"name-a":70,"name-b":30}}`, string(*last.Aux))
	require.Equal(t, copyDone, c.verdict())

	had := tally{layers: map[string]jsonstream.Progress{}}
	_, ok := had.add(api.Progress{Status: "Status: Image is up to date for x"})
	require.False(t, ok)
	require.Equal(t, copyHere, had.verdict())
	junk := json.RawMessage(`[1]`)
	_, ok = had.add(api.Progress{Aux: &junk})
	require.False(t, ok, "what isn't understood is left out")
}
