package apitest

import (
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

func volumeTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"CreateInspectRemove": testVolume, "InUse": testVolumeInUse, "Filters": testVolumeFilters,
		"Prune": testVolumePrune, "Anonymous": testAnonymousVolumes, "ByRun": testVolumeByRun,
		"Refused": testVolumeRefused,
	}
}

// volume makes a volume with the test's label that is removed after the test.
func (s *suite) volume(name string, labels ...string) volume.Volume {
	s.Helper()
	o := volume.CreateRequest{Name: name, Labels: map[string]string{s.label: "yes"}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		o.Labels[k] = v
	}
	v, err := s.Engine.CreateVolume(s.ctx, o)
	require.NoError(s, err)
	s.dropVolume(v.Name)
	return v
}

// dropVolume registers the removal of a volume.
func (s *suite) dropVolume(name string) {
	s.Cleanup(func() {
		if err := s.Engine.RemoveVolume(cleanup(s), name, true); err != nil {
			s.Errorf("remove volume %s: %v", name, err)
		}
	})
}

// volumes lists names of the test's own volumes that the filters admit.
func (s *suite) volumes(f api.Filters) []string {
	s.Helper()
	f["label"] = append(f["label"], s.label)
	all, err := s.Engine.ListVolumes(s.ctx, f)
	require.NoError(s, err)
	names := []string{}
	for _, v := range all.Volumes {
		names = append(names, v.Name)
	}
	return names
}

// with is a container that has a volume.
func (s *suite) with(bind string) api.CreateOptions {
	o := s.options("true")
	o.HostConfig.Binds = []string{bind}
	return o
}

func testVolume(s *suite) {
	name := s.name("data")
	made := s.volume(name, "color=blue")
	assert.Equal(s, name, made.Name)
	assert.Equal(s, "local", made.Driver)
	assert.Equal(s, "local", made.Scope)
	assert.NotEmpty(s, made.Mountpoint)
	assert.Equal(s, "blue", made.Labels["color"])
	_, err := time.Parse(time.RFC3339, made.CreatedAt)
	require.NoError(s, err)
	again, err := s.Engine.CreateVolume(s.ctx, volume.CreateRequest{Name: name, Labels: map[string]string{"color": "red"}})
	require.NoError(s, err)
	assert.Equal(s, made, again, "it is there already")
	found, err := s.Engine.InspectVolume(s.ctx, name)
	require.NoError(s, err)
	assert.Equal(s, made, found)
	assert.Nil(s, found.UsageData)
	assert.Equal(s, []string{name}, s.volumes(api.Filters{}))

	require.NoError(s, s.Engine.RemoveVolume(s.ctx, name, false))
	assert.Empty(s, s.volumes(api.Filters{}))
	_, err = s.Engine.InspectVolume(s.ctx, name)
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.ErrorContains(s, err, "get "+name+": no such volume")
	err = s.Engine.RemoveVolume(s.ctx, name, false)
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.ErrorContains(s, err, "get "+name+": no such volume")
	require.NoError(s, s.Engine.RemoveVolume(s.ctx, name, true))
}

func testVolumeInUse(s *suite) {
	name := s.name("data")
	s.volume(name)
	id := s.create(s.with(name + ":/data"))
	for _, force := range []bool{false, true} {
		err := s.Engine.RemoveVolume(s.ctx, name, force)
		assert.True(s, errdefs.IsConflict(err), "%v", err)
		assert.ErrorContains(s, err, "remove "+name+": volume is in use - ["+id+"]")
	}
	assert.Equal(s, []string{name}, s.volumes(api.Filters{"dangling": {"false"}}))
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{Volumes: true}))
	assert.Equal(s, []string{name}, s.volumes(api.Filters{"dangling": {"true"}}), "one with a name stays")
	require.NoError(s, s.Engine.RemoveVolume(s.ctx, name, false))
}

func testVolumeFilters(s *suite) {
	a, b := s.name("first"), s.name("second")
	s.volume(a, "color=blue")
	s.volume(b, "color=red")
	s.create(s.with(a + ":/data"))
	for want, f := range map[string]api.Filters{
		a + " " + b: {},
		a:           {"label": {"color=blue"}},
		b:           {"name": {"^second"}},
		" " + b:     {"dangling": {"1"}},
		a + " ":     {"dangling": {"false"}, "driver": {"local"}},
		"":          {"driver": {"other"}},
		" ":         {"name": {"nothing-has-this"}},
	} {
		assert.Equal(s, strings.Fields(want), s.volumes(f), "%v", f)
	}
	for _, f := range []api.Filters{{"bogus": {"x"}}, {"dangling": {"perhaps"}}} {
		_, err := s.Engine.ListVolumes(s.ctx, f)
		assert.True(s, errdefs.IsInvalidArgument(err), "%v: %v", f, err)
	}
}

