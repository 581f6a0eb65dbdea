package cluster

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// PrivateImage is an image that only some nodes may hold, as people see it.
type PrivateImage struct {
	Digest string
	ID     string   `json:",omitempty"`
	Names  []string // whose later meanings are private, too
	Nodes  []string // names of those that may hold it
	Tags   []string // so may nodes with any of these, key=value
	// Holders have it whole; Others are those of them that may not. They keep it until
	// somebody removes it there.
	Holders []string
	Others  []string
}

// tagPrefix begins what stands for all nodes with a tag.
const tagPrefix = "tag:"

// MakePrivate lets only some nodes hold an image: nodes by name or ID, and with
// "tag:KEY=VALUE" all that have the tag, now or later. It replaces what was said of the
// image before.
func (r *Router) MakePrivate(ctx context.Context, ref string, who []string) (PrivateImage, error) {
	var none PrivateImage
	r.sync(ctx, missSync)
	c, err := r.image(ctx, ref)
	if err != nil {
		return none, err
	}
	p := catalog.Private{Digest: c.digest, ID: c.id, Names: c.names}
	for _, w := range who {
		if tag, ok := strings.CutPrefix(w, tagPrefix); ok {
			p.Tags = append(p.Tags, tag)
			continue
		}
		n, ok := r.reader.View().Node(w)
		if !ok {
			return none, noSuchNode(w)
		}
		p.Nodes = append(p.Nodes, n.ID)
	}
	if len(p.Nodes)+len(p.Tags) == 0 {
		return none, api.InvalidArgument("say which nodes may hold the image")
	}
	res, err := r.store.Propose(ctx, catalog.SetPrivate{Private: p})
	if err != nil {
		return none, err
	}
	r.await(ctx, settle, func(v catalog.View) bool { return v.Index() >= res.Index })
	list := privateImages(r.reader.View())
	i := slices.IndexFunc(list, func(o PrivateImage) bool { return o.Digest == c.digest })
	if i < 0 {
		return none, api.Conflict("the image was made public meanwhile")
	}
	return list[i], nil
}

// MakePublic lets every node hold an image again. NotFound if it isn't private.
func (r *Router) MakePublic(ctx context.Context, ref string) error {
	r.sync(ctx, missSync)
	drop, err := r.privateRecord(ctx, ref)
	if err != nil {
		return err
	}
	res, err := r.store.Propose(ctx, drop)
	if err != nil {
		return err
	}
	r.await(ctx, settle, func(v catalog.View) bool { return v.Index() >= res.Index })
	return nil
}

// privateRecord finds what makes an image private, also of one that nobody holds any
// more, by its name or digest.
func (r *Router) privateRecord(ctx context.Context, ref string) (catalog.DropPrivate, error) {
	c, err := r.image(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return catalog.DropPrivate{}, err
	}
	name, _ := familiar(ref) // a digest is no name
	for _, p := range r.reader.View().Private() {
		if err == nil && p.Of(c.digest, c.id) || err != nil && (p.Digest == ref || slices.Contains(p.Names, name)) {
			return catalog.DropPrivate{Digest: p.Digest, ID: p.ID}, nil
		}
	}
	if err != nil {
		return catalog.DropPrivate{}, err
	}
	return catalog.DropPrivate{}, api.NotFound("image %s is private to nobody", c.name())
}

// privateImages are all private images of a view.
func privateImages(v catalog.View) []PrivateImage {
	out := []PrivateImage{}
	all := clusterImages(v)
	for _, p := range v.Private() {
		i := PrivateImage{Digest: p.Digest, ID: p.ID, Names: list(p.Names), Tags: list(p.Tags), Nodes: []string{}, Holders: []string{}, Others: []string{}}
		for _, n := range v.Nodes() {
			if slices.Contains(p.Nodes, n.ID) {
				i.Nodes = append(i.Nodes, n.Name)
			}
			for _, c := range all {
				if _, holds := c.holders[n.ID]; !holds || !p.Of(c.digest, c.id) || slices.Contains(i.Holders, n.Name) {
					continue
				}
				i.Holders = append(i.Holders, n.Name)
				if !p.Admits(n) {
					i.Others = append(i.Others, n.Name)
				}
			}
		}
		out = append(out, i)
	}
	return out
}

// list is never null when written.
func list(s []string) []string { return append([]string{}, s...) }

// may refuses what a node may not have.
func (r *Router) may(node string, c *clusterImage) error {
	v := r.reader.View()
	n, ok := v.Node(node)
	if !ok {
		return noSuchNode(node)
	}
	return access.Hold(v, n, c.digest, c.id, c.name())
}

// mayPull refuses to bring to this node what a name of a private image means, or will
// when its registry is asked: the name makes it private.
func (r *Router) mayPull(name string, c *clusterImage) error {
	if c != nil {
		return r.may(r.self, c)
	}
	v := r.reader.View()
	n, ok := v.Node(r.self)
	if !ok {
		return nil
	}
	for _, p := range v.Private() {
		if slices.Contains(p.Names, name) && !p.Admits(n) {
			return access.Hold(v, n, p.Digest, p.ID, name)
		}
	}
	return nil
}

// only are the nodes that may hold an image, nil if all may, and why others may not.
func only(v catalog.View, c *clusterImage) (nodes map[string]bool, why string) {
	for _, n := range v.Nodes() {
		against, ok := catalog.MayHold(v, n, c.digest, c.id)
		if !ok && why == "" {
			why = "image " + c.name() + " is private to " + access.Who(v, against)
		}
		if ok {
			if nodes == nil {
				nodes = map[string]bool{}
			}
			nodes[n.ID] = true
		}
	}
	if why == "" {
		return nil, ""
	}
	if nodes == nil {
		nodes = map[string]bool{}
	}
	return nodes, why
}

func (c *Cluster) servePrivate(r *http.Request) (any, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	s.router.sync(r.Context(), listSync)
	all := privateImages(s.live.View())
	ref := r.URL.Query().Get("ref")
	if ref == "" {
		return all, nil
	}
	found, err := s.router.privateRecord(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(p PrivateImage) bool { return p.Digest != found.Digest }), nil
}

func (c *Cluster) serveMakePrivate(r *http.Request) (any, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	in, err := body[struct{ Nodes []string }](r)
	if err != nil {
		return nil, err
	}
	return s.router.MakePrivate(r.Context(), r.URL.Query().Get("ref"), in.Nodes)
}

func (c *Cluster) serveMakePublic(r *http.Request) (any, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	return nil, s.router.MakePublic(r.Context(), r.URL.Query().Get("ref"))
}
