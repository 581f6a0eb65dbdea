package distribution

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types of what OCI's were made from.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

const (
	maxRefs  = 10_000 // what one manifest or index may list
	maxDepth = 3      // of indexes in indexes; nobody makes more than two
)

// document is what a registry needs to know of a manifest or an index.
type document struct {
	index        bool
	mediaType    string
	artifactType string
	refs         []ocispec.Descriptor // config and layers, or manifests
	subject      *ocispec.Descriptor
	annotations  map[string]string
}

func invalid(format string, a ...any) error {
	return fault(http.StatusBadRequest, codeManifestInvalid, format, a...)
}

// decodeDocument reads a manifest or an index of OCI's or Docker's kind. Its media
// type follows from its bytes alone, so nothing else has to be remembered.
func decodeDocument(b []byte) (*document, error) {
	var d struct {
		SchemaVersion int                   `json:"schemaVersion"`
		MediaType     string                `json:"mediaType"`
		ArtifactType  string                `json:"artifactType"`
		Config        *ocispec.Descriptor   `json:"config"`
		Layers        []ocispec.Descriptor  `json:"layers"`
		Manifests     *[]ocispec.Descriptor `json:"manifests"`
		Subject       *ocispec.Descriptor   `json:"subject"`
		Annotations   map[string]string     `json:"annotations"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, invalid("not a manifest: %v", err)
	}
	doc := &document{mediaType: d.MediaType, artifactType: d.ArtifactType, subject: d.Subject, annotations: d.Annotations}
	switch {
	case d.SchemaVersion != 2:
		return nil, invalid("manifests of schema version %d are not supported", d.SchemaVersion)
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		return nil, invalid("the manifest is an index, too") // two readers could see two images
	case d.Manifests != nil:
		doc.index, doc.refs = true, *d.Manifests
	case d.Config != nil:
		doc.refs = append([]ocispec.Descriptor{*d.Config}, d.Layers...)
		if doc.artifactType == "" {
			doc.artifactType = d.Config.MediaType
		}
	default:
		return nil, invalid("neither a manifest nor an index")
	}
	if doc.mediaType == "" {
		doc.mediaType = map[bool]string{true: ocispec.MediaTypeImageIndex, false: ocispec.MediaTypeImageManifest}[doc.index]
	}
	known := map[bool][]string{true: {ocispec.MediaTypeImageIndex, dockerList}, false: {ocispec.MediaTypeImageManifest, dockerManifest}}
	if !slices.Contains(known[doc.index], doc.mediaType) {
		return nil, invalid("media type %q is not supported", clip(doc.mediaType))
	}
	return doc, doc.check()
}

func (d *document) check() error {
	if len(d.refs) > maxRefs {
		return invalid("%d entries are more than the %d allowed", len(d.refs), maxRefs)
	}
	refs := d.refs
	if d.subject != nil {
		refs = append(slices.Clone(refs), *d.subject)
	}
	for _, r := range refs {
		if err := r.Digest.Validate(); err != nil || r.Digest.Algorithm() != digest.SHA256 {
			return invalid("entry %q: not a sha256 digest", clip(string(r.Digest)))
		}
		if r.Size < 0 {
			return invalid("entry %s: invalid size %d", r.Digest, r.Size)
		}
	}
	return nil
}

// elsewhere says that a layer may be got from its publisher only.
func elsewhere(d ocispec.Descriptor) bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}
