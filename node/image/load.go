package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// The annotations by which an OCI archive names its images.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = ocispec.AnnotationRefName
)

// loaded is an image of an archive with the names it has there.
type loaded struct {
	target, manifest ocispec.Descriptor
	names            []reference.Named
}

// Load takes in every image of an archive: docker-save's or an OCI layout, plain or
// compressed. Each image is known once it is whole; one that fails ends the load.
func (s *Store) Load(ctx context.Context, r io.Reader, o api.LoadOptions) (api.Stream[api.Progress], error) {
	return s.start(ctx, func(ctx context.Context, f *feed) (err error) {
		l := s.lease()
		defer func() { l.end(err) }()
		a, err := s.readArchive(ctx, r, l)
		if err == nil {
			err = s.loadFrom(ctx, a, o, f)
		}
		return errors.Join(err, a.Close())
	})
}

func (s *Store) loadFrom(ctx context.Context, a *archive, o api.LoadOptions, f *feed) error {
	images, err := a.images(platform(o.Platform, s.cfg.Platform))
	if err != nil {
		return err
	}
	var done []string
	for _, i := range images {
		lines, err := s.loadOne(ctx, a, i, o, f)
		if err != nil {
			return err
		}
		done = append(done, lines...)
	}
	for _, line := range done {
		f.stream(line)
	}
	return nil
}

// loadOne takes one image in and returns what there is to say at the end.
func (s *Store) loadOne(ctx context.Context, a *archive, i loaded, o api.LoadOptions, f *feed) ([]string, error) {
	add, err := s.addition(i.target, i.manifest)
	if err != nil {
		return nil, err
	}
	u := &unpacker{source: s.held, ahead: a.ahead.take}
	if !o.Quiet {
		meters := make([]*meter, len(add.refs))
		for n, ref := range add.refs {
			meters[n] = &meter{feed: f, id: short(ref.Diff), status: "Loading layer", total: ref.Desc.Size}
		}
		u.progress = func(n int, done int64) { meters[n].at(done) }
	}
	away, err := s.add(ctx, a.l, add, i.names, u)
	for _, m := range away {
		f.stream(fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string\n", reference.FamiliarString(m.name), m.from))
	}
	if err != nil {
		return nil, err
	}
	if len(i.names) == 0 {
		s.tell(event{"load", add.id(), ""})
		return []string{fmt.Sprintf("Loaded image ID: %s\n", add.id())}, nil
	}
	var lines []string
	for _, n := range i.names {
		s.tell(event{"load", add.id(), reference.FamiliarString(n)})
		lines = append(lines, fmt.Sprintf("Loaded image: %s\n", reference.FamiliarString(n)))
	}
	return lines, nil
}

// images finds out what an archive has. Where it is both OCI's and Docker's, OCI's
// index counts, because it keeps the manifests.
func (a *archive) images(p api.Platform) ([]loaded, error) {
	var docker []dockerImage
	if b := a.docs[dockerIndexFile]; b != nil {
		var err error
		if docker, err = dockerImages(b); err != nil {
			return nil, err
		}
	}
	if b := a.docs[ociIndexFile]; b != nil {
		return a.ociImages(b, docker, p)
	}
	if docker == nil {
		return nil, api.InvalidArgument("invalid archive: it has neither %s nor %s", dockerIndexFile, ociIndexFile)
	}
	var images []loaded
	for _, d := range docker {
		names, err := repoTags(d.RepoTags)
		if err != nil {
			return nil, err
		}
		m, err := a.fromDocker(d)
		if err != nil {
			return nil, err
		}
		images = append(images, loaded{target: m, manifest: m, names: names})
	}
	return images, nil
}

func repoTags(tags []string) ([]reference.Named, error) {
	var names []reference.Named
	for _, t := range tags {
		n, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return nil, api.InvalidArgument("invalid tag %q: %w", clip(t), err)
		}
		if _, ok := n.(reference.NamedTagged); !ok {
			return nil, api.InvalidArgument("invalid tag %q", clip(t))
		}
		names = append(names, n)
	}
	return names, nil
}

