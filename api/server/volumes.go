package server

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
)

func volumeRoutes() []route {
	filters := param{"filters", "string", "JSON of keys and values"}
	return []route{
		{method: "GET", path: "/volumes", id: "VolumeList", doc: "List volumes",
			query: []param{filters}, status: 200, answer: volume.ListResponse{}, handle: listVolumes},
		{method: "POST", path: "/volumes/create", id: "VolumeCreate", doc: "Make a volume",
			body: volume.CreateRequest{}, status: 201, answer: volume.Volume{}, handle: createVolume},
		{method: "POST", path: "/volumes/prune", id: "VolumePrune", doc: "Remove volumes nobody needs",
			query: []param{filters}, status: 200, answer: volume.PruneReport{}, handle: pruneVolumes},
		{method: "GET", path: "/volumes/{name}", id: "VolumeInspect", doc: "Inspect a volume",
			status: 200, answer: volume.Volume{}, handle: inspectVolume},
		{method: "DELETE", path: "/volumes/{name}", id: "VolumeDelete", doc: "Remove a volume",
			query: []param{{"force", "boolean", "one that isn't there is no error"}}, status: 204, handle: removeVolume},
	}
}

func listVolumes(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	all, err := c.engine.ListVolumes(c.r.Context(), f)
	if err != nil {
		return err
	}
	all.Volumes = orEmpty(all.Volumes)
	return c.json(http.StatusOK, all)
}

func createVolume(c *call) error {
	var o volume.CreateRequest
	if err := c.decode(&o); err != nil {
		return err
	}
	if c.version.below(42) {
		o.ClusterVolumeSpec = nil
	}
	v, err := c.engine.CreateVolume(c.r.Context(), o)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, v)
}

func inspectVolume(c *call) error {
	v, err := c.engine.InspectVolume(c.r.Context(), c.arg)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func removeVolume(c *call) error {
	if err := c.engine.RemoveVolume(c.r.Context(), c.arg, c.flag("force")); err != nil {
		return err
	}
	return c.noContent()
}

func pruneVolumes(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if c.version.below(42) {
		// Anonymous and named ones were not told apart then.
		if f == nil {
			f = api.Filters{}
		}
		f["all"] = []string{"true"}
	}
	report, err := c.engine.PruneVolumes(c.r.Context(), f)
	if err != nil {
		return err
	}
	report.VolumesDeleted = orEmpty(report.VolumesDeleted)
	return c.json(http.StatusOK, report)
}
