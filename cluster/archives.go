package cluster

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// publishWithin bounds how long a load or pull waits at its end for the catalog to
// show what it brought.
const publishWithin = 5 * time.Second

// PullImage implements api.Archives: this node does it, and what the name means there
// afterwards it means in the whole cluster. The registry decides; where it can't, the
// name goes on meaning what the cluster means by it.
func (r *Router) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	name, err := familiar(o.Ref)
	if err != nil {
		return nil, err
	}
	if o.Digest == "" && o.Known == "" {
		c, err := r.image(ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if err == nil {
			o.Known = c.digest
		}
		err = r.mayPull(name, c)
		if errdefs.IsPermissionDenied(err) && r.synced(ctx, missSync) == nil { // it may have become public
			err = r.mayPull(name, c)
		}
		if err != nil {
			return nil, err
		}
	}
	s, err := e.PullImage(ctx, o)
	if err != nil {
		return nil, err
	}
	return r.publishing(ctx, e, s, name), nil
}

// PushImage implements api.Archives: from a node that holds the image by that name,
// this one if it does; else this one fetches it first.
func (r *Router) PushImage(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	named, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, api.InvalidArgument("invalid reference format")
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, api.InvalidArgument("cannot push a digest reference")
	}
	tags, err := r.tagsOf(ctx, named)
	if err != nil {
		return nil, err
	}
	if len(tags) == 1 {
		o.Ref = tags[0]
		return r.pushTag(ctx, o)
	}
	out, send, finish := api.Pipe[api.Progress](ctx)
	go func() { finish(r.pushTags(ctx, o, tags, send)) }()
	return out, nil
}