// ociImages reads index.json.
func (a *archive) ociImages(b []byte, docker []dockerImage, p api.Platform) ([]loaded, error) {
	doc, err := decodeIndexFile(b)
	if err != nil {
		return nil, err
	}
	tags := map[digest.Digest][]reference.Named{}
	for _, d := range docker {
		cfg, err := a.find(d.Config)
		if err != nil {
			return nil, err
		}
		if tags[cfg.digest], err = repoTags(d.RepoTags); err != nil {
			return nil, err
		}
	}
	var images []loaded
	for _, d := range ofPlatform(doc.Manifests, p) {
		i, cfg, err := a.ociImage(d, p)
		if err != nil {
			return nil, err
		}
		i.names = ociNames(d)
		if len(i.names) == 0 {
			i.names = tags[cfg]
		}
		same := slices.IndexFunc(images, func(o loaded) bool { return o.target.Digest == i.target.Digest })
		if same < 0 {
			images = append(images, i)
			continue
		}
		for _, n := range i.names {
			if !slices.ContainsFunc(images[same].names, func(o reference.Named) bool { return o.String() == n.String() }) {
				images[same].names = append(images[same].names, n)
			}
		}
	}
	if len(images) == 0 {
		return nil, api.InvalidArgument("invalid archive: it has no image")
	}
	return images, nil
}

func decodeIndexFile(b []byte) (*ocispec.Index, error) {
	var i ocispec.Index
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, api.InvalidArgument("invalid %s: %w", ociIndexFile, err)
	}
	if len(i.Manifests) > maxDescs {
		return nil, api.InvalidArgument("invalid %s: more than %d manifests", ociIndexFile, maxDescs)
	}
	for _, d := range i.Manifests {
		if err := checkDescriptor(d); err != nil {
			return nil, err
		}
	}
	return &i, nil
}

// ofPlatform leaves out manifests for other platforms where one of the same name is
// for this one, and those that are no images.
func ofPlatform(ds []ocispec.Descriptor, p api.Platform) []ocispec.Descriptor {
	name := func(d ocispec.Descriptor) string {
		return d.Annotations[containerdName] + "\x00" + d.Annotations[ociRefName]
	}
	fits := func(d ocispec.Descriptor) bool {
		return d.Platform == nil || d.Platform.OS == p.OS && d.Platform.Architecture == p.Architecture && variantFits(d.Platform.Variant, p)
	}
	fit := map[string]bool{}
	for _, d := range ds {
		if fits(d) {
			fit[name(d)] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(ds), func(d ocispec.Descriptor) bool {
		return d.Annotations["vnd.docker.reference.type"] != "" || fit[name(d)] && !fits(d)
	})
}

// ociImage finds one image, through an index of platforms if need be, keeps its
// blobs, and returns its config's digest, too.
func (a *archive) ociImage(target ocispec.Descriptor, p api.Platform) (loaded, digest.Digest, error) {
	target = bare(target)
	i := loaded{target: target, manifest: target}
	for range 3 { // an index may list indexes; nobody makes more of them
		f, err := a.blob(i.manifest.Digest)
		if err != nil {
			return i, "", err
		}
		b, err := a.read(f, maxManifest)
		if err != nil {
			return i, "", err
		}
		doc, err := decodeDocument(b)
		if err != nil {
			return i, "", err
		}
		if err := a.keep(f); err != nil {
			return i, "", err
		}
		if doc.manifest != nil {
			return i, doc.manifest.Config.Digest, a.keepLayers(doc.manifest)
		}
		next, err := choose(doc.index, p)
		if err != nil {
			return i, "", err
		}
		i.manifest = bare(next)
	}
	return i, "", api.InvalidArgument("manifest %s: indexes are nested too deeply", target.Digest)
}

// bare is a descriptor without what the place it stood in had to say of it.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

func (a *archive) keepLayers(m *ocispec.Manifest) error {
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		f, err := a.blob(d.Digest)
		if err != nil {
			return err
		}
		if f.size != d.Size {
			return api.InvalidArgument("manifest: blob %s has %d bytes, not %d", d.Digest, f.size, d.Size)
		}
		if err := a.keep(f); err != nil {
			return err
		}
	}
	return nil
}

// ociNames are the names that an annotation gives; one that is a tag without a
// repository is none.
func ociNames(d ocispec.Descriptor) []reference.Named {
	for _, text := range []string{d.Annotations[containerdName], d.Annotations[ociRefName]} {
		if !strings.ContainsAny(text, ":/") {
			continue
		}
		n, err := reference.ParseNormalizedNamed(text)
		if err != nil {
			continue
		}
		if _, ok := n.(reference.Canonical); !ok {
			return []reference.Named{reference.TagNameOnly(n)}
		}
	}
	return nil
}
