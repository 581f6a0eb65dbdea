package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

// idHeader carries CreateOptions.ID.
const idHeader = "X-Shoal-Container-Id"

// segment is a reference made a part of a path, where only images' have slashes.
// Escaping is the URL's work.
func segment(kind, ref string) (string, error) {
	if ref == "" || ref == "." || ref == ".." {
		return "", api.InvalidArgument("invalid name or ID supplied: %q", ref)
	}
	if kind != "image" && strings.Contains(ref, "/") {
		return "", api.NotFound("No such %s: %s", kind, ref)
	}
	return ref, nil
}

// containerCall is a call about one container.
func (c *Client) containerCall(ctx context.Context, method, id, act string, q url.Values, body, answer any) error {
	s, err := segment("container", strings.TrimPrefix(id, "/"))
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: method, path: "/containers/" + s + act, query: q, body: body}, answer)
}

// CreateContainer implements api.Containers.
func (c *Client) CreateContainer(ctx context.Context, o api.CreateOptions) (made container.CreateResponse, err error) {
	r := request{
		method: http.MethodPost, path: "/containers/create",
		query: query().str("name", o.Name).platform(o.Platform).Values,
		body: container.CreateRequest{
			Config: o.Config, HostConfig: o.HostConfig, NetworkingConfig: o.Networking,
		},
	}
	if o.ID != "" {
		r.header = http.Header{idHeader: {o.ID}}
	}
	err = c.call(ctx, r, &made)
	return made, err
}

// StartContainer implements api.Containers.
func (c *Client) StartContainer(ctx context.Context, id string, o api.StartOptions) error {
	return c.containerCall(ctx, http.MethodPost, id, "/start", query().str("detachKeys", o.DetachKeys).Values, nil, nil)
}

func stopQuery(o api.StopOptions) url.Values {
	q := query().str("signal", o.Signal)
	if o.Timeout != nil {
		q.Set("t", strconv.Itoa(*o.Timeout))
	}
	return q.Values
}

// StopContainer implements api.Containers.
func (c *Client) StopContainer(ctx context.Context, id string, o api.StopOptions) error {
	return c.containerCall(ctx, http.MethodPost, id, "/stop", stopQuery(o), nil, nil)
}

// RestartContainer implements api.Containers.
func (c *Client) RestartContainer(ctx context.Context, id string, o api.StopOptions) error {
	return c.containerCall(ctx, http.MethodPost, id, "/restart", stopQuery(o), nil, nil)
}

// KillContainer implements api.Containers.
func (c *Client) KillContainer(ctx context.Context, id, signal string) error {
	return c.containerCall(ctx, http.MethodPost, id, "/kill", query().str("signal", signal).Values, nil, nil)
}

// PauseContainer implements api.Containers.
func (c *Client) PauseContainer(ctx context.Context, id string) error {
	return c.containerCall(ctx, http.MethodPost, id, "/pause", nil, nil, nil)
}

// UnpauseContainer implements api.Containers.
func (c *Client) UnpauseContainer(ctx context.Context, id string) error {
	return c.containerCall(ctx, http.MethodPost, id, "/unpause", nil, nil, nil)
}

// RenameContainer implements api.Containers.
func (c *Client) RenameContainer(ctx context.Context, id, name string) error {
	return c.containerCall(ctx, http.MethodPost, id, "/rename", query().str("name", name).Values, nil, nil)
}

// RemoveContainer implements api.Containers.
func (c *Client) RemoveContainer(ctx context.Context, id string, o api.RemoveOptions) error {
	q := query().flag("force", o.Force).flag("v", o.Volumes).flag("link", o.Links)
	return c.containerCall(ctx, http.MethodDelete, id, "", q.Values, nil, nil)
}

// PruneContainers implements api.Containers.
func (c *Client) PruneContainers(ctx context.Context, f api.Filters) (report container.PruneReport, err error) {
	q, err := query().filters(f)
	if err != nil {
		return report, err
	}
	err = c.call(ctx, request{method: http.MethodPost, path: "/containers/prune", query: q.Values}, &report)
	return report, err
}

// ListContainers implements api.Observers.
func (c *Client) ListContainers(ctx context.Context, o api.ListOptions) (all []container.Summary, err error) {
	q, err := query().flag("all", o.All).flag("size", o.Size).int("limit", o.Limit).filters(o.Filters)
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/containers/json", query: q.Values}, &all)
	return all, err
}

// InspectContainer implements api.Observers.
func (c *Client) InspectContainer(
	ctx context.Context, id string, o api.InspectOptions,
) (i container.InspectResponse, err error) {
	err = c.containerCall(ctx, http.MethodGet, id, "/json", query().flag("size", o.Size).Values, nil, &i)
	return i, err
}

// TopContainer implements api.Observers.
func (c *Client) TopContainer(ctx context.Context, id string, psArgs []string) (top container.TopResponse, err error) {
	q := query().str("ps_args", strings.Join(psArgs, " "))
	err = c.containerCall(ctx, http.MethodGet, id, "/top", q.Values, nil, &top)
	return top, err
}

func sizeQuery(s api.TerminalSize) url.Values {
	return url.Values{
		"h": {strconv.FormatUint(uint64(s.Height), 10)},
		"w": {strconv.FormatUint(uint64(s.Width), 10)},
	}
}

// ResizeContainer implements api.Terminals.
func (c *Client) ResizeContainer(ctx context.Context, id string, s api.TerminalSize) error {
	return c.containerCall(ctx, http.MethodPost, id, "/resize", sizeQuery(s), nil, nil)
}

// CreateExec implements api.Execs.
func (c *Client) CreateExec(
	ctx context.Context, containerID string, o container.ExecCreateRequest,
) (made container.ExecCreateResponse, err error) {
	err = c.containerCall(ctx, http.MethodPost, containerID, "/exec", nil, o, &made)
	return made, err
}

// ResizeExec implements api.Execs.
func (c *Client) ResizeExec(ctx context.Context, execID string, s api.TerminalSize) error {
	e, err := segment("exec instance", execID)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: http.MethodPost, path: "/exec/" + e + "/resize", query: sizeQuery(s)}, nil)
}

// InspectExec implements api.Execs.
func (c *Client) InspectExec(ctx context.Context, execID string) (i container.ExecInspectResponse, err error) {
	e, err := segment("exec instance", execID)
	if err != nil {
		return i, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/exec/" + e + "/json"}, &i)
	return i, err
}

// ListNetworks implements api.Networks.
func (c *Client) ListNetworks(ctx context.Context, f api.Filters) (all []network.Inspect, err error) {
	q, err := query().filters(f)
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/networks", query: q.Values}, &all)
	return all, err
}

// InspectNetwork implements api.Networks.
func (c *Client) InspectNetwork(ctx context.Context, id string, o api.NetworkInspectOptions) (n network.Inspect, err error) {
	s, err := segment("network", id)
	if err != nil {
		return n, err
	}
	q := query().flag("verbose", o.Verbose).str("scope", o.Scope)
	err = c.call(ctx, request{method: http.MethodGet, path: "/networks/" + s, query: q.Values}, &n)
	return n, err
}
