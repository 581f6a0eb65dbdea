package image

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// The media types that Docker had before there were OCI's.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1"
)

const (
	maxConfig = 8 << 20 // bytes of an image's config
	maxLayers = 500     // overlayfs takes no more
	maxDescs  = 10_000  // manifests that an index may list
)

// config is an image's configuration, with what Docker keeps beside OCI's.
type config struct {
	dockerspec.DockerOCIImage
	Comment string `json:"comment,omitempty"`
}

func decodeConfig(b []byte) (*config, error) {
	if len(b) > maxConfig {
		return nil, api.InvalidArgument("image config: larger than %d bytes", maxConfig)
	}
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, api.InvalidArgument("image config: %w", err)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return nil, api.InvalidArgument("image config: %d layers are more than the %d allowed", len(c.RootFS.DiffIDs), maxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, api.InvalidArgument("image config: layer: %w", err)
		}
	}
	return &c, nil
}

// chains are the chain IDs of the config's layers, bottom first.
func chains(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(slices.Clone(diffIDs))
}

// document is a manifest or an index; the other is nil.
type document struct {
	mediaType string
	manifest  *ocispec.Manifest
	index     *ocispec.Index
}

// decodeDocument reads a manifest or an index of OCI's or Docker's kind.
func decodeDocument(b []byte) (document, error) {
	if len(b) > maxManifest {
		return document{}, api.InvalidArgument("manifest: larger than %d bytes", maxManifest)
	}
	var probe struct {
		specs.Versioned
		MediaType string          `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return document{}, api.InvalidArgument("manifest: %w", err)
	}
	switch {
	case strings.HasPrefix(probe.MediaType, dockerSchema1) || probe.SchemaVersion == 1:
		return document{}, api.InvalidArgument("manifest: Docker image format v1 is not supported; push the image again with a newer tool")
	case probe.Manifests != nil && (probe.Config != nil || probe.Layers != nil):
		// Two readers could take it for two different images.
		return document{}, api.InvalidArgument("manifest: is both a manifest and an index")
	case probe.Manifests != nil:
		return decodeIndex(b, probe.MediaType)
	case probe.Config != nil:
		return decodeManifest(b, probe.MediaType)
	default:
		return document{}, api.InvalidArgument("manifest: neither a manifest nor an index")
	}
}

func decodeIndex(b []byte, mediaType string) (document, error) {
	var i ocispec.Index
	if err := json.Unmarshal(b, &i); err != nil {
		return document{}, api.InvalidArgument("index: %w", err)
	}
	if len(i.Manifests) > maxDescs {
		return document{}, api.InvalidArgument("index: more than %d manifests", maxDescs)
	}
	for _, d := range i.Manifests {
		if err := checkDescriptor(d); err != nil {
			return document{}, err
		}
	}
	if mediaType != dockerManifestList {
		mediaType = ocispec.MediaTypeImageIndex
	}
	return document{mediaType: mediaType, index: &i}, nil
}

func decodeManifest(b []byte, mediaType string) (document, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return document{}, api.InvalidArgument("manifest: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return document{}, api.InvalidArgument("manifest: %d layers are more than the %d allowed", len(m.Layers), maxLayers)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return document{}, err
		}
	}
	if mediaType != dockerManifest {
		mediaType = ocispec.MediaTypeImageManifest
	}
	return document{mediaType: mediaType, manifest: &m}, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return api.InvalidArgument("manifest: %w", err)
	}
	if d.Size < 0 {
		return api.InvalidArgument("manifest: %s: invalid size %d", d.Digest, d.Size)
	}
	return nil
}

// platform is what images are chosen by.
func platform(p, own api.Platform) api.Platform {
	if p == (api.Platform{}) {
		p = own
	}
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return p
}

// choose finds the manifest for a platform in an index. Of several that fit, the
// first listed is taken, one of the right variant before others.
func choose(i *ocispec.Index, want api.Platform) (ocispec.Descriptor, error) {
	var fit []ocispec.Descriptor
	for _, d := range i.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue // an attestation about another manifest
		}
		p := d.Platform
		if p == nil { // allowed, and then it fits everything
			fit = append(fit, d)
			continue
		}
		if p.OS == want.OS && p.Architecture == want.Architecture && variantFits(p.Variant, want) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, api.NotFound("no matching manifest for %s in the manifest list entries", strings.TrimRight(want.OS+"/"+want.Architecture+"/"+want.Variant, "/"))
	}
	for _, d := range fit {
		if d.Platform != nil && want.Variant != "" && d.Platform.Variant == want.Variant {
			return d, nil
		}
	}
	return fit[0], nil
}

// variantFits says whether code for a variant runs where want is: arm runs what is
// older than itself.
func variantFits(v string, want api.Platform) bool {
	switch {
	case v == "" || want.Variant == "" || v == want.Variant:
		return true
	case want.Architecture == "arm":
		return v <= want.Variant
	default:
		return false
	}
}
