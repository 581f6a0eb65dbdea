package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// Kept is a name of what is more than an image of this host, or none: an index with
// all its platforms, a signature, a chart. Its blobs stay as long as it does.
type Kept struct {
	Name   string          `json:"name"`   // normalized, with its tag
	Target digest.Digest   `json:"target"` // the manifest or index
	Blobs  []digest.Digest `json:"blobs"`  // all that Target leads to
	// Shared says that the cluster was told of the name: if the cluster forgets it,
	// so may this node.
	Shared bool `json:"shared,omitempty"`
}

func (s *Store) keptPath(name string) string {
	return s.path("records", "kept", digest.FromString(name).Encoded())
}

func (s *Store) loadKept() error {
	return eachRecord(s.path("records", "kept"), func(path string) error {
		var k Kept
		if err := readRecord(path, &k); err != nil {
			return err
		}
		if path != s.keptPath(k.Name) {
			return fmt.Errorf("record %s: is of name %q", path, k.Name)
		}
		s.kept[k.Name] = k
		return nil
	}, s.logRefused)
}

// Keep makes blobs that are here stay as long as the name does, in place of what was
// kept under it. An image that has the same name decides: the record goes when the
// image loses the name or it comes to mean something else.
func (s *Store) Keep(_ context.Context, k Kept) error {
	k.Blobs = slices.Clone(k.Blobs)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range append([]digest.Digest{k.Target}, k.Blobs...) {
		if !s.has(d) {
			return api.NotFound("blob %s is not here", d)
		}
	}
	if err := writeRecord(s.keptPath(k.Name), k, true); err != nil {
		return api.Internal("record name %s: %w", k.Name, err)
	}
	s.kept[k.Name] = k
	return nil
}

// Unkeep forgets what Keep recorded, if target is empty or what the name is kept for,
// and frees what only that needed.
func (s *Store) Unkeep(_ context.Context, name string, target digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.kept[name]
	if !ok || target != "" && k.Target != target {
		return nil
	}
	if err := s.dropKept(name); err != nil {
		return err
	}
	_, err := s.free(needed{blobs: append([]digest.Digest{k.Target}, k.Blobs...)})
	return err
}

// dropKept forgets a record, if there is one; with mu held.
func (s *Store) dropKept(name string) error {
	if _, ok := s.kept[name]; !ok {
		return nil
	}
	if err := removeRecord(s.keptPath(name)); err != nil {
		return api.Internal("forget name %s: %w", name, err)
	}
	delete(s.kept, name)
	return nil
}

// Kept lists what is kept, by name.
func (s *Store) Kept() []Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Collect(maps.Values(s.kept))
	slices.SortFunc(list, func(a, b Kept) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Names are the tagged names of images, normalized, and what they point at.
func (s *Store) Names() map[string]digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]digest.Digest, len(s.names))
	for name, rec := range s.names {
		if !strings.Contains(name, "@") {
			out[name] = rec.Target
		}
	}
	return out
}

// IsImage says whether a manifest or index, whose blobs are here, is an image that
// this host can unpack.
func (s *Store) IsImage(_ context.Context, target digest.Digest) bool {
	l := s.lease()
	defer l.release()
	p := &pull{s: s, l: l, target: target, p: s.cfg.Platform}
	manifest, desc := p.heldManifest()
	if manifest == "" {
		return false
	}
	desc.Digest = target
	m := desc
	m.Digest = manifest
	_, err := s.addition(desc, m)
	return err == nil
}
