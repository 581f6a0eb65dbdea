package listing

import (
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
)

// ImageUsage counts as "docker system df" does: total is what all layers take, each
// once, and reclaimable all of it but what only images that containers use have.
func ImageUsage(items []image.Summary, total int64) *image.DiskUsage {
	u := &image.DiskUsage{Items: items, TotalCount: int64(len(items)), TotalSize: total, Reclaimable: total}
	for _, i := range items {
		if i.Containers <= 0 {
			continue
		}
		u.ActiveCount++
		if i.Size >= 0 && i.SharedSize >= 0 {
			u.Reclaimable -= i.Size - i.SharedSize
		}
	}
	return u
}

// SharedSizes fills in what each image's layers take that others have as well, and
// returns what all layers take together. layers are those of an image by its ID; sizes
// are by layer.
func SharedSizes(items []image.Summary, layers func(id string) []string, sizes map[string]int64) (total int64) {
	users := map[string]int{}
	own := make([]map[string]bool, len(items))
	for n, i := range items {
		own[n] = map[string]bool{}
		for _, l := range layers(i.ID) {
			if own[n][l] {
				continue
			}
			own[n][l] = true
			if users[l]++; users[l] == 1 {
				total += sizes[l]
			}
		}
	}
	for n := range items {
		items[n].SharedSize = 0
		for l := range own[n] {
			if users[l] > 1 {
				items[n].SharedSize += sizes[l]
			}
		}
	}
	return total
}

// ContainerUsage counts what containers wrote; those without process could go.
func ContainerUsage(items []container.Summary) *container.DiskUsage {
	u := &container.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for _, c := range items {
		u.TotalSize += c.SizeRw
		if Running(c.State) {
			u.ActiveCount++
		} else {
			u.Reclaimable += c.SizeRw
		}
	}
	return u
}

// VolumeUsage counts measured volumes; those that no container has could go.
func VolumeUsage(items []volume.Volume) *volume.DiskUsage {
	u := &volume.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for _, v := range items {
		if v.UsageData == nil {
			continue
		}
		size := max(0, v.UsageData.Size) // -1 is not known
		u.TotalSize += size
		if v.UsageData.RefCount > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += size
		}
	}
	return u
}

// NoBuildCache is the usage of a cache that there isn't.
func NoBuildCache() *build.DiskUsage { return &build.DiskUsage{Items: []build.CacheRecord{}} }
