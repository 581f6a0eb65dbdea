package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"github.com/shoal-engine/shoal/api"
)

// ListImages implements api.Images.
func (c *Client) ListImages(ctx context.Context, o api.ImageListOptions) (all []image.Summary, err error) {
	q, err := query().flag("all", o.All).flag("shared-size", o.SharedSize).flag("manifests", o.Manifests).
		flag("identity", o.Identity).filters(o.Filters)
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/images/json", query: q.Values}, &all)
	return all, err
}

// imageCall is a call about one image.
func (c *Client) imageCall(ctx context.Context, method, ref, act string, q url.Values, answer any) error {
	s, err := segment("image", ref)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: method, path: "/images/" + s + act, query: q}, answer)
}

// InspectImage implements api.Images.
func (c *Client) InspectImage(
	ctx context.Context, ref string, o api.ImageInspectOptions,
) (i image.InspectResponse, err error) {
	q := query().flag("manifests", o.Manifests).ociPlatform(o.Platform)
	err = c.imageCall(ctx, http.MethodGet, ref, "/json", q.Values, &i)
	return i, err
}

// ImageHistory implements api.Images.
func (c *Client) ImageHistory(
	ctx context.Context, ref string, p api.Platform,
) (items []image.HistoryResponseItem, err error) {
	err = c.imageCall(ctx, http.MethodGet, ref, "/history", query().ociPlatform(p).Values, &items)
	return items, err
}

// TagImage implements api.Images.
func (c *Client) TagImage(ctx context.Context, source, target string) error {
	repo, tag, err := splitTag(target)
	if err != nil {
		return err
	}
	return c.imageCall(ctx, http.MethodPost, source, "/tag", query().str("repo", repo).str("tag", tag).Values, nil)
}

// splitTag makes of a reference the two parameters that Docker's API has for it.
func splitTag(ref string) (repo, tag string, err error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", "", api.InvalidArgument("invalid reference format: %q", ref)
	}
	if d, ok := named.(reference.Digested); ok {
		return reference.FamiliarName(named), d.Digest().String(), nil
	}
	if t, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
		tag = t.Tag()
	}
	return reference.FamiliarName(named), tag, nil
}

// RemoveImage implements api.Images.
func (c *Client) RemoveImage(
	ctx context.Context, ref string, o api.ImageRemoveOptions,
) (done []image.DeleteResponse, err error) {
	q := query().flag("force", o.Force).flag("noprune", o.NoPrune)
	err = c.imageCall(ctx, http.MethodDelete, ref, "", q.Values, &done)
	return done, err
}

// PruneImages implements api.Images.
func (c *Client) PruneImages(ctx context.Context, f api.Filters) (api.PruneImagesReport, error) {
	q, err := query().filters(f)
	if err != nil {
		return api.PruneImagesReport{}, err
	}
	var got image.PruneReport
	if err := c.call(ctx, request{method: http.MethodPost, path: "/images/prune", query: q.Values}, &got); err != nil {
		return api.PruneImagesReport{}, err
	}
	report := api.PruneImagesReport{Reclaimed: got.SpaceReclaimed}
	for _, d := range got.ImagesDeleted {
		report.Deleted = append(report.Deleted, api.ImageDeletion{Untagged: d.Untagged, Deleted: d.Deleted})
	}
	return report, nil
}

// PullImage implements api.Archives.
func (c *Client) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	repo, tag, err := splitTag(o.Ref)
	if err != nil {
		return nil, err
	}
	r := request{
		method: http.MethodPost, path: "/images/create",
		query: query().str("fromImage", repo).str("tag", tag).platform(o.Platform).
			str("shoal-digest", o.Digest).str("shoal-known", o.Known).flag("shoal-early", o.Early).Values,
	}
	if r.header, err = authHeader(o.Auth); err != nil {
		return nil, err
	}
	return c.progress(ctx, r)
}

// authHeader carries credentials for a registry; nil if there are none.
func authHeader(a registry.AuthConfig) (http.Header, error) {
	if a == (registry.AuthConfig{}) {
		return nil, nil
	}
	auth, err := authconfig.Encode(a)
	if err != nil {
		return nil, api.InvalidArgument("encode credentials: %w", err)
	}
	return http.Header{registry.AuthHeader: {auth}}, nil
}

