package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// Import makes an image of one layer, a root file system's tar, plain or compressed.
// o.Changes are Dockerfile instructions that set its configuration.
func (s *Store) Import(ctx context.Context, r io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error) {
	cfg := &config{}
	if err := applyChanges(&cfg.Config, o.Changes); err != nil {
		return nil, err
	}
	var names []reference.Named
	if o.Ref != "" {
		n, err := reference.ParseNormalizedNamed(o.Ref)
		if err != nil {
			return nil, api.InvalidArgument("%w", err)
		}
		if _, ok := n.(reference.Canonical); ok {
			return nil, api.InvalidArgument("cannot import digest reference")
		}
		names = []reference.Named{reference.TagNameOnly(n)}
	}
	p := platform(o.Platform, s.cfg.Platform)
	cfg.Platform = ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	cfg.Comment = o.Message
	if cfg.Comment == "" {
		cfg.Comment = "Imported from -"
	}
	return s.start(ctx, func(ctx context.Context, f *feed) (err error) {
		l := s.lease()
		defer func() { l.end(err) }()
		id, err := s.importLayer(ctx, r, cfg, names, l)
		if err != nil {
			return err
		}
		name := ""
		if len(names) > 0 {
			name = reference.FamiliarString(names[0])
		}
		s.tell(event{"import", id, name})
		f.status("", id.String())
		return nil
	})
}

func (s *Store) importLayer(ctx context.Context, r io.Reader, cfg *config, names []reference.Named, l *lease) (digest.Digest, error) {
	a := s.newArchive(l)
	id, err := a.importLayer(ctx, r, cfg, names)
	return id, errors.Join(err, a.Close())
}

func (a *archive) importLayer(ctx context.Context, r io.Reader, cfg *config, names []reference.Named) (digest.Digest, error) {
	layer, diff, err := a.rootFS(ctx, r)
	if err != nil {
		return "", err
	}
	now := time.Now().UTC()
	cfg.Created = &now
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}}
	cfg.History = []ocispec.History{{Created: &now, Comment: cfg.Comment}}
	b, err := json.Marshal(cfg)
	if err != nil {
		return "", err
	}
	a.l.hold(digest.FromBytes(b))
	d, err := a.s.putBlob(b)
	if err != nil {
		return "", err
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d, Size: int64(len(b))}
	m.Layers = []ocispec.Descriptor{{MediaType: layerTypes[layer.packed], Digest: layer.digest, Size: layer.size}}
	desc, err := a.keepManifest(m, []spooled{layer})
	if err != nil {
		return "", err
	}
	add, err := a.s.addition(desc, desc)
	if err != nil {
		return "", err
	}
	_, err = a.s.add(ctx, a.l, add, names, &unpacker{source: a.s.held, ahead: a.ahead.take})
	return d, err
}

// rootFS keeps a root file system's tar as it came, unless it is packed as layers
// can't be, and finds its diff ID.
func (a *archive) rootFS(ctx context.Context, r io.Reader) (spooled, digest.Digest, error) {
	sp, err := a.spool(ctx, r)
	if err != nil {
		return sp, "", err
	}
	a.files["rootfs"] = sp
	if sp.packed == plain {
		return sp, sp.digest, nil
	}
	if diff := a.ahead.diff(sp.digest); diff != "" {
		return sp, diff, nil
	}
	f, err := os.Open(sp.path)
	if err != nil {
		return sp, "", api.Internal("import: %w", err)
	}
	defer f.Close()
	z, _, err := decompress(f)
	if err != nil {
		return sp, "", err
	}
	defer z.Close()
	limited := &bounded{r: z, left: a.s.cfg.Limits.ArchiveBytes}
	if _, ok := layerTypes[sp.packed]; !ok {
		if sp, err = a.spool(ctx, limited); err == nil {
			a.files["unpacked"] = sp
		}
		return sp, sp.digest, err
	}
	digester := digest.SHA256.Digester()
	if _, err := io.Copy(digester.Hash(), limited); err != nil {
		return sp, "", badTar(err)
	}
	return sp, digester.Digest(), nil
}
