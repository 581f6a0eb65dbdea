package image

import (
	"slices"

	"github.com/opencontainers/go-digest"
)

// maxNested is how deep indexes may lie in each other.
const maxNested = 3

// EachImage yields every image through every manifest by which it is known: what its
// names point at, its ID, and its blobs. What is kept and no image comes without an ID.
func (s *Store) EachImage(yield func(target, id digest.Digest, blobs []digest.Digest) bool) {
	s.mu.Lock()
	entries := make([]*entry, 0, len(s.images))
	for _, e := range s.images {
		entries = append(entries, e)
	}
	kept := make([]Kept, 0, len(s.kept))
	for _, k := range s.kept {
		kept = append(kept, k)
	}
	s.mu.Unlock() // entries never change
	for _, e := range entries {
		for i, m := range e.rec.Manifests {
			blobs := []digest.Digest{m.Target.Digest, m.Manifest.Digest, e.rec.ID}
			for _, l := range e.bodies[i].Layers {
				blobs = append(blobs, l.Digest)
			}
			if !yield(m.Target.Digest, e.rec.ID, blobs) {
				return
			}
		}
	}
	for _, k := range kept {
		if !yield(k.Target, "", append(slices.Clone(k.Blobs), k.Target)) {
			return
		}
	}
}

// Needed says whether a job under way needs a blob: a pull, a load, a push.
func (s *Store) Needed(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leased[d] > 0
}

// Parts are a manifest or index and the blobs that it leads to, as far as the documents
// in between are here; whole says that they all are. None if d isn't here, and d alone
// if it is neither.
func (s *Store) Parts(d digest.Digest) (parts []digest.Digest, whole bool) {
	if checkDigest(d) != nil || !s.has(d) {
		return nil, false
	}
	return s.partsBelow(d, map[digest.Digest]bool{}, maxNested)
}

func (s *Store) partsBelow(d digest.Digest, seen map[digest.Digest]bool, depth int) (parts []digest.Digest, whole bool) {
	if seen[d] {
		return nil, true
	}
	seen[d] = true
	parts = []digest.Digest{d}
	b, err := s.readVerified(d, maxManifest)
	if err != nil {
		return parts, false
	}
	doc, err := decodeDocument(b)
	switch {
	case err != nil:
		return parts, true
	case doc.manifest != nil:
		parts = append(parts, doc.manifest.Config.Digest)
		for _, l := range doc.manifest.Layers {
			parts = append(parts, l.Digest)
		}
		return parts, true
	}
	whole = depth > 0
	for _, m := range doc.index.Manifests {
		if depth == 0 || !s.has(m.Digest) {
			parts, whole = append(parts, m.Digest), false
			continue
		}
		below, all := s.partsBelow(m.Digest, seen, depth-1)
		parts, whole = append(parts, below...), whole && all
	}
	return parts, whole
}
