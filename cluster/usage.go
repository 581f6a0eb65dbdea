package cluster

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// DiskUsage implements api.System: what the reachable nodes' disks hold. An image is
// one item whose sizes are those of all its copies together.
func (r *Router) DiskUsage(ctx context.Context, o api.DiskUsageOptions) (system.DiskUsage, error) {
	var mu sync.Mutex
	parts := map[string]system.DiskUsage{}
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.DiskUsage(ctx, o)
		mu.Lock()
		defer mu.Unlock()
		parts[n.ID] = part
		return err
	})
	var u system.DiskUsage
	if err != nil {
		return u, err
	}
	if o.Wants(system.ImageObject) {
		if u.ImageUsage, err = r.imageUsage(ctx, parts); err != nil {
			return u, err
		}
	}
	if o.Wants(system.ContainerObject) {
		if u.ContainerUsage, err = r.containerUsage(ctx, parts); err != nil {
			return u, err
		}
	}
	if o.Wants(system.VolumeObject) {
		u.VolumeUsage = r.volumeUsage(parts)
	}
	if o.Wants(system.BuildCacheObject) {
		u.BuildCacheUsage = listing.NoBuildCache()
	}
	return u, nil
}

// imageUsage adds up copies. What could go is counted node by node: a copy that no
// container of its own node uses could.
func (r *Router) imageUsage(ctx context.Context, parts map[string]system.DiskUsage) (*image.DiskUsage, error) {
	known, err := r.ListImages(ctx, api.ImageListOptions{All: true})
	if err != nil {
		return nil, err
	}
	var total, reclaimable int64
	sums := map[string]*image.Summary{}
	for _, part := range parts {
		if part.ImageUsage == nil {
			continue
		}
		total += part.ImageUsage.TotalSize
		reclaimable += part.ImageUsage.Reclaimable
		for _, i := range part.ImageUsage.Items {
			sum := sums[i.ID]
			if sum == nil {
				sums[i.ID] = &i
				continue
			}
			sum.Size += i.Size
			sum.SharedSize += i.SharedSize
			sum.Containers += i.Containers
		}
	}
	items := []image.Summary{}
	for _, i := range known { // in the order and under the names of listings
		if sum := sums[i.ID]; sum != nil {
			i.Size, i.SharedSize, i.Containers = sum.Size, sum.SharedSize, sum.Containers
			items = append(items, i)
		}
	}
	u := listing.ImageUsage(items, total)
	u.Reclaimable = reclaimable
	return u, nil
}

// containerUsage is the cluster's list with what the nodes measured. Containers of
// nodes that can't be asked have no size.
func (r *Router) containerUsage(ctx context.Context, parts map[string]system.DiskUsage) (*container.DiskUsage, error) {
	items, err := r.ListContainers(ctx, api.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	sizes := map[string]container.Summary{}
	for _, part := range parts {
		if part.ContainerUsage != nil {
			for _, c := range part.ContainerUsage.Items {
				sizes[c.ID] = c
			}
		}
	}
	for i := range items {
		items[i].SizeRw, items[i].SizeRootFs = sizes[items[i].ID].SizeRw, sizes[items[i].ID].SizeRootFs
	}
	return listing.ContainerUsage(items), nil
}

func (r *Router) volumeUsage(parts map[string]system.DiskUsage) *volume.DiskUsage {
	items := []volume.Volume{}
	for node, part := range parts {
		if part.VolumeUsage != nil {
			for _, v := range part.VolumeUsage.Items {
				items = append(items, r.placed(v, node))
			}
		}
	}
	slices.SortFunc(items, func(a, b volume.Volume) int { return strings.Compare(a.Name+"/"+a.Mountpoint, b.Name+"/"+b.Mountpoint) })
	return listing.VolumeUsage(items)
}
