// Package access decides which node gets which blob of this one.
//
// A blob is given to every member of the cluster unless it belongs to an image that is
// private (catalog.Private). Such a blob goes only to nodes that may hold one of the
// private images it belongs to, or to every member if it also belongs to an image here
// that isn't private: a base layer that is part of a public image is no secret.
//
// An image is private if there is a record of its manifest or index, if it has the ID of
// an image of which there is one, or if one that is private leads to it or is led to by it. Blobs of an
// image that is being fetched are private as soon as its manifest is here. Blobs of no
// image that nothing under way needs, such as what a container keeps of an image that was
// removed, might have been anything: while there are private images, no peer gets them.
package access

import (
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Images is what this node holds. Its methods may be called concurrently.
type Images interface {
	// EachImage yields every image: the manifest or index that its names mean, its ID
	// (empty if it is none that this node can run), and all its blobs.
	EachImage(yield func(target, id digest.Digest, blobs []digest.Digest) bool)
	// Parts are a manifest or index and what it leads to, as far as the documents in
	// between are here; whole says that they all are. None if the blob isn't here.
	Parts(d digest.Digest) (parts []digest.Digest, whole bool)
	// Needed says whether something under way, such as a fetch, needs a blob.
	Needed(d digest.Digest) bool
}

// Policy answers for one node. Its methods may be called concurrently.
type Policy struct {
	view   func() catalog.View
	images Images

	mu    sync.Mutex
	parts map[digest.Digest]set // of private images whose documents are all here
}

type set map[digest.Digest]struct{}

func (s set) has(d digest.Digest) bool { _, ok := s[d]; return ok }

func newSet(ds []digest.Digest) set {
	s := make(set, len(ds))
	for _, d := range ds {
		s[d] = struct{}{}
	}
	return s
}

// New makes a policy by what views of the catalog say and images holds.
func New(view func() catalog.View, images Images) *Policy {
	return &Policy{view: view, images: images, parts: map[digest.Digest]set{}}
}

// Outside stands for clients that are no node of the cluster, but whom this node's
// operator lets in: they get what is private to nobody.
const Outside = ""

// party finds out who is asked about.
func party(v catalog.View, node string) (catalog.Node, error) {
	if node == Outside {
		return catalog.Node{Name: "who is no node"}, nil
	}
	n, ok := v.Node(node)
	if !ok || n.ID != node {
		return n, api.Errorf(errdefs.ErrPermissionDenied, "%s is no node of this cluster", node)
	}
	return n, nil
}

// Serve says, by a nil error, that a node, by its ID, may have a blob of this one;
// PermissionDenied otherwise, also for who is no node of the cluster.
func (p *Policy) Serve(node string, blob digest.Digest) error {
	known, err := p.blob(node, blob)
	if err == nil && !known && !p.images.Needed(blob) {
		return api.Errorf(errdefs.ErrPermissionDenied, "blob %s is of no image here", blob)
	}
	return err
}

// Blob is Serve for who has the blob by other ways than this node's: what is of no image
// is nobody's secret.
func (p *Policy) Blob(node string, blob digest.Digest) error {
	_, err := p.blob(node, blob)
	return err
}

func (p *Policy) blob(node string, blob digest.Digest) (known bool, err error) {
	v := p.view()
	n, err := party(v, node)
	if err != nil {
		return false, err
	}
	return p.decide(v, n, blob)
}

// Image says, by a nil error, that a node, by its ID, may have the image with that
// manifest or index, and that ID if it is known; PermissionDenied otherwise.
func (p *Policy) Image(node string, target, id digest.Digest) error {
	v := p.view()
	n, err := party(v, node)
	if err != nil || len(v.Private()) == 0 {
		return err
	}
	if id == "" {
		for _, i := range v.Images() {
			if i.Digest == target.String() {
				id = digest.Digest(i.Summary.ID)
				break
			}
		}
	}
	return Hold(v, n, target.String(), id.String(), "")
}

// Hold says, by a nil error, that a node may hold an image with that digest and ID, both
// as in catalog.Private; PermissionDenied otherwise, and the text says who may. name is
// what to call the image; a name or the digest if empty.
func Hold(v catalog.View, n catalog.Node, image, id, name string) error {
	against, ok := catalog.MayHold(v, n, image, id)
	if ok {
		return nil
	}
	if name == "" {
		name = nameOf(v, against)
	}
	return api.Errorf(errdefs.ErrPermissionDenied, "image %s is private to %s: %s may not have it", name, Who(v, against), n.Name)
}

func nameOf(v catalog.View, p catalog.Private) string {
	if len(p.Names) > 0 {
		return p.Names[0]
	}
	for _, i := range v.Images() {
		if i.Digest == p.Digest && len(i.Summary.RepoTags) > 0 {
			return i.Summary.RepoTags[0]
		}
	}
	return p.Digest
}

// decide is the rule. known says that an image is known which the blob belongs to, or
// that it doesn't matter.
func (p *Policy) decide(v catalog.View, n catalog.Node, blob digest.Digest) (known bool, err error) {
	records := v.Private()
	if len(records) == 0 {
		return true, nil
	}
	parts := p.partsOf(records)
	var in []catalog.Private // the private images that the blob belongs to
	for _, r := range records {
		if parts[digest.Digest(r.Digest)].has(blob) {
			in = append(in, r)
		}
	}
	public := false
	p.images.EachImage(func(target, id digest.Digest, blobs []digest.Digest) bool {
		if !slices.Contains(blobs, blob) {
			return true
		}
		public = true
		for _, r := range records {
			d := digest.Digest(r.Digest)
			if r.Of(target.String(), id.String()) || parts[d].has(target) || slices.Contains(blobs, d) {
				in, public = append(in, r), false
			}
		}
		return !public
	})
	if public || len(in) == 0 || slices.ContainsFunc(in, func(r catalog.Private) bool { return r.Admits(n) }) {
		return public || len(in) > 0, nil
	}
	return true, api.Errorf(errdefs.ErrPermissionDenied, "blob %s is part of image %s, which is private to %s: %s may not have it", blob, nameOf(v, in[0]), Who(v, in[0]), n.Name)
}

// partsOf are the blobs of private images, as far as is known here.
func (p *Policy) partsOf(records []catalog.Private) map[digest.Digest]set {
	out := make(map[digest.Digest]set, len(records))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		d := digest.Digest(r.Digest)
		known, ok := p.parts[d]
		if !ok {
			list, whole := p.images.Parts(d)
			known = newSet(list)
			if whole { // what a digest leads to never changes
				p.parts[d] = known
			}
		}
		out[d] = known
	}
	for d := range p.parts {
		if _, still := out[d]; !still {
			delete(p.parts, d)
		}
	}
	return out
}
