package server

import (
	"net/http"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
)

func usageRoutes() []route {
	return []route{{method: "GET", path: "/system/df", id: "SystemDataUsage", doc: "What takes space",
		query: []param{{"type", "string", "container, image, volume or build-cache; may be repeated"},
			{"verbose", "boolean", "with what it is that takes the space"}},
		status: 200, answer: system.DiskUsage{}, handle: diskUsage},
		{method: "POST", path: "/build/prune", id: "BuildPrune", doc: "Empty the build cache; there is none",
			query:  []param{{"all", "boolean", "also what is in use"}, {"filters", "string", "JSON of keys and values"}},
			status: 200, answer: build.CachePruneReport{}, handle: pruneBuilds}}
}

// pruneBuilds finds nothing to do: docker system prune asks for it all the same.
func pruneBuilds(c *call) error {
	if _, err := c.filters(); err != nil {
		return err
	}
	return c.json(http.StatusOK, build.CachePruneReport{CachesDeleted: []string{}})
}

func diskUsage(c *call) error {
	var o api.DiskUsageOptions
	if !c.version.below(42) {
		for _, t := range c.query["type"] {
			kind := system.DiskUsageObject(t)
			switch kind {
			case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
			default:
				return api.InvalidArgument("unknown object type: %s", t)
			}
			o.Kinds = append(o.Kinds, kind)
		}
	}
	u, err := c.engine.DiskUsage(c.r.Context(), o)
	if err != nil {
		return err
	}
	switch {
	case c.version.below(52):
		return c.json(http.StatusOK, c.oldUsage(u))
	case c.flag("verbose"):
		return c.json(http.StatusOK, u)
	case c.version.below(53): // the one version that says both
		old := c.oldUsage(u)
		return c.json(http.StatusOK, struct {
			oldUsage
			system.DiskUsage
		}{old, briefly(u)})
	}
	return c.json(http.StatusOK, briefly(u))
}

// briefly leaves out what it is that takes the space.
func briefly(u system.DiskUsage) system.DiskUsage {
	if u.ImageUsage != nil {
		brief := *u.ImageUsage
		brief.Items, u.ImageUsage = nil, &brief
	}
	if u.ContainerUsage != nil {
		brief := *u.ContainerUsage
		brief.Items, u.ContainerUsage = nil, &brief
	}
	if u.VolumeUsage != nil {
		brief := *u.VolumeUsage
		brief.Items, u.VolumeUsage = nil, &brief
	}
	if u.BuildCacheUsage != nil {
		brief := *u.BuildCacheUsage
		brief.Items, u.BuildCacheUsage = nil, &brief
	}
	return u
}

// oldUsage is the answer up to API 1.52, in which clients count for themselves.
type oldUsage struct {
	LayersSize  int64
	Images      []oldImage
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []build.CacheRecord
	BuilderSize *int64 `json:",omitempty"` // up to 1.41
}

// oldUsage leaves null what wasn't asked for.
func (c *call) oldUsage(u system.DiskUsage) oldUsage {
	var old oldUsage
	if u.ImageUsage != nil {
		old.LayersSize, old.Images = u.ImageUsage.TotalSize, c.oldImages(u.ImageUsage.Items)
	}
	if u.ContainerUsage != nil {
		old.Containers = c.oldSummaries(u.ContainerUsage.Items)
	}
	if u.VolumeUsage != nil {
		old.Volumes = orEmpty(u.VolumeUsage.Items)
	}
	if u.BuildCacheUsage != nil {
		old.BuildCache = orEmpty(u.BuildCacheUsage.Items)
		if c.version.below(42) {
			old.BuilderSize = &u.BuildCacheUsage.TotalSize
		}
	}
	return old
}
