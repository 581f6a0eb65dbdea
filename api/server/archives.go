package server

import (
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// digestParam pins what a reference will mean after a pull.
const digestParam = "shoal-digest"

// knownParam says what a reference shall mean after a pull if its registry can't tell.
const knownParam = "shoal-known"

// earlyParam says that the pull may end as soon as containers can be made of the image.
const earlyParam = "shoal-early"

func archiveRoutes() []route {
	platform := param{"platform", "string", "JSON of an OCI platform"}
	return []route{
		{method: "POST", path: "/images/create", id: "ImageCreate", doc: "Pull an image, or import a root file system",
			query: []param{{"fromImage", "string", "reference to pull"}, {"fromSrc", "string", "- imports the body"},
				{"repo", "string", "name of what is imported"}, {"tag", "string", "tag or digest"},
				{"message", "string", "of what is imported"}, {"changes", "string", "Dockerfile instructions, repeatable"},
				{"platform", "string", "os/architecture/variant"}, {digestParam, "string", "digest of the manifest"},
				{knownParam, "string", "digest of the manifest if the registry can't tell"},
				{earlyParam, "boolean", "end as soon as containers can be made of the image"}},
			body: tarType, status: 200, answer: jsonLines, handle: createImage},
		{method: "POST", path: "/images/{name...}/push", id: "ImagePush", doc: "Push an image to its registry",
			query:  []param{{"tag", "string", "all tags if empty"}, platform},
			status: 200, answer: jsonLines, handle: pushImage},
		{method: "POST", path: "/auth", id: "SystemAuth", doc: "Try credentials at a registry",
			body: registry.AuthConfig{}, status: 200, answer: registry.AuthResponse{}, handle: login},
		{method: "GET", path: "/distribution/{name...}/json", id: "DistributionInspect", doc: "Ask a registry what a reference means",
			status: 200, answer: registry.DistributionInspect{}, handle: inspectDistribution},
		{method: "POST", path: "/images/load", id: "ImageLoad", doc: "Load images from an archive",
			query: []param{{"quiet", "boolean", "without progress"}, platform},
			body:  tarType, status: 200, answer: jsonLines, handle: loadImages},
		{method: "GET", path: "/images/get", id: "ImageGetAll", doc: "Save images into an archive",
			query:  []param{{"names", "string", "references, repeatable"}, platform},
			status: 200, answer: tarType, handle: saveImages},
		{method: "GET", path: "/images/{name...}/get", id: "ImageGet", doc: "Save an image into an archive",
			query: []param{platform}, status: 200, answer: tarType, handle: saveImages},
	}
}

func createImage(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	if c.query.Get("fromImage") == "" {
		return c.importImage(p)
	}
	o := api.PullOptions{Platform: p, Auth: registryAuth(c.r.Header.Get(registry.AuthHeader))}
	if o.Ref, err = joinTag(c.query.Get("fromImage"), c.query.Get("tag")); err != nil {
		return err
	}
	o.Early = c.flag(earlyParam)
	for param, to := range map[string]*string{digestParam: &o.Digest, knownParam: &o.Known} {
		if *to = c.query.Get(param); *to == "" {
			continue
		}
		if _, err := digest.Parse(*to); err != nil {
			return api.InvalidArgument("invalid %s: %w", param, err)
		}
	}
	return c.progress(c.engine.PullImage(c.r.Context(), o))
}

func pushImage(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	o := api.PushOptions{Ref: c.arg, Platform: p, Auth: registryAuth(c.r.Header.Get(registry.AuthHeader))}
	if tag := c.query.Get("tag"); tag != "" {
		if o.Ref, err = joinTag(c.arg, tag); err != nil {
			return err
		}
	}
	return c.progress(c.engine.PushImage(c.r.Context(), o))
}

func login(c *call) error {
	var a registry.AuthConfig
	if err := c.decode(&a); err != nil {
		return err
	}
	answer, err := c.engine.Login(c.r.Context(), a)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, answer)
}

func inspectDistribution(c *call) error {
	d, err := c.engine.InspectDistribution(c.r.Context(), c.arg, registryAuth(c.r.Header.Get(registry.AuthHeader)))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, d)
}

// registryAuth reads X-Registry-Auth; what can't be read means anonymous, as it
// does for Docker.
func registryAuth(header string) registry.AuthConfig {
	a, err := authconfig.Decode(header)
	if err != nil {
		return registry.AuthConfig{}
	}
	return *a
}

func (c *call) importImage(p api.Platform) error {
	if src := c.query.Get("fromSrc"); src != "-" {
		return api.NotImplemented("import from %q is not supported: send the archive itself", src)
	}
	o := api.ImportOptions{Message: c.query.Get("message"), Changes: c.query["changes"], Platform: p}
	if repo := c.query.Get("repo"); repo != "" {
		ref, err := joinTag(repo, c.query.Get("tag"))
		if err != nil {
			return err
		}
		o.Ref = ref
	}
	body := c.upload()
	defer body.end()
	return c.progress(c.engine.ImportImage(c.r.Context(), body, o))
}

func loadImages(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	o := api.LoadOptions{Quiet: !c.query.Has("quiet") || c.flag("quiet"), Platform: p}
	body := c.upload()
	defer body.end()
	return c.progress(c.engine.LoadImages(c.r.Context(), body, o))
}

func saveImages(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	refs := c.query["names"]
	if c.arg != "" {
		refs = []string{c.arg}
	}
	if len(refs) == 0 {
		return api.InvalidArgument("no images to save")
	}
	tar, err := c.engine.SaveImages(c.r.Context(), refs, p)
	if err != nil {
		return err
	}
	return c.copyTar(tar)
}

func isDigest(tag string) bool { return strings.Contains(tag, ":") }

func withDigest(n reference.Named, s string) (reference.Canonical, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return nil, err
	}
	return reference.WithDigest(reference.TrimNamed(n), d)
}
