package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// ListImages implements api.Images: what all nodes hold, each image once.
func (r *Router) ListImages(ctx context.Context, o api.ImageListOptions) ([]image.Summary, error) {
	r.sync(ctx, listSync)
	v := r.reader.View()
	used := map[string]int64{}
	for _, c := range v.Containers() {
		used[c.Summary.ImageID]++
	}
	byID := map[string]*image.Summary{}
	for _, c := range clusterImages(v) {
		s := c.summary
		s.RepoTags, s.Containers = c.names, used[c.id]
		if s.RepoTags == nil {
			s.RepoTags = []string{}
		}
		if have := byID[s.ID]; have != nil {
			have.RepoTags = merged(have.RepoTags, s.RepoTags)
			have.RepoDigests = merged(have.RepoDigests, s.RepoDigests)
			continue
		}
		byID[s.ID] = &s
	}
	all := make([]image.Summary, 0, len(byID))
	for _, s := range byID {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b image.Summary) int { return strings.Compare(a.ID, b.ID) })
	found, err := listing.Images(all, o, time.Now())
	if err != nil || !o.SharedSize {
		return found, err
	}
	return found, r.fillShared(ctx, found)
}

// fillShared asks the nodes how much of images other images have as well, of which the
// largest answer counts: a copy may stand alone.
func (r *Router) fillShared(ctx context.Context, shown []image.Summary) error {
	var mu sync.Mutex
	sizes := map[string]int64{}
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.ListImages(ctx, api.ImageListOptions{All: true, SharedSize: true})
		mu.Lock()
		defer mu.Unlock()
		for _, s := range part {
			sizes[s.ID] = max(sizes[s.ID], s.SharedSize)
		}
		return err
	})
	for i := range shown {
		if size, ok := sizes[shown[i].ID]; ok {
			shown[i].SharedSize = size
		}
	}
	return err
}

func merged(a, b []string) []string {
	all := append(slices.Clone(a), b...)
	slices.Sort(all)
	return slices.Compact(all)
}

// InspectImage implements api.Images.
func (r *Router) InspectImage(ctx context.Context, ref string, o api.ImageInspectOptions) (image.InspectResponse, error) {
	return ofImage(ctx, r, ref, func(n node, c *clusterImage) (image.InspectResponse, error) {
		i, err := n.InspectImage(ctx, c.id, o)
		if err == nil {
			i.RepoTags = slices.Clone(c.names)
			if i.RepoTags == nil {
				i.RepoTags = []string{}
			}
		}
		return i, err
	})
}

// ImageHistory implements api.Images.
func (r *Router) ImageHistory(ctx context.Context, ref string, p api.Platform) ([]image.HistoryResponseItem, error) {
	return ofImage(ctx, r, ref, func(n node, c *clusterImage) ([]image.HistoryResponseItem, error) {
		items, err := n.ImageHistory(ctx, c.id, p)
		if err == nil && len(items) > 0 {
			items[0].Tags = slices.Clone(c.names)
		}
		return items, err
	})
}

// TagImage implements api.Images: the name means the image in the whole cluster, and
// every node that holds it learns the name.
func (r *Router) TagImage(ctx context.Context, source, target string) error {
	name, err := familiar(target)
	if err != nil {
		return err
	}
	if strings.Contains(name, "@") {
		return api.InvalidArgument("refusing to create a tag with a digest reference")
	}
	c, err := r.image(ctx, source)
	if err != nil {
		return err
	}
	nodes, err := r.holders(ctx, c)
	if err != nil {
		return err
	}
	if err := together(nodes, func(n node) error { return n.TagImage(ctx, c.id, name) }); err != nil {
		return err
	}
	_, err = r.store.Propose(ctx, catalog.SetRef{Ref: catalog.Ref{Name: name, Digest: c.digest}})
	return err
}

// together calls several nodes at once. Nodes that lack the thing or went away are
// left out, unless all do.
func together(nodes []node, do func(node) error) error {
	errs := make([]error, len(nodes))
	var tasks sync.WaitGroup
	for i, n := range nodes {
		tasks.Go(func() { errs[i] = do(n) })
	}
	tasks.Wait()
	var hard []error
	done := 0
	for _, err := range errs {
		switch {
		case err == nil:
			done++
		case !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err):
			hard = append(hard, err)
		}
	}
	if len(hard) > 0 {
		return hard[0] // the nodes say the same thing, or nearly
	}
	if done == 0 {
		return errors.Join(errs...)
	}
	return nil
}

