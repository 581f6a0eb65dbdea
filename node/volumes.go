package node

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	nodeimage "github.com/shoal-engine/shoal/node/image"
)

// ListVolumes implements api.Volumes.
func (n *Node) ListVolumes(ctx context.Context, f api.Filters) (volume.ListResponse, error) {
	var none volume.ListResponse
	if err := n.up(ctx); err != nil { // who uses them is known only then
		return none, err
	}
	all, unread, err := n.volumes.list()
	if err != nil {
		return none, err
	}
	users := n.volumeUsers()
	found, err := listing.Volumes(all, f, func(v volume.Volume) bool { return len(users[v.Name]) > 0 })
	if err != nil {
		return none, err
	}
	r := volume.ListResponse{Volumes: found}
	for _, err := range unread {
		r.Warnings = append(r.Warnings, err.Error())
	}
	return r, nil
}

// InspectVolume implements api.Volumes.
func (n *Node) InspectVolume(_ context.Context, name string) (volume.Volume, error) {
	return n.volumes.get(name)
}

// CreateVolume implements api.Volumes.
func (n *Node) CreateVolume(_ context.Context, o volume.CreateRequest) (volume.Volume, error) {
	if err := listing.CheckVolume(o); err != nil {
		return volume.Volume{}, err
	}
	i := volumeInfo{Name: o.Name, Labels: maps.Clone(o.Labels)}
	if i.Name == "" {
		i.Name = newID(64)
		if i.Labels == nil {
			i.Labels = map[string]string{}
		}
		i.Labels[listing.AnonymousLabel] = ""
	}
	made, err := n.volumes.ensure(i)
	if err != nil {
		return volume.Volume{}, err
	}
	if made {
		n.volumeChanged(events.ActionCreate, i.Name)
	}
	return n.volumes.get(i.Name)
}

func (n *Node) volumeChanged(action events.Action, name string) {
	n.journal.add(events.VolumeEventType, action, name, map[string]string{"driver": "local"})
}

// RemoveVolume implements api.Volumes.
func (n *Node) RemoveVolume(ctx context.Context, name string, force bool) error {
	if err := n.up(ctx); err != nil {
		return err
	}
	err := n.dropVolume(name)
	if force && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// dropVolume removes a volume that no container has.
func (n *Node) dropVolume(name string) error {
	done, err := n.volumes.take(name, func() []string { return n.volumeUsers()[name] })
	if err != nil {
		return err
	}
	n.volumeChanged(events.ActionDestroy, name)
	return done()
}

// volumeUsers are the containers that have volumes, by the volumes' names.
func (n *Node) volumeUsers() map[string][]string {
	users := map[string][]string{}
	for _, c := range n.index.all() {
		for _, m := range c.get().Mounts {
			if m.Type == mount.TypeVolume && !slices.Contains(users[m.Name], c.id) {
				users[m.Name] = append(users[m.Name], c.id)
			}
		}
	}
	return users
}

// PruneVolumes implements api.Volumes.
func (n *Node) PruneVolumes(ctx context.Context, f api.Filters) (volume.PruneReport, error) {
	report := volume.PruneReport{VolumesDeleted: []string{}}
	if err := n.up(ctx); err != nil {
		return report, err
	}
	all, _, err := n.volumes.list()
	if err != nil {
		return report, err
	}
	users := n.volumeUsers()
	all = slices.DeleteFunc(all, func(v volume.Volume) bool { return len(users[v.Name]) > 0 })
	which, err := listing.PrunableVolumes(all, f)
	if err != nil {
		return report, err
	}
	for _, v := range which {
		size, _ := nodeimage.TreeSize(ctx, v.Mountpoint) // one that can't be measured can still go
		err := n.dropVolume(v.Name)
		if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
			continue // somebody took it, or removed it
		}
		if err != nil {
			return report, err
		}
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
	}
	n.journal.add(events.VolumeEventType, events.ActionPrune, "", map[string]string{"reclaimed": decimal(report.SpaceReclaimed)})
	return report, nil
}

// removeVolumes removes the volumes that a container made for itself.
func (n *Node) removeVolumes(r record) {
	for _, m := range r.Mounts {
		if m.Type != mount.TypeVolume || !m.Anonymous || !n.volumes.madeBy(m.Name, r.ID) {
			continue
		}
		err := n.dropVolume(m.Name)
		if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			n.log.Warn("remove a volume", "container", r.ID, "volume", m.Name, "err", err)
		}
	}
}

// measured describes all volumes with what they take and how many containers have them.
func (n *Node) measured(ctx context.Context) ([]volume.Volume, error) {
	all, _, err := n.volumes.list()
	if err != nil {
		return nil, err
	}
	users := n.volumeUsers()
	found := []volume.Volume{}
	for _, v := range all {
		size, err := nodeimage.TreeSize(ctx, v.Mountpoint)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			n.log.Warn("measure a volume", "volume", v.Name, "err", err)
			size = -1
		}
		v.UsageData = &volume.UsageData{Size: size, RefCount: int64(len(users[v.Name]))}
		found = append(found, v)
	}
	return found, nil
}
