package client

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
)

// ListVolumes implements api.Volumes.
func (c *Client) ListVolumes(ctx context.Context, f api.Filters) (all volume.ListResponse, err error) {
	q, err := query().filters(f)
	if err != nil {
		return all, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/volumes", query: q.Values}, &all)
	return all, err
}

// InspectVolume implements api.Volumes.
func (c *Client) InspectVolume(ctx context.Context, name string) (v volume.Volume, err error) {
	s, err := segment("volume", name)
	if err != nil {
		return v, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/volumes/" + s}, &v)
	return v, err
}

// CreateVolume implements api.Volumes.
func (c *Client) CreateVolume(ctx context.Context, o volume.CreateRequest) (v volume.Volume, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: "/volumes/create", body: o}, &v)
	return v, err
}

// RemoveVolume implements api.Volumes.
func (c *Client) RemoveVolume(ctx context.Context, name string, force bool) error {
	s, err := segment("volume", name)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: http.MethodDelete, path: "/volumes/" + s, query: query().flag("force", force).Values}, nil)
}

// PruneVolumes implements api.Volumes.
func (c *Client) PruneVolumes(ctx context.Context, f api.Filters) (report volume.PruneReport, err error) {
	q, err := query().filters(f)
	if err != nil {
		return report, err
	}
	err = c.call(ctx, request{method: http.MethodPost, path: "/volumes/prune", query: q.Values}, &report)
	return report, err
}

// DiskUsage implements api.System.
func (c *Client) DiskUsage(ctx context.Context, o api.DiskUsageOptions) (u system.DiskUsage, err error) {
	q := query().flag("verbose", true)
	for _, k := range o.Kinds {
		q.Add("type", string(k))
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/system/df", query: q.Values}, &u)
	return u, err
}