// tagsOf are the cluster's names that are to be pushed; never none.
func (r *Router) tagsOf(ctx context.Context, named reference.Named) ([]string, error) {
	r.sync(ctx, listSync)
	want := reference.FamiliarString(named)
	if !reference.IsNameOnly(named) {
		return []string{want}, nil
	}
	var tags []string
	for _, c := range clusterImages(r.reader.View()) {
		for _, name := range c.names {
			if repository(name) == want {
				tags = append(tags, name)
			}
		}
	}
	if len(tags) == 0 {
		return nil, api.NotFound("An image does not exist locally with the tag: %s", want)
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// pushTags pushes one tag after the other into one stream.
func (r *Router) pushTags(ctx context.Context, o api.PushOptions, tags []string, send func(api.Progress) error) error {
	for _, tag := range tags {
		o.Ref = tag
		s, err := r.pushTag(ctx, o)
		if err != nil {
			return err
		}
		for line, err := range api.All(s) {
			if err == nil {
				err = send(line)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Router) pushTag(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	c, err := r.image(ctx, o.Ref)
	if errdefs.IsNotFound(err) {
		return nil, api.NotFound("An image does not exist locally with the tag: %s", repository(o.Ref))
	}
	if err != nil {
		return nil, err
	}
	nodes, err := r.holders(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if slices.Contains(c.holders[n.ID], o.Ref) {
			return n.PushImage(ctx, o)
		}
	}
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	if err := fetch(ctx, e, o.Ref, c.digest, o.Platform); err != nil {
		return nil, err
	}
	return e.PushImage(ctx, o)
}

// Login implements api.Registries, from this node.
func (r *Router) Login(ctx context.Context, a registry.AuthConfig) (registry.AuthResponse, error) {
	e, err := r.local(ctx)
	if err != nil {
		return registry.AuthResponse{}, err
	}
	return e.Login(ctx, a)
}

// InspectDistribution implements api.Registries, from this node.
func (r *Router) InspectDistribution(ctx context.Context, ref string, a registry.AuthConfig) (registry.DistributionInspect, error) {
	e, err := r.local(ctx)
	if err != nil {
		return registry.DistributionInspect{}, err
	}
	return e.InspectDistribution(ctx, ref, a)
}

// LoadImages implements api.Archives: into this node, for the whole cluster.
func (r *Router) LoadImages(ctx context.Context, archive io.Reader, o api.LoadOptions) (api.Stream[api.Progress], error) {
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	s, err := e.LoadImages(ctx, archive, o)
	if err != nil {
		return nil, err
	}
	return r.publishing(ctx, e, s, ""), nil
}

// ImportImage implements api.Archives: into this node, for the whole cluster.
func (r *Router) ImportImage(ctx context.Context, tar io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error) {
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	name := ""
	if o.Ref != "" {
		if name, err = familiar(o.Ref); err != nil {
			return nil, err
		}
	}
	s, err := e.ImportImage(ctx, tar, o)
	if err != nil {
		return nil, err
	}
	return r.publishing(ctx, e, s, name), nil
}

// publishing passes a progress stream on and, before its end, makes what came in
// known to the cluster: name if it isn't empty, and whatever the stream says it loaded.
func (r *Router) publishing(ctx context.Context, e api.Engine, s api.Stream[api.Progress], name string) api.Stream[api.Progress] {
	p := &publishing{Stream: s, publish: func(names []string) error { return r.publish(ctx, e, names) }}
	if name != "" {
		p.names = []string{name}
	}
	return p
}

type publishing struct {
	api.Stream[api.Progress]
	names   []string
	publish func(names []string) error
	ended   bool
}

// How Docker says what an archive held.
const (
	loadedName = "Loaded image: "
	loadedID   = "Loaded image ID: "
)

func (p *publishing) Recv() (api.Progress, error) {
	line, err := p.Stream.Recv()
	if line.Error != nil {
		p.ended = true // nothing to publish
	}
	for said := range strings.Lines(line.Stream) {
		for _, prefix := range []string{loadedName, loadedID} {
			if n, ok := strings.CutPrefix(strings.TrimSpace(said), prefix); ok {
				p.names = append(p.names, n)
			}
		}
	}
	if !errors.Is(err, io.EOF) || p.ended {
		return line, err
	}
	p.ended = true
	if failed := p.publish(p.names); failed != nil {
		return line, failed
	}
	return line, err
}

// publish makes names mean what they mean on this node, and returns once the catalog
// shows that this node holds it.
func (r *Router) publish(ctx context.Context, e api.Engine, names []string) error {
	for _, name := range names {
		d, err := localDigest(ctx, e, name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(name, "sha256:") || strings.Contains(name, "@") {
			r.awaitHeld(ctx, d, "")
			continue
		}
		if name, err = familiar(name); err != nil {
			return err
		}
		if _, err := r.store.Propose(ctx, catalog.SetRef{Ref: catalog.Ref{Name: name, Digest: d}}); err != nil {
			return err
		}
		r.awaitHeld(ctx, d, name)
	}
	return nil
}

func (r *Router) awaitHeld(ctx context.Context, digest, name string) {
	held := r.await(ctx, publishWithin, func(v catalog.View) bool {
		for _, n := range v.Holders(digest) {
			if n.ID == r.self {
				return true
			}
		}
		return false
	})
	if !held {
		r.log.Warn("the catalog doesn't show yet that this node holds an image", "image", name, "digest", digest)
	}
}

// localDigest is what a name means on a node.
func localDigest(ctx context.Context, e api.Engine, name string) (string, error) {
	i, err := e.InspectImage(ctx, name, api.ImageInspectOptions{})
	if err != nil {
		return "", err
	}
	if i.Descriptor != nil {
		return i.Descriptor.Digest.String(), nil
	}
	return i.ID, nil
}

// SaveImages implements api.Archives: from a node that holds all the images, or from
// this one after it fetched what it lacks.
func (r *Router) SaveImages(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error) {
	images := make([]*clusterImage, len(refs))
	for i, ref := range refs {
		c, err := r.image(ctx, ref)
		if err != nil {
			return nil, err
		}
		if err := r.may(r.self, c); err != nil {
			return nil, err // the archive would be on this node
		}
		images[i] = c
	}
	for _, n := range r.alive(r.reader.View()) {
		if !holdsAll(n.ID, images, refs) {
			continue
		}
		if e, err := r.peer(ctx, n.ID); err == nil {
			return e.SaveImages(ctx, refs, p)
		}
	}
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	for i, c := range images {
		if err := fetch(ctx, e, c.pullName(refs[i]), c.digest, p); err != nil {
			return nil, err
		}
	}
	return e.SaveImages(ctx, refs, p)
}

// holdsAll says whether a node holds all images, by the names asked for.
func holdsAll(node string, images []*clusterImage, refs []string) bool {
	for i, c := range images {
		tags, ok := c.holders[node]
		if !ok || !tags.knows(refs[i]) {
			return false
		}
	}
	return true
}
