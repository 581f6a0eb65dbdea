package image

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// addition is an image whose manifest and config are blobs here, leased, and whose
// layers are or are arriving.
type addition struct {
	target   ocispec.Descriptor // what names shall point at; its blob is here
	manifest ocispec.Descriptor
	body     *ocispec.Manifest
	cfg      *config
	refs     []layerRef
}

// read reads a manifest and its config from the store.
func (s *Store) addition(target, manifest ocispec.Descriptor) (addition, error) {
	a := addition{target: target, manifest: manifest}
	b, err := s.readVerified(manifest.Digest, maxManifest)
	if err != nil {
		return a, err
	}
	doc, err := decodeDocument(b)
	if err != nil {
		return a, err
	}
	if doc.manifest == nil {
		return a, api.InvalidArgument("manifest %s is an index", manifest.Digest)
	}
	a.body, a.manifest.MediaType, a.manifest.Size = doc.manifest, doc.mediaType, int64(len(b))
	if target.Digest == manifest.Digest {
		a.target = a.manifest
	}
	if b, err = s.readVerified(a.body.Config.Digest, maxConfig); err != nil {
		return a, err
	}
	if a.cfg, err = decodeConfig(b); err != nil {
		return a, err
	}
	return a, a.check()
}

// check sees whether manifest and config belong together.
func (a *addition) check() error {
	if os := a.cfg.OS; os != "" && os != "linux" {
		return api.InvalidArgument("cannot load %s image on linux", clip(os))
	}
	if want, got := len(a.body.Layers), len(a.cfg.RootFS.DiffIDs); want != got {
		return api.InvalidArgument("invalid manifest, layers length mismatch: expected %d, got %d", want, got)
	}
	a.refs = layerRefs(a.body.Layers, a.cfg.RootFS.DiffIDs)
	for i, r := range a.refs {
		if r.Desc.MediaType == ocispec.MediaTypeImageLayer && r.Desc.Digest != r.Diff {
			return api.Errorf(errdefs.ErrDataLoss, "invalid diffID for layer %d: expected %q, got %q", i, r.Diff, r.Desc.Digest)
		}
	}
	return nil
}

func (a *addition) id() digest.Digest { return a.body.Config.Digest }

// blobs are the digests that the image is made of, but its target if that is an index.
func (a *addition) blobs() []digest.Digest {
	ds := []digest.Digest{a.manifest.Digest, a.body.Config.Digest}
	for _, l := range a.body.Layers {
		ds = append(ds, l.Digest)
	}
	return ds
}

// moved is a name that pointed at another image before.
type moved struct {
	name reference.Named
	from digest.Digest
}

// add unpacks what is not unpacked, then makes the image and its names known.
func (s *Store) add(ctx context.Context, l *lease, a addition, names []reference.Named, u *unpacker) ([]moved, error) {
	for _, ref := range a.refs {
		l.hold(ref.Chain)
	}
	u.s, u.refs = s, a.refs
	sizes, err := u.run(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.putImage(a.id(), manifestRecord{Target: a.target, Manifest: a.manifest}, sizes); err != nil {
		return nil, err
	}
	var away []moved
	for _, n := range names {
		if old, ok := s.names[n.String()]; ok && old.Image != a.id() {
			away = append(away, moved{n, old.Image})
		}
		if err := s.putName(n, a.id(), a.target.Digest); err != nil {
			return away, err
		}
	}
	return away, nil
}
