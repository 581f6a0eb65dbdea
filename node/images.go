package node

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	nodeimage "github.com/shoal-engine/shoal/node/image"
)

// ListImages implements api.Images.
func (n *Node) ListImages(ctx context.Context, o api.ImageListOptions) ([]image.Summary, error) {
	summaries := n.imageSummaries
	if o.SharedSize {
		summaries = func(ctx context.Context) ([]image.Summary, error) {
			all, _, err := n.imageSpace(ctx)
			return all, err
		}
	}
	all, err := summaries(ctx)
	if err != nil {
		return nil, err
	}
	return listing.Images(all, o, time.Now())
}

func (n *Node) imageSummaries(ctx context.Context) ([]image.Summary, error) {
	if err := n.up(ctx); err != nil {
		return nil, err
	}
	images, err := n.images.List(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(images, func(a, b nodeimage.Image) int { return b.Created.Compare(a.Created) })
	all := make([]image.Summary, 0, len(images))
	for _, i := range images {
		target := i.Target
		s := image.Summary{
			ID: i.ID.String(), Created: i.Created.Unix(), Labels: i.Config.Labels, Size: i.Size,
			RepoTags: orEmpty(i.Tags), RepoDigests: orEmpty(i.Digests), SharedSize: -1,
			Containers: int64(len(n.users(i.ID))),
		}
		if i.Created.IsZero() {
			s.Created = 0
		}
		if target.Digest != "" {
			s.Descriptor = &target
		}
		all = append(all, s)
	}
	return all, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return slices.Clone(s)
}

// users are the containers of an image, in no order.
func (n *Node) users(id digest.Digest) []record {
	var all []record
	for _, c := range n.index.all() {
		if r := c.get(); r.Image == id {
			all = append(all, r)
		}
	}
	return all
}

// shortUsers names the containers of an image by their short IDs, those that run
// first: they are what a refusal to remove the image is about.
func (n *Node) shortUsers(id digest.Digest) []string {
	all := n.users(id)
	slices.SortFunc(all, func(a, b record) int {
		if a.State.active() != b.State.active() {
			if a.State.active() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	short := make([]string, len(all))
	for i, r := range all {
		short[i] = r.ID[:12]
	}
	return short
}

// InspectImage implements api.Images.
func (n *Node) InspectImage(ctx context.Context, ref string, o api.ImageInspectOptions) (image.InspectResponse, error) {
	i, err := n.images.Get(ctx, ref)
	if err != nil {
		return image.InspectResponse{}, err
	}
	if p := o.Platform; p.Architecture != "" && p.Architecture != i.Platform.Architecture || p.OS != "" && p.OS != i.Platform.OS {
		return image.InspectResponse{}, api.NotFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			ref, platformText(i.Platform.OS, i.Platform.Architecture, i.Platform.Variant), platformText(p.OS, p.Architecture, p.Variant))
	}
	config, target := i.Config, i.Target
	r := image.InspectResponse{
		ID: i.ID.String(), RepoTags: orEmpty(i.Tags), RepoDigests: orEmpty(i.Digests),
		Comment: i.Comment, Author: i.Author, Config: &config,
		Architecture: i.Platform.Architecture, Variant: i.Platform.Variant, Os: i.Platform.OS, OsVersion: i.Platform.OSVersion,
		Size: i.Size, GraphDriver: &storage.DriverData{Name: storageDriver},
		RootFS:   image.RootFS{Type: "layers"},
		Metadata: image.Metadata{LastTagTime: i.Updated},
	}
	if !i.Created.IsZero() {
		r.Created = stamp(i.Created)
	}
	for _, d := range i.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, d.String())
	}
	if target.Digest != "" {
		r.Descriptor = &target
	}
	return r, nil
}

// ImageHistory implements api.Images.
func (n *Node) ImageHistory(ctx context.Context, ref string, _ api.Platform) ([]image.HistoryResponseItem, error) {
	return n.images.History(ctx, ref)
}

// TagImage implements api.Images.
func (n *Node) TagImage(ctx context.Context, source, target string) error {
	return n.images.Tag(ctx, source, target)
}

// RemoveImage implements api.Images.
func (n *Node) RemoveImage(ctx context.Context, ref string, o api.ImageRemoveOptions) ([]image.DeleteResponse, error) {
	if err := n.up(ctx); err != nil { // who needs the image is known only then
		return nil, err
	}
	return n.images.Remove(ctx, ref, o, n.shortUsers)
}

// PruneImages implements api.Images.
func (n *Node) PruneImages(ctx context.Context, f api.Filters) (api.PruneImagesReport, error) {
	var report api.PruneImagesReport
	all, sizes, _, err := n.imageLayers(ctx)
	if err != nil {
		return report, err
	}
	which, err := listing.PrunableImages(all, f, time.Now())
	if err != nil {
		return report, err
	}
	for _, s := range which {
		if s.Containers > 0 {
			continue
		}
		refs := s.RepoTags
		if len(refs) == 0 {
			refs = []string{s.ID}
		}
		for _, ref := range refs {
			deleted, err := n.images.Remove(ctx, ref, api.ImageRemoveOptions{}, n.shortUsers)
			if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
				continue // it is in use, or went with another
			}
			if err != nil {
				return report, err
			}
			for _, d := range deleted {
				report.Deleted = append(report.Deleted, api.ImageDeletion{Untagged: d.Untagged, Deleted: d.Deleted})
				report.Reclaimed += uint64(max(0, sizes[d.Deleted])) // of layers; images are small
			}
		}
	}
	n.journal.add(events.ImageEventType, events.ActionPrune, "", map[string]string{"reclaimed": decimal(report.Reclaimed)})
	return report, nil
}

// imageChanged records what happened to an image.
func (n *Node) imageChanged(action, id, name string) {
	a := map[string]string{}
	if name != "" {
		a["name"] = name
	}
	if (action == string(events.ActionPull) || action == string(events.ActionPush)) && name != "" {
		id = name // Docker names an image that came or went by its reference
	}
	n.journal.add(events.ImageEventType, events.Action(action), id, a)
}

// PullImage implements api.Archives.
func (n *Node) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	return n.images.Pull(ctx, o)
}

// PushImage implements api.Archives.
func (n *Node) PushImage(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	return n.images.Push(ctx, o)
}

// Login implements api.Registries.
func (n *Node) Login(ctx context.Context, a registry.AuthConfig) (registry.AuthResponse, error) {
	return n.images.Login(ctx, a)
}

// InspectDistribution implements api.Registries.
func (n *Node) InspectDistribution(ctx context.Context, ref string, a registry.AuthConfig) (registry.DistributionInspect, error) {
	return n.images.Distribution(ctx, ref, a)
}

// LoadImages implements api.Archives.
func (n *Node) LoadImages(ctx context.Context, archive io.Reader, o api.LoadOptions) (api.Stream[api.Progress], error) {
	return n.images.Load(ctx, archive, o)
}

// ImportImage implements api.Archives.
func (n *Node) ImportImage(ctx context.Context, tar io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error) {
	return n.images.Import(ctx, tar, o)
}

// SaveImages implements api.Archives.
func (n *Node) SaveImages(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error) {
	return n.images.Save(ctx, refs, p)
}
