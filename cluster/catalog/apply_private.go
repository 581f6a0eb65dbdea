package catalog

import (
	"slices"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// Bounds of one record.
const (
	maxPrivateNodes = 10_000
	maxPrivateTags  = 256
	maxPrivateNames = 1024
)

func setPrivate(t tx, c SetPrivate) (Result, error) {
	p := c.Private
	if p.Digest == "" {
		return Result{}, api.InvalidArgument("an image needs a digest to be private")
	}
	p.Nodes, p.Tags, p.Names = sortedSet(p.Nodes), sortedSet(p.Tags), sortedSet(p.Names)
	if len(p.Nodes) > maxPrivateNodes || len(p.Tags) > maxPrivateTags || len(p.Names) > maxPrivateNames {
		return Result{}, api.InvalidArgument("an image is private to at most %d nodes and %d tags, with %d names", maxPrivateNodes, maxPrivateTags, maxPrivateNames)
	}
	for _, id := range p.Nodes {
		if _, ok := first[Node](t.Txn, tableNode, "id", id); !ok {
			return Result{}, api.NotFound("node %s not found", id)
		}
	}
	for _, tag := range p.Tags {
		if key, _, ok := strings.Cut(tag, "="); !ok || key == "" {
			return Result{}, api.InvalidArgument("invalid tag %q: want key=value", tag)
		}
	}
	for _, name := range p.Names {
		if err := takeName(t, name); err != nil {
			return Result{}, err
		}
	}
	if err := dropStale(t); err != nil {
		return Result{}, err
	}
	return Result{}, put(t, tablePrivate, &p)
}

func dropPrivate(t tx, c DropPrivate) (Result, error) {
	for _, p := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		if !p.Of(c.Digest, c.ID) {
			continue
		}
		if err := drop(t, tablePrivate, p); err != nil {
			return Result{}, err
		}
	}
	return Result{}, nil
}

func sortedSet(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// takeName takes a name out of the record that has it, if one does.
func takeName(t tx, name string) error {
	for _, p := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		i := slices.Index(p.Names, name)
		if i < 0 {
			continue
		}
		less := *p
		less.Names = slices.Delete(slices.Clone(p.Names), i, i+1)
		if err := put(t, tablePrivate, &less); err != nil {
			return err
		}
	}
	return nil
}

// passOn makes an image that comes to be called by a private image's name private too,
// unless it is something of its own: private by itself, or known by a name that isn't
// private. Of a node's report (final is false) the name stays with the record it was
// in, as only SetRef says what a name means from now on.
func passOn(t tx, name, digest, id string, final bool) error {
	from := owner(t, name)
	if from == nil || from.Of(digest, id) {
		return nil
	}
	p := Private{Digest: digest, ID: id, Nodes: from.Nodes, Tags: from.Tags}
	known := false
	for _, o := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		if !known && o.Of(digest, id) {
			p, known = *o, true
		}
	}
	if known && !final || !known && public(t, name, digest) {
		return nil
	}
	if final {
		if err := takeName(t, name); err != nil {
			return err
		}
		p.Names = sortedSet(append(slices.Clone(p.Names), name))
	}
	return put(t, tablePrivate, &p)
}

// owner is the record that a name passes on: the one that lists it, or that of the
// image which has the name so far; nil if none.
func owner(t tx, name string) *Private {
	for _, p := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		if slices.Contains(p.Names, name) {
			return p
		}
	}
	if r, ok := first[Ref](t.Txn, tableRef, "id", name); ok {
		if p, ok := first[Private](t.Txn, tablePrivate, "id", r.Digest); ok {
			return p
		}
	}
	return nil
}

// public says whether an image has a name other than this one that passes no privacy
// on, in the cluster or on a node.
func public(t tx, name, digest string) bool {
	other := func(n string) bool { return n != name && owner(t, n) == nil }
	for _, r := range pointers[Ref](t.Txn, tableRef, "id_prefix", "") {
		if r.Digest == digest && other(r.Name) {
			return true
		}
	}
	for _, i := range pointers[Image](t.Txn, tableImage, "digest", digest) {
		if slices.ContainsFunc(i.Summary.RepoTags, other) {
			return true
		}
	}
	return false
}

// dropStale forgets the records of images that no node holds, no name means and no
// name passes on.
func dropStale(t tx) error {
	for _, p := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		if len(p.Names) > 0 || len(pointers[Image](t.Txn, tableImage, "digest", p.Digest)) > 0 {
			continue
		}
		if slices.ContainsFunc(pointers[Ref](t.Txn, tableRef, "id_prefix", ""), func(r *Ref) bool { return r.Digest == p.Digest }) {
			continue
		}
		if err := drop(t, tablePrivate, p); err != nil {
			return err
		}
	}
	return nil
}

// leaveAll takes a node that goes out of the records: if it ever comes back, somebody
// has to say again what it may hold.
func leaveAll(t tx, node string) error {
	for _, p := range pointers[Private](t.Txn, tablePrivate, "id_prefix", "") {
		i := slices.Index(p.Nodes, node)
		if i < 0 {
			continue
		}
		less := *p
		less.Nodes = slices.Delete(slices.Clone(p.Nodes), i, i+1)
		if err := put(t, tablePrivate, &less); err != nil {
			return err
		}
	}
	return nil
}
