package image

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// putImage makes an image known, or one of its manifests; with mu held. Its blobs
// and layers are there and leased.
func (s *Store) putImage(id digest.Digest, m manifestRecord, sizes []int64) error {
	rec := imageRecord{ID: id, Sizes: sizes, Updated: time.Now().UTC(), Manifests: []manifestRecord{m}}
	if old := s.images[id]; old != nil {
		for _, o := range old.rec.Manifests {
			if o.Target.Digest != m.Target.Digest {
				rec.Manifests = append(rec.Manifests, o)
			}
		}
	}
	e, err := s.entry(rec)
	if err != nil {
		return err
	}
	if err := writeRecord(s.imageRecordPath(id), rec, true); err != nil {
		return api.Internal("record image %s: %w", id, err)
	}
	s.images[id] = e
	return nil
}

// putName points a name at a target of an image; with mu held. What it pointed at
// before stays, without it.
func (s *Store) putName(n reference.Named, id, target digest.Digest) error {
	rec := nameRecord{Name: n.String(), Image: id, Target: target}
	if s.names[rec.Name] == rec {
		return nil
	}
	if err := writeRecord(s.nameRecordPath(rec.Name), rec, true); err != nil {
		return api.Internal("record name %s: %w", rec.Name, err)
	}
	s.names[rec.Name] = rec
	if k, ok := s.kept[rec.Name]; ok && k.Target != target {
		return s.dropKept(rec.Name)
	}
	return nil
}

// dropName forgets a name; with mu held.
func (s *Store) dropName(n reference.Named) error {
	if err := removeRecord(s.nameRecordPath(n.String())); err != nil {
		return api.Internal("forget name %s: %w", n, err)
	}
	delete(s.names, n.String())
	return s.dropKept(n.String())
}

// Tag gives an image a further name.
func (s *Store) Tag(_ context.Context, source, target string) error {
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return api.InvalidArgument("%w", err)
	}
	if _, ok := named.(reference.Canonical); ok {
		return api.InvalidArgument("refusing to create a tag with a digest reference")
	}
	named = reference.TagNameOnly(named)
	if reference.Path(named) == "library/sha256" && reference.Domain(named) == "docker.io" {
		return api.InvalidArgument("refusing to create an ambiguous tag using digest algorithm as name")
	}
	id, err := s.tag(source, named)
	if err != nil {
		return err
	}
	s.tell(event{"tag", id, reference.FamiliarString(named)})
	return nil
}

func (s *Store) tag(source string, named reference.Named) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, i, err := s.find(source)
	if err != nil {
		return "", err
	}
	return e.rec.ID, s.putName(named, e.rec.ID, e.rec.Manifests[i].Target.Digest)
}

// removal is a Remove under way.
type removal struct {
	s       *Store
	id      digest.Digest
	force   bool
	inUse   func(digest.Digest) []string
	events  []event
	records []imagetypes.DeleteResponse
}

// Remove untags or deletes as docker rmi does: a name is taken away, and the image
// goes with its last one. inUse, which may be nil, names the containers (by short
// ID) that need an image.
func (s *Store) Remove(_ context.Context, ref string, o api.ImageRemoveOptions, inUse func(id digest.Digest) []string) ([]imagetypes.DeleteResponse, error) {
	r := &removal{s: s, force: o.Force, inUse: inUse}
	err := s.remove(r, ref)
	s.tell(r.events...)
	if err != nil {
		return r.records, err
	}
	return r.records, s.emptyTrash()
}

func (s *Store) remove(r *removal, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _, err := s.find(ref)
	if err != nil {
		return err
	}
	r.id = e.rec.ID
	refs := s.references(r.id)
	if isIDPrefix(r.id, ref) {
		if !singleReference(refs) {
			return r.delete(false)
		}
		if err := r.conflict(false); err != nil {
			return err
		}
		for _, n := range refs {
			if err := r.untag(n); err != nil {
				return err
			}
		}
		return r.delete(false)
	}
	if users := r.users(); !r.force && singleReference(refs) && len(users) > 0 {
		return api.Conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, users[0], short(r.id))
	}
	last, err := r.untagReference(ref)
	if err != nil || !last {
		return err
	}
	return r.delete(true)
}

