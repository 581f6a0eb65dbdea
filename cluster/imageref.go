package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// clusterImage is one image of the cluster.
type clusterImage struct {
	digest  string // of the manifest or index
	id      string // what docker images calls its ID
	names   []string
	summary image.Summary   // one holder's
	holders map[string]tags // by node ID
}

// tags are the names by which one node knows an image.
type tags []string

// knows says whether the node understands a reference: a name it has, or an ID.
func (t tags) knows(ref string) bool {
	name, err := familiar(ref)
	if err != nil || slices.Contains(t, name) {
		return true
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	return len(hex) >= minIDPrefix && strings.Trim(hex, "0123456789abcdef") == ""
}

// familiar is a reference as Docker shows it: with a tag, without the defaults.
func familiar(ref string) (string, error) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", api.InvalidArgument("invalid reference format")
	}
	return reference.FamiliarString(reference.TagNameOnly(n)), nil
}

// clusterImages are all images of a view by digest. A name belongs to the digest that
// the cluster means by it; only names the cluster doesn't know are the nodes' own.
func clusterImages(v catalog.View) map[string]*clusterImage {
	out := map[string]*clusterImage{}
	for _, i := range v.Images() {
		c := out[i.Digest]
		if c == nil {
			c = &clusterImage{digest: i.Digest, id: i.Summary.ID, summary: i.Summary, holders: map[string]tags{}}
			out[i.Digest] = c
		}
		c.holders[i.NodeID] = i.Summary.RepoTags
		for _, tag := range i.Summary.RepoTags {
			if ref, ok := v.Ref(tag); ok && ref.Digest != i.Digest && len(v.Holders(ref.Digest)) > 0 {
				continue
			}
			c.names = append(c.names, tag)
		}
		c.summary.RepoDigests = append(slices.Clone(c.summary.RepoDigests), i.Summary.RepoDigests...)
	}
	for _, ref := range refs(v) {
		if c := out[ref.Digest]; c != nil {
			c.names = append(c.names, ref.Name)
		}
	}
	for _, c := range out {
		slices.Sort(c.names)
		c.names = slices.Compact(c.names)
		slices.Sort(c.summary.RepoDigests)
		c.summary.RepoDigests = slices.Compact(c.summary.RepoDigests)
	}
	return out
}

// refs are the cluster-wide names of a view that can list them.
func refs(v catalog.View) []catalog.Ref {
	if l, ok := v.(interface{ Refs() []catalog.Ref }); ok {
		return l.Refs()
	}
	return nil
}

// resolveImage finds the image that a reference, an ID or a prefix of one means.
// Docker's "No such image" if none.
func resolveImage(v catalog.View, ref string) (*clusterImage, error) {
	all := clusterImages(v)
	if name, err := familiar(ref); err == nil {
		if r, ok := v.Ref(name); ok && all[r.Digest] != nil {
			return all[r.Digest], nil
		}
		for _, d := range slices.Sorted(maps.Keys(all)) {
			if slices.Contains(all[d].names, name) || slices.Contains(all[d].summary.RepoDigests, name) {
				return all[d], nil
			}
		}
		if _, d, ok := strings.Cut(name, "@"); ok && all[d] != nil && inRepositories(all[d], name) {
			return all[d], nil
		}
	}
	return byID(all, ref)
}

func inRepositories(c *clusterImage, name string) bool {
	repo, _, _ := strings.Cut(name, "@")
	return slices.ContainsFunc(c.names, func(n string) bool { return repository(n) == repo })
}

// repository strips the tag off a familiar reference without digest.
func repository(ref string) string {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}

// minIDPrefix is how many digits may stand for an image's ID.
const minIDPrefix = 4

func byID(all map[string]*clusterImage, ref string) (*clusterImage, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	var found *clusterImage
	for _, c := range all {
		if len(hex) < minIDPrefix || !strings.HasPrefix(strings.TrimPrefix(c.id, "sha256:"), hex) && c.digest != "sha256:"+hex {
			continue
		}
		// The same image may be held under several manifests.
		if found != nil && found.id != c.id {
			return nil, api.InvalidArgument("multiple IDs found with provided prefix: %s", ref)
		}
		if found == nil || c.digest < found.digest {
			found = c
		}
	}
	if found == nil {
		return nil, listing.NoSuchImage(ref)
	}
	return found, nil
}

// image finds an image, here and then in the whole cluster.
func (r *Router) image(ctx context.Context, ref string) (*clusterImage, error) {
	c, err := resolveImage(r.reader.View(), ref)
	if errdefs.IsNotFound(err) {
		r.sync(ctx, missSync)
		c, err = resolveImage(r.reader.View(), ref)
	}
	return c, err
}

// holders are the reachable nodes that hold an image, this one first.
func (r *Router) holders(ctx context.Context, c *clusterImage) ([]node, error) {
	var ns []catalog.Node
	for _, n := range r.alive(r.reader.View()) {
		if _, ok := c.holders[n.ID]; ok {
			ns = append(ns, n)
		}
	}
	if found := r.engines(ctx, ns); len(found) > 0 {
		return found, nil
	}
	var names []string
	for _, id := range slices.Sorted(maps.Keys(c.holders)) {
		names = append(names, r.nodeName(id))
	}
	return nil, api.Unavailable("image %s is held only by nodes that can't be reached: %s", c.name(), strings.Join(names, ", "))
}

// name is what to call an image in a message.
func (c *clusterImage) name() string {
	if len(c.names) > 0 {
		return c.names[0]
	}
	return c.id
}

// ofImage asks the holders of an image in turn until one answers.
func ofImage[T any](ctx context.Context, r *Router, ref string, ask func(n node, c *clusterImage) (T, error)) (T, error) {
	var none T
	c, err := r.image(ctx, ref)
	if err != nil {
		return none, err
	}
	nodes, err := r.holders(ctx, c)
	if err != nil {
		return none, err
	}
	var errs []error
	for _, n := range nodes {
		out, err := ask(n, c)
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
		if !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
			return none, err
		}
	}
	if ctx.Err() == nil && !slices.ContainsFunc(errs, errdefs.IsUnavailable) {
		return none, listing.NoSuchImage(ref)
	}
	return none, errors.Join(errs...)
}

// fetch makes a node hold an image under a name, from its peers; of a node that starts
// containers early, so much of it that it can.
func fetch(ctx context.Context, e api.Engine, name, digest string, p api.Platform) error {
	s, err := e.PullImage(ctx, api.PullOptions{Ref: name, Digest: digest, Platform: p, Early: true})
	if err != nil {
		return err
	}
	for line, err := range api.All(s) {
		if err != nil {
			return err
		}
		if line.Error != nil {
			return api.Internal("%s", line.Error.Message)
		}
	}
	return nil
}

// pullName is a name that a node can fetch an image by: the one asked for, or any
// other, or for one without names a reference by its digest.
func (c *clusterImage) pullName(asked string) string {
	if name, err := familiar(asked); err == nil && slices.Contains(c.names, name) {
		return name
	}
	if len(c.names) > 0 {
		return c.names[0]
	}
	for _, d := range c.summary.RepoDigests {
		if strings.HasSuffix(d, "@"+c.digest) {
			return d
		}
	}
	return "untagged@" + c.digest
}