// PushImage implements api.Archives.
func (c *Client) PushImage(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	named, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, api.InvalidArgument("invalid reference format: %q", o.Ref)
	}
	tag := ""
	if !reference.IsNameOnly(named) {
		if _, tag, err = splitTag(o.Ref); err != nil {
			return nil, err
		}
	}
	name, err := segment("image", reference.FamiliarName(named))
	if err != nil {
		return nil, err
	}
	r := request{
		method: http.MethodPost, path: "/images/" + name + "/push",
		query: query().str("tag", tag).ociPlatform(o.Platform).Values,
	}
	if r.header, err = authHeader(o.Auth); err != nil {
		return nil, err
	}
	return c.progress(ctx, r)
}

// Login implements api.Registries.
func (c *Client) Login(ctx context.Context, a registry.AuthConfig) (answer registry.AuthResponse, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: "/auth", body: a}, &answer)
	return answer, err
}

// InspectDistribution implements api.Registries.
func (c *Client) InspectDistribution(
	ctx context.Context, ref string, a registry.AuthConfig,
) (d registry.DistributionInspect, err error) {
	name, err := segment("image", ref)
	if err != nil {
		return d, err
	}
	h, err := authHeader(a)
	if err != nil {
		return d, err
	}
	err = c.call(ctx, request{method: http.MethodGet, path: "/distribution/" + name + "/json", header: h}, &d)
	return d, err
}

// LoadImages implements api.Archives.
func (c *Client) LoadImages(
	ctx context.Context, archive io.Reader, o api.LoadOptions,
) (api.Stream[api.Progress], error) {
	q := query().ociPlatform(o.Platform)
	q.Set("quiet", map[bool]string{true: "1", false: "0"}[o.Quiet])
	return c.progress(ctx, request{method: http.MethodPost, path: "/images/load", query: q.Values, body: upload(archive)})
}

// ImportImage implements api.Archives.
func (c *Client) ImportImage(ctx context.Context, tar io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error) {
	q := query().str("fromSrc", "-").str("message", o.Message).platform(o.Platform)
	for _, change := range o.Changes {
		q.Add("changes", change)
	}
	if o.Ref != "" {
		repo, tag, err := splitTag(o.Ref)
		if err != nil {
			return nil, err
		}
		q.str("repo", repo).str("tag", tag)
	}
	return c.progress(ctx, request{method: http.MethodPost, path: "/images/create", query: q.Values, body: upload(tar)})
}

// upload hides whatever else the caller's reader is: the transport would close
// it, which is the caller's own business.
func upload(r io.Reader) io.Reader { return struct{ io.Reader }{r} }

// SaveImages implements api.Archives.
func (c *Client) SaveImages(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error) {
	q := query().ociPlatform(p)
	for _, ref := range refs {
		q.Add("names", ref)
	}
	res, err := c.do(ctx, request{method: http.MethodGet, path: "/images/get", query: q.Values})
	if err != nil {
		return nil, err
	}
	return body{ctx, res.Body}, nil
}

// Ping implements api.System.
func (c *Client) Ping(ctx context.Context) (api.Ping, error) {
	res, err := c.do(ctx, request{method: http.MethodHead, path: "/_ping"})
	if err != nil {
		return api.Ping{}, err
	}
	defer res.Body.Close()
	h := res.Header
	return api.Ping{
		APIVersion: h.Get("Api-Version"), OSType: h.Get("Ostype"), BuilderVersion: h.Get("Builder-Version"),
		Swarm: h.Get("Swarm"), Experimental: strings.EqualFold(h.Get("Docker-Experimental"), "true"),
	}, nil
}

// Version implements api.System.
func (c *Client) Version(ctx context.Context) (v system.VersionResponse, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: "/version"}, &v)
	return v, err
}

// Info implements api.System.
func (c *Client) Info(ctx context.Context) (i system.Info, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: "/info"}, &i)
	return i, err
}