// untagReference takes away the name that ref is, and with the last tag of a
// repository its digests. last says that the image has no name any more.
func (r *removal) untagReference(ref string) (last bool, err error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false, api.InvalidArgument("%w", err)
	}
	named = reference.TagNameOnly(named)
	if c, ok := named.(reference.Canonical); ok {
		if named, err = reference.WithDigest(reference.TrimNamed(named), c.Digest()); err != nil {
			return false, api.InvalidArgument("%w", err)
		}
	}
	if err := r.untag(named); err != nil {
		return false, err
	}
	left := r.s.references(r.id)
	_, digested := named.(reference.Canonical)
	tagOfRepository := func(n reference.Named) bool {
		_, d := n.(reference.Canonical)
		return !d && n.Name() == named.Name()
	}
	if !digested && !slices.ContainsFunc(left, tagOfRepository) {
		for _, n := range left {
			if n.Name() == named.Name() {
				if err := r.untag(n); err != nil {
					return false, err
				}
			}
		}
	}
	return len(r.s.references(r.id)) == 0, nil
}

func (r *removal) untag(n reference.Named) error {
	if err := r.s.dropName(n); err != nil {
		return err
	}
	r.events = append(r.events, event{"untag", r.id, reference.FamiliarString(n)})
	r.records = append(r.records, imagetypes.DeleteResponse{Untagged: reference.FamiliarString(n)})
	return nil
}

// users are the containers that need the image, by short ID.
func (r *removal) users() []string {
	if r.inUse == nil {
		return nil
	}
	return r.inUse(r.id)
}

// conflict is why the image can't be deleted; nil if it can. Force passes over all
// but running containers.
func (r *removal) conflict(references bool) error {
	fail := func(how, why string) error {
		return api.Conflict("conflict: unable to delete %s (%s) - %s", short(r.id), how, why)
	}
	users := r.users()
	for _, u := range users {
		if r.s.isMounted(u) {
			return fail("cannot be forced", "image is being used by running container "+u)
		}
	}
	switch {
	case r.force:
		return nil
	case references && len(r.s.references(r.id)) > 0:
		return fail("must be forced", "image is referenced in multiple repositories")
	case len(users) > 0:
		return fail("must be forced", "image is being used by stopped container "+users[0])
	}
	return nil
}

// delete forgets the image and frees what only it needed. After its last name was
// removed (quiet) an image that is in use stays, nameless.
func (r *removal) delete(quiet bool) error {
	if err := r.conflict(true); err != nil {
		if quiet {
			return nil
		}
		return err
	}
	for _, n := range r.s.references(r.id) {
		if err := r.untag(n); err != nil {
			return err
		}
	}
	if err := removeRecord(r.s.imageRecordPath(r.id)); err != nil {
		return api.Internal("forget image %s: %w", r.id, err)
	}
	e := r.s.images[r.id]
	delete(r.s.images, r.id)
	r.events = append(r.events, event{"delete", r.id, ""})
	r.records = append(r.records, imagetypes.DeleteResponse{Deleted: r.id.String()})
	freed, err := r.s.free(e.needs())
	for _, chain := range freed {
		r.records = append(r.records, imagetypes.DeleteResponse{Deleted: chain.String()})
	}
	return err
}

// isIDPrefix says whether ref is a beginning of an image's ID, not a name.
func isIDPrefix(id digest.Digest, ref string) bool {
	return strings.HasPrefix(id.String(), ref) || strings.HasPrefix(id.Encoded(), ref)
}

// singleReference says whether removing an image by its ID is unambiguous: it has at
// most one tag, and digests of that tag's repository only.
func singleReference(refs []reference.Named) bool {
	if len(refs) <= 1 {
		return true
	}
	tags := 0
	for _, n := range refs {
		if n.Name() != refs[0].Name() {
			return false
		}
		if _, digested := n.(reference.Canonical); !digested {
			tags++
		}
	}
	return tags <= 1
}

// short is an ID as people see it.
func short(d digest.Digest) string { return d.Encoded()[:12] }
