package catalog

import (
	"slices"
	"strings"
)

// Private says that an image may lie on some nodes only. Without it, every node of the
// cluster may hold an image.
type Private struct {
	Digest string // of the manifest or index, as in Image
	// ID is what docker calls the image's ID, if it was known: the same content under
	// another manifest is as private.
	ID string `json:",omitempty"`
	// Names are those that pass this on: an image that comes to be called so, and has
	// no other name, becomes private to the same nodes. A name is in one record only.
	Names []string `json:",omitempty"`
	Nodes []string // IDs of nodes that may hold it, sorted
	Tags  []string // "key=value": so may nodes with any of these tags; sorted
}

// Admits says whether a node may hold the image.
func (p Private) Admits(n Node) bool {
	return slices.Contains(p.Nodes, n.ID) || slices.ContainsFunc(p.Tags, func(t string) bool {
		key, value, _ := strings.Cut(t, "=")
		v, ok := n.Tags[key]
		return ok && v == value
	})
}

// Of says whether this is about an image, by its digest or by its ID, which may be
// empty.
func (p Private) Of(digest, id string) bool {
	return p.Digest == digest || id != "" && p.ID == id
}

// MayHold says whether a node may hold an image with that digest and ID; if not, which
// record is against it.
func MayHold(v View, n Node, digest, id string) (against Private, ok bool) {
	ok = true
	for _, p := range v.Private() {
		if !p.Of(digest, id) {
			continue
		}
		if p.Admits(n) {
			return Private{}, true
		}
		against, ok = p, false
	}
	return against, ok
}
