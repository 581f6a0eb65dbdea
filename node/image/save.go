package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// saved is an image on its way into an archive.
type saved struct {
	add   addition
	names []reference.Named // its tags that were asked for
}

// Save writes an archive that is both an OCI layout and what docker load reads:
// blobs lie where OCI has them, and manifest.json points there. A repository without
// a tag means all its tags. The caller closes the reader, at any time.
func (s *Store) Save(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error) {
	l := s.lease()
	images, err := s.toSave(refs, p, l)
	if err != nil {
		l.release()
		return nil, err
	}
	if !s.jobs.begin() {
		l.release()
		return nil, api.Unavailable("the image store is closed")
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.jobs.life, cancel)
	go func() {
		defer s.jobs.end()
		defer cancel()
		defer unhook()
		defer l.release()
		// A reader that does not read is woken by its context, too.
		defer context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })()
		w.CloseWithError(s.writeArchive(ctx, w, images))
	}()
	return r, nil
}

// toSave finds the images and leases what they are made of.
func (s *Store) toSave(refs []string, p api.Platform, l *lease) ([]*saved, error) {
	var images []*saved
	byTarget := map[digest.Digest]*saved{}
	for _, ref := range refs {
		targets, err := s.saveTargets(ref, l)
		if err != nil {
			return nil, err
		}
		for _, t := range targets {
			i := byTarget[t.manifest.Manifest.Digest]
			if i == nil {
				add, err := s.addition(t.manifest.Manifest, t.manifest.Manifest)
				if err != nil {
					return nil, err
				}
				if own := add.cfg.Platform; p.Architecture != "" && own.Architecture != "" && own.Architecture != p.Architecture {
					return nil, api.NotFound("image %s is here for %s/%s only", clip(ref), own.OS, own.Architecture)
				}
				i = &saved{add: add}
				byTarget[t.manifest.Manifest.Digest] = i
				images = append(images, i)
			}
			i.addNames(t.names)
		}
	}
	return images, nil
}

func (i *saved) addNames(names []reference.Named) {
	for _, n := range names {
		known := false
		for _, o := range i.names {
			known = known || o.String() == n.String()
		}
		if !known {
			i.names = append(i.names, n)
		}
	}
}

// saveTarget is what one reference adds to an archive.
type saveTarget struct {
	manifest manifestRecord
	names    []reference.Named
}

func (s *Store) saveTargets(ref string, l *lease) ([]saveTarget, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		if all := s.repository(named.Name(), l); len(all) > 0 {
			return all, nil
		}
	}
	e, i, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	l.take(e.needs().all()...)
	t := saveTarget{manifest: e.rec.Manifests[i]}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && !isIDPrefix(e.rec.ID, ref) {
		if tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged); ok {
			if _, digested := named.(reference.Canonical); !digested {
				t.names = []reference.Named{tagged}
			}
		}
	}
	return []saveTarget{t}, nil
}

// repository are all tags of one; with mu held.
func (s *Store) repository(name string, l *lease) []saveTarget {
	var all []saveTarget
	for id, e := range s.images {
		for _, n := range s.references(id) {
			tagged, ok := n.(reference.NamedTagged)
			if !ok || n.Name() != name {
				continue
			}
			l.take(e.needs().all()...)
			i := e.index(s.names[n.String()].Target)
			all = append(all, saveTarget{manifest: e.rec.Manifests[i], names: []reference.Named{tagged}})
		}
	}
	return all
}

// archiveWriter writes an archive's members, each once. All have the epoch's time, so
// that equal images make equal archives.
type archiveWriter struct {
	s       *Store
	ctx     context.Context // of the one job that writes
	tw      *tar.Writer
	written map[string]bool
}

func (s *Store) writeArchive(ctx context.Context, w io.Writer, images []*saved) error {
	a := &archiveWriter{s: s, ctx: ctx, tw: tar.NewWriter(w), written: map[string]bool{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	docker := []dockerImage{}
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := a.header(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, i := range images {
		d, err := a.image(i)
		if err != nil {
			return err
		}
		docker = append(docker, d)
		index.Manifests = append(index.Manifests, i.descriptors()...)
	}
	for _, f := range []struct {
		name string
		v    any
	}{
		{ociIndexFile, index}, {dockerIndexFile, docker}, {ociLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
	} {
		b, err := json.Marshal(f.v)
		if err != nil {
			return err
		}
		if err := a.member(f.name, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	return a.tw.Close()
}

// descriptors list an image in index.json, once for each name.
func (i *saved) descriptors() []ocispec.Descriptor {
	d := bare(i.add.manifest)
	if i.add.cfg.Architecture != "" {
		p := i.add.cfg.Platform
		d.Platform = &p
	}
	if len(i.names) == 0 {
		return []ocispec.Descriptor{d}
	}
	var ds []ocispec.Descriptor
	for _, n := range i.names {
		d.Annotations = map[string]string{containerdName: n.String()}
		if t, ok := n.(reference.Tagged); ok {
			d.Annotations[ociRefName] = t.Tag()
		}
		ds = append(ds, d)
	}
	return ds
}

func blobMember(d digest.Digest) string { return path.Join("blobs", "sha256", d.Encoded()) }

// image writes an image's blobs, and says what manifest.json has of it.
func (a *archiveWriter) image(i *saved) (dockerImage, error) {
	d := dockerImage{Config: blobMember(i.add.id()), Layers: []string{}}
	for _, n := range i.names {
		d.RepoTags = append(d.RepoTags, reference.FamiliarString(n))
	}
	for _, b := range i.add.blobs() {
		if err := a.blob(b); err != nil {
			return d, err
		}
	}
	for _, r := range i.add.refs {
		name, err := a.dockerLayer(r)
		if err != nil {
			return d, err
		}
		d.Layers = append(d.Layers, name)
	}
	return d, nil
}

func (a *archiveWriter) blob(d digest.Digest) error {
	b, err := a.s.open(d)
	if err != nil {
		return err
	}
	defer b.Close()
	return a.member(blobMember(d), b.size, b)
}

// dockerLayer is where manifest.json finds a layer: its blob, or, where that is
// packed as old dockers can't read, a member of its own without compression.
func (a *archiveWriter) dockerLayer(r layerRef) (string, error) {
	b, err := a.s.open(r.Desc.Digest)
	if err != nil {
		return "", err
	}
	defer b.Close()
	head := make([]byte, 6)
	n, _ := b.ReadAt(head, 0)
	if c := detect(head[:n]); c == plain || c == gzipped {
		return blobMember(r.Desc.Digest), nil
	}
	name := path.Join(r.Diff.Encoded(), "layer.tar")
	if a.written[name] {
		return name, nil
	}
	var size int64
	for _, write := range []func(r io.Reader) error{ // a tar wants to know the size first
		func(r io.Reader) (err error) { size, err = io.Copy(io.Discard, r); return err },
		func(r io.Reader) error { return a.member(name, size, r) },
	} {
		if _, err := b.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		z, _, err := decompress(b)
		if err != nil {
			return "", err
		}
		err = write(z)
		if err := errors.Join(err, z.Close()); err != nil {
			return "", err
		}
	}
	return name, nil
}

func (a *archiveWriter) header(h *tar.Header) error {
	h.ModTime = time.Unix(0, 0).UTC()
	return a.tw.WriteHeader(h)
}

func (a *archiveWriter) member(name string, size int64, r io.Reader) error {
	if a.written[name] {
		return nil
	}
	if err := a.ctx.Err(); err != nil {
		return context.Cause(a.ctx)
	}
	a.written[name] = true
	if err := a.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(onlyWriter{a.tw}, onlyReader{r}, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