// RemoveImage implements api.Images, on all nodes that hold the image.
func (r *Router) RemoveImage(ctx context.Context, ref string, o api.ImageRemoveOptions) ([]image.DeleteResponse, error) {
	r.sync(ctx, missSync) // containers decide what may go
	c, err := r.image(ctx, ref)
	if err != nil {
		return nil, err
	}
	nodes, err := r.holders(ctx, c)
	if err != nil {
		return nil, err
	}
	name, _ := familiar(ref) // an ID that is no reference is no name either
	byTag := slices.Contains(c.names, name)
	gone := c.names
	what := c.id
	if byTag {
		gone, what = []string{name}, name
	}
	if !byTag || len(c.names) == 1 {
		if err := r.unused(c, byTag, o.Force); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	var out []image.DeleteResponse
	err = together(nodes, func(n node) error {
		part, err := n.RemoveImage(ctx, what, o)
		mu.Lock()
		defer mu.Unlock()
		for _, d := range part {
			if !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, g := range gone {
		if _, err := r.store.Propose(ctx, catalog.DropRef{Name: g, Digest: c.digest}); err != nil {
			return out, err
		}
	}
	r.await(ctx, settle, func(v catalog.View) bool {
		now := clusterImages(v)[c.digest]
		return now == nil || byTag && !slices.Contains(now.names, name)
	})
	return out, nil
}

// unused refuses in Docker's words to delete an image that a container anywhere
// stands on, or that has several names.
func (r *Router) unused(c *clusterImage, byTag, force bool) error {
	short := shortID(c.id)
	if !byTag && len(c.names) > 1 && !force {
		return api.Conflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
	}
	for _, x := range r.reader.View().Containers() {
		switch {
		case x.Summary.ImageID != c.id:
		case catalog.Live(x.State):
			return api.Conflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, shortID(x.ID))
		case !force:
			return api.Conflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, shortID(x.ID))
		}
	}
	return nil
}

// shortID is the twelve digits that Docker shows of an ID.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// PruneImages implements api.Images: every reachable node prunes its own. An image that
// stays on another node is neither untagged nor deleted, though a copy of it went.
func (r *Router) PruneImages(ctx context.Context, f api.Filters) (api.PruneImagesReport, error) {
	r.sync(ctx, listSync)
	before := clusterImages(r.reader.View())
	var mu sync.Mutex
	var report api.PruneImagesReport
	var all []api.ImageDeletion
	lost := map[string]map[string]bool{} // by image ID: the nodes that deleted it
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.PruneImages(ctx, f)
		mu.Lock()
		defer mu.Unlock()
		for _, d := range part.Deleted {
			if lost[d.Deleted] == nil {
				lost[d.Deleted] = map[string]bool{}
			}
			lost[d.Deleted][n.ID] = true
			if !slices.Contains(all, d) {
				all = append(all, d)
			}
		}
		report.Reclaimed += part.Reclaimed
		return err
	})
	stays := map[string]bool{} // IDs and names
	for _, c := range before {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(c.holders)), func(node string) bool { return !lost[c.id][node] }) {
			err = errors.Join(err, r.dropRefs(ctx, c))
			continue
		}
		for _, s := range slices.Concat([]string{c.id}, c.names, c.summary.RepoDigests) {
			stays[s] = true
		}
	}
	for _, d := range all {
		if !stays[d.Deleted] && !stays[d.Untagged] {
			report.Deleted = append(report.Deleted, d)
		}
	}
	r.await(ctx, settle, func(v catalog.View) bool {
		return !slices.ContainsFunc(v.Images(), func(i catalog.Image) bool { return lost[i.Summary.ID][i.NodeID] })
	})
	return report, err
}

// dropRefs forgets the names of an image that is gone.
func (r *Router) dropRefs(ctx context.Context, c *clusterImage) error {
	for _, name := range c.names {
		if _, err := r.store.Propose(ctx, catalog.DropRef{Name: name, Digest: c.digest}); err != nil {
			return err
		}
	}
	return nil
}
