package distribution

import (
	"context"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// repository is what a path of this registry means to the cluster. What is pushed to
// localhost:5000/app is named so in the whole cluster, as clients write it; it never
// replaces the image app. Reading looks there first, and then at what Docker means by
// the path without a registry: app, library/app, quay.io/team/app.
type repository struct {
	path string
	// own takes what is pushed; nil where the client asks for another registry's
	// names (ns=), as mirrors are asked.
	own reference.Named
	// read are looked at in turn.
	read []reference.Named
}

// repository finds out what a path means. ns names another registry: containerd asks
// its mirrors so.
func (s *Server) repository(path, ns string) (repository, error) {
	r := repository{path: path}
	own, err := reference.WithName(s.cfg.Domain + "/" + path)
	if err != nil {
		return r, fault(http.StatusBadRequest, codeNameInvalid, "invalid repository name %q", clip(path))
	}
	if ns != "" && ns != s.cfg.Domain {
		n, err := reference.ParseNormalizedNamed(ns + "/" + path)
		if err != nil || reference.Domain(n) == "" || !reference.IsNameOnly(n) {
			return r, fault(http.StatusBadRequest, codeNameInvalid, "invalid repository name %q of %q", clip(path), clip(ns))
		}
		r.read = []reference.Named{n}
		return r, nil
	}
	r.own, r.read = own, []reference.Named{own}
	if n, err := reference.ParseNormalizedNamed(path); err == nil && reference.IsNameOnly(n) {
		r.read = append(r.read, n)
	}
	return r, nil
}

// tagged is a name in the repository for writing.
func (r repository) tagged(tag string) (reference.NamedTagged, error) {
	if r.own == nil {
		return nil, fault(http.StatusMethodNotAllowed, codeDenied, "another registry's names can't be changed here")
	}
	return withTag(r.own, tag)
}

func withTag(n reference.Named, tag string) (reference.NamedTagged, error) {
	t, err := reference.WithTag(n, tag)
	if err != nil {
		return nil, fault(http.StatusBadRequest, codeManifestInvalid, "invalid tag %q", clip(tag))
	}
	return t, nil
}

// resolve says what a tag means.
func (c *call) resolve(ctx context.Context, tag string) (digest.Digest, error) {
	for _, n := range c.repo.read {
		t, err := withTag(n, tag)
		if err != nil {
			return "", fault(http.StatusNotFound, codeManifestUnknown, "invalid tag %q", clip(tag))
		}
		d, err := c.s.cfg.Names.Resolve(ctx, t)
		if err == nil {
			return d, nil
		}
		if !errdefs.IsNotFound(err) {
			return "", err
		}
	}
	return "", c.manifestUnknown(tag)
}

func (c *call) manifestUnknown(what string) error {
	return fault(http.StatusNotFound, codeManifestUnknown, "the cluster has no manifest %s of %s", clip(what), c.repo.path)
}

// listed are the names of the repository; its own come before others of the same tag.
func (c *call) listed(ctx context.Context) ([]Name, error) {
	all, err := c.s.cfg.Names.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []Name
	for _, r := range c.repo.read {
		for _, n := range all {
			if n.Name.Name() == r.Name() {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// pathOf is where a name is read here; empty if nowhere.
func (s *Server) pathOf(n reference.Named) string {
	path := reference.FamiliarName(n)
	if own, ok := strings.CutPrefix(n.Name(), s.cfg.Domain+"/"); ok {
		path = own
	}
	if strings.Contains(path, ":") {
		return "" // a registry with a port; ns= leads there
	}
	return path
}
