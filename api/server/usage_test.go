package server

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/volume"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUsageOfEveryVersion: clients up to API 1.51 count for themselves, those from 1.53
// on are told, 1.52 says both.
func TestUsageOfEveryVersion(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	_, err := s.CreateVolume(t.Context(), volume.CreateRequest{Name: "data"})
	require.NoError(t, err)
	keys := func(path string) []string {
		w := ask(h, "GET", path, "", "")
		require.Equal(t, 200, w.Code, path)
		var got map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
		return slices.Sorted(maps.Keys(got))
	}
	older := []string{"BuildCache", "Containers", "Images", "LayersSize", "Volumes"}
	newer := []string{"BuildCacheUsage", "ContainerUsage", "ImageUsage", "VolumeUsage"}
	both := slices.Concat(older, newer)
	slices.Sort(both)
	for path, want := range map[string][]string{
		"/v1.41/system/df":                    {"BuildCache", "BuilderSize", "Containers", "Images", "LayersSize", "Volumes"},
		"/v1.42/system/df":                    older,
		"/v1.51/system/df?verbose=1":          older,
		"/v1.52/system/df":                    both,
		"/v1.52/system/df?verbose=1":          newer,
		"/v1.53/system/df":                    newer,
		"/system/df?type=volume":              {"VolumeUsage"},
		"/system/df?type=image&type=volume":   {"ImageUsage", "VolumeUsage"},
		"/v1.41/system/df?type=anything-goes": {"BuildCache", "BuilderSize", "Containers", "Images", "LayersSize", "Volumes"},
	} {
		assert.Equal(t, want, keys(path), path)
	}
	body := func(path string) string { return ask(h, "GET", path, "", "").Body.String() }
	assert.NotContains(t, body("/system/df"), `"Items"`)
	assert.Contains(t, body("/system/df"), `"VolumeUsage":{"Reclaimable":4096,"TotalCount":1,"TotalSize":4096}`)
	assert.Contains(t, body("/system/df?verbose=1"), `"Name":"data"`)
	assert.Contains(t, body("/v1.50/system/df?type=volume"), `"UsageData":{"RefCount":0,"Size":4096}`)
	assert.Contains(t, body("/v1.50/system/df?type=volume"), `"Images":null`)
	w := ask(h, "GET", "/system/df?type=bogus", "", "")
	assert.Equal(t, 400, w.Code)
	assert.Equal(t, "unknown object type: bogus", message(t, w))
}

// TestVolumePruneOfOldVersions: only from API 1.42 on do volumes with names stay.
func TestVolumePruneOfOldVersions(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	for version, gone := range map[string]string{"1.41": `["data"]`, "1.42": `[]`} {
		_, err := s.CreateVolume(t.Context(), volume.CreateRequest{Name: "data"})
		require.NoError(t, err)
		w := ask(h, "POST", "/v"+version+"/volumes/prune", "", "")
		require.Equal(t, 200, w.Code)
		assert.Contains(t, w.Body.String(), `"VolumesDeleted":`+gone, version)
	}
}

// TestPrunesOfWhatThereIsNot: docker system prune asks for these too.
func TestPrunesOfWhatThereIsNot(t *testing.T) {
	h := New(Config{Engine: newStub(t)})
	assert.JSONEq(t, `{"NetworksDeleted":[]}`, ask(h, "POST", "/networks/prune", "", "").Body.String())
	assert.JSONEq(t, `{"CachesDeleted":[],"SpaceReclaimed":0}`, ask(h, "POST", "/build/prune", "", "").Body.String())
	assert.Equal(t, 400, ask(h, "POST", `/networks/prune?filters={"bogus":["x"]}`, "", "").Code)
}
