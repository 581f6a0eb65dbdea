package apitest

import (
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/imagetar"
)

func usageTests() map[string]func(*suite) {
	return map[string]func(*suite){"All": testUsage, "Kinds": testUsageKinds, "SharedLayers": testSharedLayers}
}

func (s *suite) usage(kinds ...system.DiskUsageObject) system.DiskUsage {
	s.Helper()
	u, err := s.Engine.DiskUsage(s.ctx, api.DiskUsageOptions{Kinds: kinds})
	require.NoError(s, err)
	return u
}

func testUsage(s *suite) {
	ref, id := s.small()
	vol := s.volume(s.name("data"))
	o := s.with(vol.Name + ":/data")
	o.Config.Cmd = []string{"sleep", "1000"}
	running := s.create(o)
	s.start(running)
	o = s.options()
	o.Config.Image = ref
	stopped := s.create(o)

	u := s.usage()
	require.NotNil(s, u.ImageUsage)
	require.NotNil(s, u.ContainerUsage)
	require.NotNil(s, u.VolumeUsage)
	require.NotNil(s, u.BuildCacheUsage)
	assert.Zero(s, u.BuildCacheUsage.TotalCount)

	i := slices.IndexFunc(u.ImageUsage.Items, func(i image.Summary) bool { return i.ID == id })
	require.GreaterOrEqual(s, i, 0)
	img := u.ImageUsage.Items[i]
	assert.Equal(s, []string{ref}, img.RepoTags)
	assert.Equal(s, int64(1), img.Containers)
	assert.Positive(s, img.Size)
	assert.GreaterOrEqual(s, img.Size, img.SharedSize)
	assert.GreaterOrEqual(s, img.SharedSize, int64(0))
	assert.Equal(s, int64(len(u.ImageUsage.Items)), u.ImageUsage.TotalCount)
	assert.GreaterOrEqual(s, u.ImageUsage.TotalSize, u.ImageUsage.Reclaimable)
	assert.GreaterOrEqual(s, u.ImageUsage.ActiveCount, int64(2))
	assert.GreaterOrEqual(s, u.ImageUsage.TotalSize, img.Size)

	sizes := map[string]container.Summary{}
	for _, c := range u.ContainerUsage.Items {
		sizes[c.ID] = c
	}
	require.Contains(s, sizes, running)
	require.Contains(s, sizes, stopped)
	assert.Positive(s, sizes[running].SizeRootFs)
	assert.Equal(s, int64(len(sizes)), u.ContainerUsage.TotalCount)
	assert.GreaterOrEqual(s, u.ContainerUsage.ActiveCount, int64(1))
	assert.Less(s, u.ContainerUsage.ActiveCount, u.ContainerUsage.TotalCount)

	v := slices.IndexFunc(u.VolumeUsage.Items, func(v volume.Volume) bool { return v.Name == vol.Name })
	require.GreaterOrEqual(s, v, 0)
	require.NotNil(s, u.VolumeUsage.Items[v].UsageData)
	assert.Equal(s, int64(1), u.VolumeUsage.Items[v].UsageData.RefCount)
	assert.GreaterOrEqual(s, u.VolumeUsage.Items[v].UsageData.Size, int64(0))
	assert.GreaterOrEqual(s, u.VolumeUsage.ActiveCount, int64(1))
}

func testUsageKinds(s *suite) {
	u := s.usage(system.VolumeObject)
	assert.NotNil(s, u.VolumeUsage)
	assert.Nil(s, u.ImageUsage)
	assert.Nil(s, u.ContainerUsage)
	assert.Nil(s, u.BuildCacheUsage)
	u = s.usage(system.ImageObject, system.ContainerObject)
	assert.NotNil(s, u.ImageUsage)
	assert.NotNil(s, u.ContainerUsage)
	assert.Nil(s, u.VolumeUsage)
}

// testSharedLayers loads two images that have a layer in common.
func testSharedLayers(s *suite) {
	common := []imagetar.File{{Name: "common", Body: []byte(s.label + " is in both"), Mode: 0o644}}
	var ids []string
	for _, tag := range []string{"a", "b"} {
		ref := s.label + "-shared:" + tag
		s.load(Archive(s, ref, ocispec.ImageConfig{Labels: map[string]string{"which": tag}}, common,
			[]imagetar.File{{Name: "own", Body: []byte(s.label + tag)}}))
		ids = append(ids, s.image(ref).ID)
		s.Cleanup(func() { _, _ = s.Engine.RemoveImage(cleanup(s), ref, api.ImageRemoveOptions{Force: true}) })
	}
	found := map[string]image.Summary{}
	for _, i := range s.usage(system.ImageObject).ImageUsage.Items {
		found[i.ID] = i
	}
	for _, id := range ids {
		require.Contains(s, found, id)
		assert.Positive(s, found[id].SharedSize)
		assert.Less(s, found[id].SharedSize, found[id].Size)
	}
	assert.Equal(s, found[ids[0]].SharedSize, found[ids[1]].SharedSize)
	all, err := s.Engine.ListImages(s.ctx, api.ImageListOptions{SharedSize: true, Filters: api.Filters{"reference": {s.label + "-shared"}}})
	require.NoError(s, err)
	require.Len(s, all, 2)
	for _, i := range all {
		assert.Positive(s, i.SharedSize)
	}
}
