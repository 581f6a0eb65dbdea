package image

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// imageRecord is an image on disk. All else is in its manifest's and config's blobs.
type imageRecord struct {
	ID        digest.Digest    `json:"id"`
	Manifests []manifestRecord `json:"manifests"` // the newest first; at least one
	Sizes     []int64          `json:"sizes"`     // of the layers, unpacked, bottom first
	Updated   time.Time        `json:"updated"`
}

// manifestRecord is one of the manifests through which an image became known: the
// same config may come with layers compressed in several ways.
type manifestRecord struct {
	Target   ocispec.Descriptor `json:"target"` // what names point at: the manifest or an index of it
	Manifest ocispec.Descriptor `json:"manifest"`
}

// nameRecord is a name on disk.
type nameRecord struct {
	Name   string        `json:"name"` // normalized, with tag or digest
	Image  digest.Digest `json:"image"`
	Target digest.Digest `json:"target"`
}

// entry is an image in memory. It is never changed, only replaced.
type entry struct {
	rec    imageRecord
	cfg    *config
	bodies []*ocispec.Manifest // one a record's manifest
}

func (s *Store) imageRecordPath(id digest.Digest) string {
	return s.path("records", "images", id.Encoded())
}

func (s *Store) nameRecordPath(name string) string {
	return s.path("records", "names", digest.FromString(name).Encoded())
}

func (s *Store) logRefused(path string, err error) {
	s.log.Error("record is damaged and set aside", "path", path, "error", err)
}

func (s *Store) loadImages() error {
	return eachRecord(s.path("records", "images"), func(path string) error {
		var rec imageRecord
		if err := readRecord(path, &rec); err != nil {
			return err
		}
		if err := checkDigest(rec.ID); err != nil || rec.ID.Encoded() != filepath.Base(path) {
			return fmt.Errorf("record %s: is of image %q", path, rec.ID)
		}
		e, err := s.entry(rec)
		if err != nil {
			return fmt.Errorf("record %s: %w", path, err)
		}
		s.images[rec.ID] = e
		return nil
	}, s.logRefused)
}

func (s *Store) loadNames() error {
	return eachRecord(s.path("records", "names"), func(path string) error {
		var rec nameRecord
		if err := readRecord(path, &rec); err != nil {
			return err
		}
		if path != s.nameRecordPath(rec.Name) {
			return fmt.Errorf("record %s: is of name %q", path, rec.Name)
		}
		e := s.images[rec.Image]
		if e == nil {
			return fmt.Errorf("record %s: image %s of name %q is not here", path, rec.Image, rec.Name)
		}
		if e.index(rec.Target) < 0 {
			return fmt.Errorf("record %s: manifest %s of name %q is not here", path, rec.Target, rec.Name)
		}
		s.names[rec.Name] = rec
		return nil
	}, s.logRefused)
}

// entry reads what a record refers to.
func (s *Store) entry(rec imageRecord) (*entry, error) {
	if len(rec.Manifests) == 0 {
		return nil, fmt.Errorf("image %s has no manifest", rec.ID)
	}
	b, err := s.readVerified(rec.ID, maxConfig)
	if err != nil {
		return nil, err
	}
	e := &entry{rec: rec}
	if e.cfg, err = decodeConfig(b); err != nil {
		return nil, err
	}
	for _, m := range rec.Manifests {
		b, err := s.readVerified(m.Manifest.Digest, maxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := decodeDocument(b)
		if err != nil {
			return nil, err
		}
		if doc.manifest == nil || doc.manifest.Config.Digest != rec.ID || len(doc.manifest.Layers) != len(e.cfg.RootFS.DiffIDs) {
			return nil, fmt.Errorf("manifest %s is not of image %s", m.Manifest.Digest, rec.ID)
		}
		e.bodies = append(e.bodies, doc.manifest)
	}
	if len(rec.Sizes) != len(e.cfg.RootFS.DiffIDs) {
		return nil, fmt.Errorf("image %s has %d layers, not %d", rec.ID, len(e.cfg.RootFS.DiffIDs), len(rec.Sizes))
	}
	return e, nil
}

// readVerified reads a small blob and looks whether it still is what it was.
func (s *Store) readVerified(d digest.Digest, limit int64) ([]byte, error) {
	b, err := s.read(d, limit)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(b); got != d {
		return nil, api.Internal("blob %s: changed on disk, its digest is %s", d, got)
	}
	return b, nil
}

// index finds the manifest of a target; -1 if there is none.
func (e *entry) index(target digest.Digest) int {
	return slices.IndexFunc(e.rec.Manifests, func(m manifestRecord) bool { return m.Target.Digest == target })
}

// refs are the layers of one of the entry's manifests.
func (e *entry) refs(i int) []layerRef { return layerRefs(e.bodies[i].Layers, e.cfg.RootFS.DiffIDs) }

// image is what callers see of an entry, through its i-th manifest; with mu held.
func (s *Store) image(e *entry, i int) Image {
	tags, digests := s.namesOf(e.rec.ID)
	m := e.rec.Manifests[i]
	img := Image{
		ID: e.rec.ID, Target: m.Target, Manifest: m.Manifest,
		Config: e.cfg.Config, Layers: slices.Clone(e.bodies[i].Layers),
		Tags: tags, Digests: digests, Updated: e.rec.Updated,
		Author: e.cfg.Author, Comment: e.cfg.Comment,
		Platform: e.cfg.Platform, DiffIDs: slices.Clone(e.cfg.RootFS.DiffIDs),
		Chains: chains(e.cfg.RootFS.DiffIDs), LayerSizes: slices.Clone(e.rec.Sizes),
	}
	if e.cfg.Created != nil {
		img.Created = *e.cfg.Created
	}
	for _, n := range e.rec.Sizes {
		img.Size += n
	}
	return img
}

// namesOf lists an image's names in familiar form, sorted; with mu held.
func (s *Store) namesOf(id digest.Digest) (tags, digests []string) {
	for _, n := range s.references(id) {
		if _, ok := n.(reference.Canonical); ok {
			digests = append(digests, reference.FamiliarString(n))
		} else {
			tags = append(tags, reference.FamiliarString(n))
		}
	}
	return tags, digests
}

// references are an image's names, sorted; with mu held.
func (s *Store) references(id digest.Digest) []reference.Named {
	var refs []reference.Named
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		if s.names[name].Image != id {
			continue
		}
		if n, err := reference.ParseNormalizedNamed(name); err == nil {
			refs = append(refs, n)
		}
	}
	return refs
}

