package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// The files of an archive that say what is in it.
const (
	dockerIndexFile = "manifest.json"
	ociIndexFile    = "index.json"
	ociLayoutFile   = "oci-layout"
)

// maxIndexFile bounds manifest.json and index.json, whose images are many.
const maxIndexFile = 16 << 20

// dockerImage is one image of a docker-save archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// archive is an image archive, taken apart.
type archive struct {
	s     *Store
	l     *lease
	docs  map[string][]byte  // what says what is in it, by name
	files map[string]spooled // by clean name
	links map[string]string  // symbolic and hard links, by clean name
	ahead *aheads            // what is unpacked meanwhile
}

func (s *Store) newArchive(l *lease) *archive {
	return &archive{
		s: s, l: l, docs: map[string][]byte{}, files: map[string]spooled{}, links: map[string]string{},
		ahead: newAheads(s.cfg.Workers),
	}
}

// readArchive takes an archive apart, compressed or not, to disk; what looks like a
// layer is unpacked meanwhile. The caller closes the archive also after an error.
func (s *Store) readArchive(ctx context.Context, r io.Reader, l *lease) (*archive, error) {
	a := s.newArchive(l)
	plainTar, _, err := decompress(r)
	if err != nil {
		return a, err
	}
	defer plainTar.Close()
	tr := tar.NewReader(&bounded{r: plainTar, left: s.cfg.Limits.ArchiveBytes})
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return a, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return a, badTar(err)
		}
		if n >= s.cfg.Limits.Members {
			return a, api.InvalidArgument("archive has more than %d entries", s.cfg.Limits.Members)
		}
		if err := a.member(ctx, h, tr); err != nil {
			return a, fmt.Errorf("archive member %q: %w", clip(h.Name), err)
		}
	}
}

// Close removes what was not made a blob.
func (a *archive) Close() error {
	errs := []error{a.ahead.Close()}
	for _, f := range a.files {
		if f.path == "" {
			continue
		}
		if f.synced != nil {
			<-f.synced.done // an error that matters was told by adopt
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (a *archive) member(ctx context.Context, h *tar.Header, r io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		a.links[name] = path.Join(path.Dir(name), h.Linkname)
		return nil
	case tar.TypeLink:
		a.links[name] = path.Clean(h.Linkname)
		return nil
	case tar.TypeReg, tar.TypeRegA: //nolint:staticcheck // TypeRegA is what old archives have
	default:
		return nil
	}
	if _, twice := a.files[name]; twice || a.docs[name] != nil {
		return api.InvalidArgument("is there twice")
	}
	switch name {
	case dockerIndexFile, ociIndexFile, ociLayoutFile:
		b, err := io.ReadAll(io.LimitReader(r, maxIndexFile+1))
		if err != nil {
			return badTar(err)
		}
		if len(b) > maxIndexFile {
			return api.InvalidArgument("is larger than %d bytes", maxIndexFile)
		}
		a.docs[name] = b
		return nil
	}
	return a.file(ctx, name, h.Size, r)
}

// file keeps a member as a blob to be. One whose name says that it is here already
// is passed over.
func (a *archive) file(ctx context.Context, name string, size int64, r io.Reader) error {
	var want digest.Digest
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		want = digest.NewDigestFromEncoded(digest.SHA256, hex)
		if err := checkDigest(want); err != nil {
			return err
		}
		a.l.hold(want)
		if b, err := a.s.open(want); err == nil {
			defer b.Close()
			head := make([]byte, 6)
			n, _ := b.ReadAt(head, 0)
			a.files[name] = spooled{digest: want, size: b.size, packed: detect(head[:n])}
			return nil
		}
	}
	sp, err := a.spool(ctx, r)
	if err != nil {
		return err
	}
	a.files[name] = sp
	if sp.size != size {
		return api.InvalidArgument("read archive: %w", io.ErrUnexpectedEOF)
	}
	if want != "" && sp.digest != want {
		return api.Errorf(errdefs.ErrDataLoss, "blob %s: what came has digest %s", want, sp.digest)
	}
	return nil
}

// spool is Store.spool, and unpacks what looks like a layer as it comes.
func (a *archive) spool(ctx context.Context, r io.Reader) (spooled, error) {
	var begun *ahead
	sp, err := a.s.spool(r, func(g *growing, head []byte) {
		if looksLikeLayer(head) {
			begun = a.ahead.begin(ctx, a.s, g)
		}
	})
	if err == nil {
		a.ahead.know(sp.digest, begun)
	}
	return sp, err
}

// find looks a member up, through links.
func (a *archive) find(name string) (spooled, error) {
	clean, err := cleanName(name)
	if err != nil {
		return spooled{}, fmt.Errorf("archive member %q: %w", clip(name), err)
	}
	for range 10 {
		if f, ok := a.files[clean]; ok {
			return f, nil
		}
		to, ok := a.links[clean]
		if !ok {
			break
		}
		clean = to
	}
	return spooled{}, api.InvalidArgument("invalid archive: it has no member %q", clip(name))
}

// blob looks a member up by its digest.
func (a *archive) blob(d digest.Digest) (spooled, error) {
	if err := checkDigest(d); err != nil {
		return spooled{}, err
	}
	return a.find("blobs/sha256/" + d.Encoded())
}

// keep makes a member a blob and leases it.
func (a *archive) keep(f spooled) error {
	a.l.hold(f.digest)
	return a.s.adopt(f)
}

// read returns a small member.
func (a *archive) read(f spooled, limit int64) ([]byte, error) {
	if f.size > limit {
		return nil, api.InvalidArgument("blob %s: %d bytes are more than the %d allowed", f.digest, f.size, limit)
	}
	if f.path == "" || a.s.has(f.digest) {
		return a.s.readVerified(f.digest, limit)
	}
	return os.ReadFile(f.path)
}

// dockerImages reads manifest.json.
func dockerImages(b []byte) ([]dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, api.InvalidArgument("invalid %s: %w", dockerIndexFile, err)
	}
	for _, i := range images {
		if len(i.Layers) > maxLayers {
			return nil, api.InvalidArgument("invalid %s: %d layers are more than the %d allowed", dockerIndexFile, len(i.Layers), maxLayers)
		}
	}
	return images, nil
}

// layerTypes are the media types of layers by how they are packed.
var layerTypes = map[compression]string{
	plain: ocispec.MediaTypeImageLayer, gzipped: ocispec.MediaTypeImageLayerGzip, zstded: ocispec.MediaTypeImageLayerZstd,
}

// fromDocker makes a manifest for an image that came without one. The same archive
// makes the same manifest on every host.
func (a *archive) fromDocker(i dockerImage) (ocispec.Descriptor, error) {
	cfg, err := a.find(i.Config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	files := []spooled{cfg}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: cfg.digest, Size: cfg.size}
	for _, name := range i.Layers {
		f, err := a.find(name)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		mediaType, ok := layerTypes[f.packed]
		if !ok {
			return ocispec.Descriptor{}, api.InvalidArgument("archive member %q: %s-compressed layers are not supported", clip(name), f.packed)
		}
		files = append(files, f)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: f.digest, Size: f.size})
	}
	return a.keepManifest(m, files)
}

// keepManifest keeps a manifest made here and the members it lists.
func (a *archive) keepManifest(m ocispec.Manifest, files []spooled) (ocispec.Descriptor, error) {
	for _, f := range files {
		if err := a.keep(f); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	a.l.hold(digest.FromBytes(b))
	d, err := a.s.putBlob(bytes.Clone(b))
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(b))}, err
}
