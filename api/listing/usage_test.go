package listing

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestSharedSizes(t *testing.T) {
	layers := map[string][]string{"a": {"base", "mid", "a1"}, "b": {"base", "mid", "b1", "b1"}, "c": {"c1"}}
	sizes := map[string]int64{"base": 100, "mid": 10, "a1": 1, "b1": 2, "c1": 5}
	items := []image.Summary{
		{ID: "a", Size: 111, Containers: 1}, {ID: "b", Size: 112}, {ID: "c", Size: 5, Containers: 2}, {ID: "empty"},
	}
	total := SharedSizes(items, func(id string) []string { return layers[id] }, sizes)
	assert.EqualValues(t, 118, total, "each layer once")
	assert.Equal(t, []int64{110, 110, 0, 0}, []int64{items[0].SharedSize, items[1].SharedSize, items[2].SharedSize, items[3].SharedSize})
	u := ImageUsage(items, total)
	assert.EqualValues(t, 4, u.TotalCount)
	assert.EqualValues(t, 2, u.ActiveCount)
	assert.EqualValues(t, 118-1-5, u.Reclaimable, "as Docker's clients count: only what used images have alone stays")
}

func TestUsage(t *testing.T) {
	c := ContainerUsage([]container.Summary{
		{SizeRw: 1, State: container.StateRunning}, {SizeRw: 2, State: container.StatePaused},
		{SizeRw: 4, State: container.StateExited}, {SizeRw: 8, State: container.StateCreated},
	})
	assert.Equal(t, []int64{4, 2, 15, 12}, []int64{c.TotalCount, c.ActiveCount, c.TotalSize, c.Reclaimable})
	v := VolumeUsage([]volume.Volume{
		{UsageData: &volume.UsageData{Size: 1, RefCount: 1}}, {UsageData: &volume.UsageData{Size: 2}},
		{UsageData: &volume.UsageData{Size: -1}}, {},
	})
	assert.Equal(t, []int64{4, 1, 3, 2}, []int64{v.TotalCount, v.ActiveCount, v.TotalSize, v.Reclaimable})
}

func TestVolumes(t *testing.T) {
	all := []volume.Volume{
		{Name: "web-data", Driver: "local", Labels: map[string]string{"tier": "front"}},
		{Name: "db", Driver: "local", Labels: map[string]string{"tier": "back"}},
		{Name: "nameless", Driver: "local", Labels: map[string]string{AnonymousLabel: ""}},
	}
	used := func(v volume.Volume) bool { return v.Name == "db" }
	names := func(vs []volume.Volume) []string {
		out := []string{}
		for _, v := range vs {
			out = append(out, v.Name)
		}
		return out
	}
	for _, c := range []struct {
		f    api.Filters
		want []string
	}{
		{nil, []string{"db", "nameless", "web-data"}},
		{api.Filters{"dangling": {"true"}}, []string{"nameless", "web-data"}},
		{api.Filters{"dangling": {"0"}}, []string{"db"}},
		{api.Filters{"name": {"data", "^d"}}, []string{"db", "web-data"}},
		{api.Filters{"name": {"a("}}, []string{}},
		{api.Filters{"label": {"tier"}, "driver": {"local"}}, []string{"db", "web-data"}},
		{api.Filters{"label": {"tier=back"}}, []string{"db"}},
		{api.Filters{"driver": {"nfs"}}, []string{}},
	} {
		got, err := Volumes(all, c.f, used)
		require.NoError(t, err)
		assert.Equal(t, c.want, names(got), "%v", c.f)
	}
	for _, f := range []api.Filters{{"all": {"1"}}, {"dangling": {"x"}}, {"dangling": {"true", "false"}}} {
		_, err := Volumes(all, f, used)
		assert.True(t, errdefs.IsInvalidArgument(err), "%v: %v", f, err)
	}
	_, err := Volumes(all, api.Filters{"dangling": {"x"}}, used)
	assert.EqualError(t, err, "invalid filter 'dangling=[x]'")
	for _, c := range []struct {
		f    api.Filters
		want []string
	}{
		{nil, []string{"nameless"}},
		{api.Filters{"all": {"false"}}, []string{"nameless"}},
		{api.Filters{"all": {"true"}}, []string{"web-data", "db", "nameless"}},
		{api.Filters{"all": {"true"}, "label!": {"tier=back"}}, []string{"web-data", "nameless"}},
		{api.Filters{"all": {"true"}, "label": {"tier"}}, []string{"web-data", "db"}},
	} {
		got, err := PrunableVolumes(all, c.f)
		require.NoError(t, err)
		assert.Equal(t, c.want, names(got), "%v", c.f)
	}
	_, err = PrunableVolumes(all, api.Filters{"dangling": {"true"}})
	assert.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}