// Get finds an image by a reference, an ID, the digest of its manifest, or an
// unambiguous prefix of its ID. Names come before prefixes.
func (s *Store) Get(_ context.Context, ref string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, i, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.image(e, i), nil
}

// find is Get with mu held: an entry and which of its manifests is meant.
func (s *Store) find(ref string) (*entry, int, error) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return nil, 0, api.InvalidArgument("%w", err)
	}
	named, ok := parsed.(reference.Named)
	if !ok {
		d := parsed.(reference.Digested).Digest()
		if e, i := s.byDigest(d, ""); e != nil {
			return e, i, nil
		}
		return nil, 0, noSuchImage(parsed)
	}
	if e, i := s.byName(named); e != nil {
		return e, i, nil
	}
	e, err := s.byPrefix(ref)
	if err != nil {
		return nil, 0, err
	}
	if e == nil {
		return nil, 0, noSuchImage(parsed)
	}
	return e, 0, nil
}

// byName finds a name; one with both tag and digest is found by its digest.
func (s *Store) byName(named reference.Named) (*entry, int) {
	if c, ok := named.(reference.Canonical); ok {
		return s.byDigest(c.Digest(), named.Name())
	}
	rec, ok := s.names[reference.TagNameOnly(named).String()]
	if !ok {
		return nil, 0
	}
	e := s.images[rec.Image]
	return e, e.index(rec.Target)
}

// byDigest finds an image by its ID or by the digest of a manifest or index of it;
// with a repository, only through a name of that repository.
func (s *Store) byDigest(d digest.Digest, repository string) (*entry, int) {
	if repository == "" {
		if e := s.images[d]; e != nil {
			return e, 0
		}
	}
	for _, e := range s.images {
		for i, m := range e.rec.Manifests {
			if m.Target.Digest != d && m.Manifest.Digest != d {
				continue
			}
			inRepository := func(n reference.Named) bool { return n.Name() == repository }
			if repository == "" || slices.ContainsFunc(s.references(e.rec.ID), inRepository) {
				return e, i
			}
		}
	}
	return nil, 0
}

// byManifest finds the image of a manifest.
func (s *Store) byManifest(d digest.Digest) (*entry, int) {
	for _, e := range s.images {
		for i, m := range e.rec.Manifests {
			if m.Manifest.Digest == d {
				return e, i
			}
		}
	}
	return nil, 0
}

// byPrefix finds the only image whose ID begins so; nil if there is none.
func (s *Store) byPrefix(ref string) (*entry, error) {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found *entry
	for id, e := range s.images {
		if !strings.HasPrefix(id.Encoded(), prefix) {
			continue
		}
		if found != nil {
			return nil, api.InvalidArgument("ambiguous reference: %q is the beginning of several image IDs", ref)
		}
		found = e
	}
	return found, nil
}

// noSuchImage is Docker's error for a reference that means nothing here.
func noSuchImage(ref reference.Reference) error {
	if named, ok := ref.(reference.Named); ok {
		ref = reference.TagNameOnly(named)
	}
	return api.NotFound("No such image: %s", reference.FamiliarString(ref))
}

// List lists all images, the newest first.
func (s *Store) List(context.Context) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Image, 0, len(s.images))
	for _, e := range s.images {
		list = append(list, s.image(e, 0))
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return list, nil
}

// History says how an image came to be, the newest step first.
func (s *Store) History(_ context.Context, ref string) ([]imagetypes.HistoryResponseItem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	items := []imagetypes.HistoryResponseItem{}
	layer := 0
	for _, h := range e.cfg.History {
		item := imagetypes.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer < len(e.rec.Sizes) {
			item.Size = e.rec.Sizes[layer]
			layer++
		}
		items = append(items, item)
	}
	slices.Reverse(items)
	if len(items) > 0 {
		items[0].ID = e.rec.ID.String()
		items[0].Tags, _ = s.namesOf(e.rec.ID)
	}
	return items, nil
}
