package distribution

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What refers to a manifest is listed in an index under the tag by which the
// specification lets clients keep such lists with registries that know none. So the
// list is a name as all others: every node finds it, and it keeps what it lists.
func referrersTag(subject digest.Digest) string {
	return subject.Algorithm().String() + "-" + subject.Encoded()
}

// referrers answers with an index of what refers to a digest; an empty one if nothing.
func (c *call) referrers() error {
	subject, err := parseDigest(c.last)
	if err != nil {
		return err
	}
	list, err := c.referring(c.r.Context(), subject)
	if err != nil {
		return err
	}
	if want := c.r.URL.Query().Get("artifactType"); want != "" {
		list = slices.DeleteFunc(list, func(d ocispec.Descriptor) bool { return d.ArtifactType != want })
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return c.json(ocispec.MediaTypeImageIndex, index(list))
}

func index(list []ocispec.Descriptor) ocispec.Index {
	if list == nil {
		list = []ocispec.Descriptor{}
	}
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
}

// referring reads the list of a digest.
func (c *call) referring(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error) {
	d, err := c.resolve(ctx, referrersTag(subject))
	if err == nil {
		_, doc, err := c.manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		if doc.index {
			return doc.refs, nil
		}
		return nil, nil // somebody's image of that name
	}
	if errdefs.IsNotFound(err) || asProblem(err).code == codeManifestUnknown {
		return nil, nil
	}
	return nil, err
}

// refer adds a manifest to the list of its subject.
func (c *call) refer(ctx context.Context, d digest.Digest, size int64, doc *document) error {
	c.s.referring.Lock()
	defer c.s.referring.Unlock()
	list, err := c.referring(ctx, doc.subject.Digest)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(o ocispec.Descriptor) bool { return o.Digest == d }) {
		return nil
	}
	list = append(slices.Clone(list), ocispec.Descriptor{
		MediaType: doc.mediaType, Digest: d, Size: size, ArtifactType: doc.artifactType, Annotations: doc.annotations,
	})
	name, err := c.repo.tagged(referrersTag(doc.subject.Digest))
	if err != nil {
		return err
	}
	return c.putReferrers(ctx, name, list)
}

// unrefer takes a manifest out of the list of its subject.
func (c *call) unrefer(ctx context.Context, d, subject digest.Digest) error {
	c.s.referring.Lock()
	defer c.s.referring.Unlock()
	list, err := c.referring(ctx, subject)
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(list), func(o ocispec.Descriptor) bool { return o.Digest == d })
	if len(rest) == len(list) {
		return nil
	}
	name, err := c.repo.tagged(referrersTag(subject))
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return c.s.cfg.Names.Drop(ctx, name)
	}
	return c.putReferrers(ctx, name, rest)
}

func (c *call) putReferrers(ctx context.Context, name reference.NamedTagged, list []ocispec.Descriptor) error {
	b, err := json.Marshal(index(list))
	if err != nil {
		return err
	}
	all, err := decodeDocument(b)
	if err != nil {
		return err
	}
	parts, err := c.parts(ctx, all)
	if err != nil {
		return err
	}
	d := digest.FromBytes(b)
	if err := c.keep(ctx, d, b); err != nil {
		return err
	}
	_, err = c.s.cfg.Names.Put(ctx, name, d, parts)
	return err
}
