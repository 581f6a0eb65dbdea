package apitest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// volumeSize is what the fake says every volume takes: nothing is written into them.
const volumeSize = 4096

// ListVolumes implements api.Volumes.
func (f *Fake) ListVolumes(ctx context.Context, filters api.Filters) (volume.ListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Collect(maps.Values(f.volumes))
	found, err := listing.Volumes(all, filters, func(v volume.Volume) bool { return len(f.usersOf(v.Name)) > 0 })
	if err != nil {
		return volume.ListResponse{}, err
	}
	return volume.ListResponse{Volumes: found}, ctx.Err()
}

// InspectVolume implements api.Volumes.
func (f *Fake) InspectVolume(ctx context.Context, name string) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.volumes[name]
	if !ok {
		return v, listing.NoSuchVolume(name)
	}
	return v, ctx.Err()
}

// CreateVolume implements api.Volumes.
func (f *Fake) CreateVolume(ctx context.Context, o volume.CreateRequest) (volume.Volume, error) {
	if err := listing.CheckVolume(o); err != nil {
		return volume.Volume{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.volume(o), ctx.Err()
}

// volume finds a volume, or makes it. The lock is held.
func (f *Fake) volume(o volume.CreateRequest) volume.Volume {
	if v, ok := f.volumes[o.Name]; ok {
		return v
	}
	labels := maps.Clone(o.Labels)
	if o.Name == "" {
		o.Name = f.newID()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[listing.AnonymousLabel] = ""
	}
	v := volume.Volume{
		Name: o.Name, Driver: "local", Scope: "local", Labels: labels, Mountpoint: "/fake/volumes/" + o.Name + "/_data",
		CreatedAt: time.Now().UTC().Format(time.RFC3339),
	}
	f.volumes[v.Name] = v
	f.emit(events.VolumeEventType, events.ActionCreate, v.Name, map[string]string{"driver": "local"})
	return v
}

// usersOf are the containers that have a volume, sorted. The lock is held.
func (f *Fake) usersOf(name string) []string {
	var ids []string
	for id, c := range f.containers {
		if slices.ContainsFunc(c.mounts, func(m container.MountPoint) bool { return m.Type == mount.TypeVolume && m.Name == name }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// RemoveVolume implements api.Volumes.
func (f *Fake) RemoveVolume(ctx context.Context, name string, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.volumes[name]; !ok {
		if force {
			return ctx.Err()
		}
		return listing.NoSuchVolume(name)
	}
	if users := f.usersOf(name); len(users) > 0 {
		return listing.VolumeInUse(name, users)
	}
	f.dropVolume(name)
	return ctx.Err()
}

func (f *Fake) dropVolume(name string) {
	delete(f.volumes, name)
	f.emit(events.VolumeEventType, events.ActionDestroy, name, map[string]string{"driver": "local"})
}

// PruneVolumes implements api.Volumes.
func (f *Fake) PruneVolumes(ctx context.Context, filters api.Filters) (volume.PruneReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	report := volume.PruneReport{VolumesDeleted: []string{}}
	var unused []volume.Volume
	for _, name := range slices.Sorted(maps.Keys(f.volumes)) {
		if len(f.usersOf(name)) == 0 {
			unused = append(unused, f.volumes[name])
		}
	}
	found, err := listing.PrunableVolumes(unused, filters)
	if err != nil {
		return report, err
	}
	for _, v := range found {
		f.dropVolume(v.Name)
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += volumeSize
	}
	return report, ctx.Err()
}

// mount gives a container that is being made its volumes. The lock is held.
func (c *fakeContainer) mount() {
	var asked []mount.Mount
	for _, b := range c.host.Binds {
		if source, target, ok := strings.Cut(b, ":"); ok && !strings.HasPrefix(source, "/") {
			target, _, _ = strings.Cut(target, ":")
			asked = append(asked, mount.Mount{Type: mount.TypeVolume, Source: source, Target: target})
		}
	}
	for _, m := range c.host.Mounts {
		if m.Type == mount.TypeVolume {
			asked = append(asked, m)
		}
	}
	for target := range c.config.Volumes {
		asked = append(asked, mount.Mount{Type: mount.TypeVolume, Target: target})
	}
	for _, m := range asked {
		o := volume.CreateRequest{Name: m.Source}
		if m.VolumeOptions != nil {
			o.Labels = m.VolumeOptions.Labels
		}
		v := c.f.volume(o)
		c.mounts = append(c.mounts, container.MountPoint{
			Type: mount.TypeVolume, Name: v.Name, Source: v.Mountpoint, Destination: m.Target, Driver: "local", RW: !m.ReadOnly,
		})
		if m.Source == "" {
			c.anonymous = append(c.anonymous, v.Name)
		}
	}
}

// unmount removes the volumes that a forgotten container made for itself. The lock is
// held.
func (c *fakeContainer) unmount() {
	for _, name := range c.anonymous {
		if _, ok := c.f.volumes[name]; ok && len(c.f.usersOf(name)) == 0 {
			c.f.dropVolume(name)
		}
	}
}

// DiskUsage implements api.System. A container has written nothing.
func (f *Fake) DiskUsage(ctx context.Context, o api.DiskUsageOptions) (system.DiskUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var u system.DiskUsage
	if o.Wants(system.ImageObject) {
		items, total := f.imageSpace()
		u.ImageUsage = listing.ImageUsage(items, total)
	}
	if o.Wants(system.ContainerObject) {
		items := f.summaries()
		for i := range items {
			items[i].SizeRootFs = f.images[digest.Digest(items[i].ImageID)].size
		}
		u.ContainerUsage = listing.ContainerUsage(items)
	}
	if o.Wants(system.VolumeObject) {
		items := []volume.Volume{}
		for _, name := range slices.Sorted(maps.Keys(f.volumes)) {
			v := f.volumes[name]
			v.UsageData = &volume.UsageData{Size: volumeSize, RefCount: int64(len(f.usersOf(name)))}
			items = append(items, v)
		}
		u.VolumeUsage = listing.VolumeUsage(items)
	}
	if o.Wants(system.BuildCacheObject) {
		u.BuildCacheUsage = listing.NoBuildCache()
	}
	return u, ctx.Err()
}

// imageSpace is what images take, layers that several have once. The lock is held.
func (f *Fake) imageSpace() ([]image.Summary, int64) {
	items := []image.Summary{}
	sizes, layers := map[string]int64{}, map[string][]string{}
	for _, id := range slices.Sorted(maps.Keys(f.images)) {
		i := f.images[id]
		items = append(items, f.imageSummary(i))
		for _, l := range i.layers {
			d := digest.FromBytes(l).String()
			sizes[d] = int64(len(l))
			layers[id.String()] = append(layers[id.String()], d)
		}
	}
	total := listing.SharedSizes(items, func(id string) []string { return layers[id] }, sizes)
	return items, total
}