func testVolumePrune(s *suite) {
	named, used := s.name("named"), s.name("used")
	s.volume(named)
	s.volume(used)
	nameless := s.volume("")
	assert.Regexp(s, `^[0-9a-f]{64}$`, nameless.Name)
	assert.Contains(s, nameless.Labels, listing.AnonymousLabel)
	s.create(s.with(used + ":/data"))

	report, err := s.Engine.PruneVolumes(s.ctx, api.Filters{"label": {s.label}})
	require.NoError(s, err)
	assert.Equal(s, []string{nameless.Name}, report.VolumesDeleted)
	report, err = s.Engine.PruneVolumes(s.ctx, api.Filters{"label": {s.label}, "label!": {s.label}, "all": {"true"}})
	require.NoError(s, err)
	assert.Empty(s, report.VolumesDeleted)
	report, err = s.Engine.PruneVolumes(s.ctx, api.Filters{"label": {s.label}, "all": {"true"}})
	require.NoError(s, err)
	assert.Equal(s, []string{named}, report.VolumesDeleted)
	assert.Equal(s, []string{used}, s.volumes(api.Filters{}))
	_, err = s.Engine.PruneVolumes(s.ctx, api.Filters{"bogus": {"x"}})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
}

// mounted are the names of a container's volumes.
func (s *suite) mounted(id string) []string {
	var names []string
	for _, m := range s.inspect(id).Mounts {
		if m.Type == mount.TypeVolume {
			names = append(names, m.Name)
		}
	}
	return names
}

func testAnonymousVolumes(s *suite) {
	nameless := func() api.CreateOptions {
		o := s.options("true")
		o.Config.Volumes = map[string]struct{}{"/data": {}}
		return o
	}
	has := func(name string) bool {
		_, err := s.Engine.InspectVolume(s.ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			require.NoError(s, err)
		}
		return err == nil
	}
	kept := s.create(nameless())
	names := s.mounted(kept)
	require.Len(s, names, 1)
	s.dropVolume(names[0])
	v, err := s.Engine.InspectVolume(s.ctx, names[0])
	require.NoError(s, err)
	assert.Contains(s, v.Labels, listing.AnonymousLabel)
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, kept, api.RemoveOptions{}))
	assert.True(s, has(names[0]), "without -v it stays")

	gone := s.create(nameless())
	names = s.mounted(gone)
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, gone, api.RemoveOptions{Volumes: true}))
	assert.False(s, has(names[0]), "with -v it goes")

	o := nameless()
	o.HostConfig.AutoRemove = true
	auto := s.create(o)
	names = s.mounted(auto)
	w := s.wait(auto, container.WaitConditionRemoved)
	s.start(auto)
	s.recv(w)
	assert.False(s, has(names[0]), "with --rm it goes")
}

func testVolumeByRun(s *suite) {
	name, labelled := s.name("by-run"), s.name("by-mount")
	o := s.with(name + ":/data:ro")
	o.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: labelled, Target: "/more",
		VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{s.label: "yes"}}}}
	s.dropVolume(name)
	s.dropVolume(labelled)
	id := s.create(o)
	names := s.mounted(id)
	slices.Sort(names)
	assert.Equal(s, []string{labelled, name}, names)
	v, err := s.Engine.InspectVolume(s.ctx, name)
	require.NoError(s, err)
	assert.Empty(s, v.Labels)
	assert.Equal(s, []string{labelled}, s.volumes(api.Filters{}))
	// A volume's cleanup comes before its container's.
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{}))
}

func testVolumeRefused(s *suite) {
	for name, o := range map[string]volume.CreateRequest{
		"characters": {Name: "no/slash"}, "short": {Name: "x"},
		"options": {Name: s.name("o"), DriverOpts: map[string]string{"type": "tmpfs"}},
	} {
		_, err := s.Engine.CreateVolume(s.ctx, o)
		assert.True(s, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
	_, err := s.Engine.CreateVolume(s.ctx, volume.CreateRequest{Name: s.name("d"), Driver: "nope"})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.ErrorContains(s, err, `error looking up volume plugin nope: plugin "nope" not found`)
}
