package node

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// DiskUsage implements api.System.
func (n *Node) DiskUsage(ctx context.Context, o api.DiskUsageOptions) (system.DiskUsage, error) {
	var u system.DiskUsage
	if err := n.up(ctx); err != nil {
		return u, err
	}
	if o.Wants(system.ImageObject) {
		items, total, err := n.imageSpace(ctx)
		if err != nil {
			return u, fmt.Errorf("measure images: %w", err)
		}
		u.ImageUsage = listing.ImageUsage(items, total)
	}
	if o.Wants(system.ContainerObject) {
		items, err := n.summaries(ctx, true)
		if err != nil {
			return u, fmt.Errorf("measure containers: %w", err)
		}
		u.ContainerUsage = listing.ContainerUsage(items)
	}
	if o.Wants(system.VolumeObject) {
		items, err := n.measured(ctx)
		if err != nil {
			return u, fmt.Errorf("measure volumes: %w", err)
		}
		u.VolumeUsage = listing.VolumeUsage(items)
	}
	if o.Wants(system.BuildCacheObject) {
		u.BuildCacheUsage = listing.NoBuildCache()
	}
	return u, nil
}

// imageSpace is what images take: all layers unpacked, each once.
func (n *Node) imageSpace(ctx context.Context) (items []image.Summary, total int64, err error) {
	items, _, total, err = n.imageLayers(ctx)
	return items, total, err
}

// imageLayers describes images with what they share, and tells the sizes of their
// layers by chain ID and together.
func (n *Node) imageLayers(ctx context.Context) (items []image.Summary, sizes map[string]int64, total int64, err error) {
	if items, err = n.imageSummaries(ctx); err != nil {
		return nil, nil, 0, err
	}
	images, err := n.images.List(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	layers := map[string][]string{}
	sizes = map[string]int64{}
	for _, i := range images {
		for at, chain := range i.Chains {
			layers[i.ID.String()] = append(layers[i.ID.String()], chain.String())
			sizes[chain.String()] = i.LayerSizes[at]
		}
	}
	total = listing.SharedSizes(items, func(id string) []string { return layers[id] }, sizes)
	return items, sizes, total, nil
}
