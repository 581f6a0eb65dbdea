package apitest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// ListImages implements api.Images.
func (f *Fake) ListImages(ctx context.Context, o api.ImageListOptions) ([]image.Summary, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, _ := f.imageSpace()
	if !o.SharedSize {
		for i := range all {
			all[i].SharedSize = -1
		}
	}
	found, err := listing.Images(all, o, time.Now())
	if err != nil {
		return nil, err
	}
	return found, ctx.Err()
}

// InspectImage implements api.Images.
func (f *Fake) InspectImage(ctx context.Context, ref string, _ api.ImageInspectOptions) (image.InspectResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findImage(ref)
	if err != nil {
		return image.InspectResponse{}, err
	}
	out := image.InspectResponse{
		ID: i.id.String(), RepoTags: f.tagsOf(i), RepoDigests: []string{}, Architecture: i.config.Architecture,
		Os: i.config.OS, Variant: i.config.Variant, Author: i.config.Author, Size: i.size,
		RootFS: image.RootFS{Type: i.config.RootFS.Type},
	}
	// The rest of the configuration is the same JSON in both types.
	var full struct{ Config json.RawMessage }
	if err := json.Unmarshal(i.raw, &full); err != nil {
		return image.InspectResponse{}, fmt.Errorf("read config: %w", err)
	}
	if err := json.Unmarshal(full.Config, &out.Config); err != nil {
		return image.InspectResponse{}, fmt.Errorf("read config: %w", err)
	}
	if i.config.Created != nil {
		out.Created = i.config.Created.Format(time.RFC3339Nano)
	}
	for _, d := range i.config.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, d.String())
	}
	return out, ctx.Err()
}

// ImageHistory implements api.Images.
func (f *Fake) ImageHistory(ctx context.Context, ref string, _ api.Platform) ([]image.HistoryResponseItem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findImage(ref)
	if err != nil {
		return nil, err
	}
	out := []image.HistoryResponseItem{}
	layer := len(i.layers)
	for _, h := range slices.Backward(i.config.History) {
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer > 0 {
			layer--
			item.Size = int64(len(i.layers[layer]))
		}
		if len(out) == 0 {
			item.ID, item.Tags = i.id.String(), f.tagsOf(i)
		}
		out = append(out, item)
	}
	return out, ctx.Err()
}

// TagImage implements api.Images.
func (f *Fake) TagImage(ctx context.Context, source, target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findImage(source)
	if err != nil {
		return err
	}
	full, err := fullRef(target)
	if err != nil {
		return err
	}
	f.tags[full] = i.id
	f.emit(events.ImageEventType, events.ActionTag, i.id.String(), map[string]string{"name": familiar(full)})
	return ctx.Err()
}

// RemoveImage implements api.Images.
func (f *Fake) RemoveImage(ctx context.Context, ref string, o api.ImageRemoveOptions) ([]image.DeleteResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findImage(ref)
	if err != nil {
		return nil, err
	}
	full, _ := fullRef(ref) // an ID that is no reference has no tag either
	byTag := f.tags[full] != ""
	short := i.id.Encoded()[:12]
	tags := f.tagsOf(i)
	if byTag && len(tags) > 1 {
		return f.untag(i, full), nil
	}
	if !byTag && len(tags) > 1 && !o.Force {
		return nil, api.Conflict("conflict: unable to delete %s (must be forced) - "+
			"image is referenced in multiple repositories", short)
	}
	for _, c := range f.containers {
		switch {
		case c.image != i.id:
		case c.running():
			return nil, api.Conflict("conflict: unable to delete %s (cannot be forced) - "+
				"image is being used by running container %s", short, c.id[:12])
		case !o.Force:
			return nil, api.Conflict("conflict: unable to delete %s (must be forced) - "+
				"image is being used by stopped container %s", short, c.id[:12])
		}
	}
	var done []image.DeleteResponse
	for full, id := range maps.Clone(f.tags) {
		if id == i.id {
			done = append(done, f.untag(i, full)...)
		}
	}
	delete(f.images, i.id)
	f.emit(events.ImageEventType, events.ActionDelete, i.id.String(), map[string]string{"name": i.id.String()})
	return append(done, image.DeleteResponse{Deleted: i.id.String()}), nil
}

func (f *Fake) untag(i *fakeImage, full string) []image.DeleteResponse {
	delete(f.tags, full)
	f.emit(events.ImageEventType, events.ActionUnTag, i.id.String(), map[string]string{"name": familiar(full)})
	return []image.DeleteResponse{{Untagged: familiar(full)}}
}

// PruneImages implements api.Images.
func (f *Fake) PruneImages(ctx context.Context, filters api.Filters) (report api.PruneImagesReport, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var unused []image.Summary
	for _, i := range f.images {
		if s := f.imageSummary(i); s.Containers == 0 {
			unused = append(unused, s)
		}
	}
	found, err := listing.PrunableImages(unused, filters, time.Now())
	if err != nil {
		return report, err
	}
	for _, s := range found {
		i := f.images[digest.Digest(s.ID)]
		for _, t := range s.RepoTags {
			full, _ := fullRef(t) // it was one already
			f.untag(i, full)
			report.Deleted = append(report.Deleted, api.ImageDeletion{Untagged: t})
		}
		delete(f.images, i.id)
		report.Deleted = append(report.Deleted, api.ImageDeletion{Deleted: s.ID})
		report.Reclaimed += uint64(s.Size)
	}
	return report, ctx.Err()
}

// said is a finished stream of progress.
func said(ctx context.Context, lines ...api.Progress) api.Stream[api.Progress] {
	s, send, finish := api.Pipe[api.Progress](ctx)
	go func() {
		for _, l := range lines {
			if err := send(l); err != nil {
				finish(err)
				return
			}
		}
		finish(nil)
	}()
	return s
}

// add holds an image under names. The lock is held.
func (f *Fake) add(i *fakeImage, tags []string) error {
	for _, t := range tags {
		full, err := fullRef(t)
		if err != nil {
			return err
		}
		f.tags[full] = i.id
	}
	f.images[i.id] = i
	return nil
}

// PullImage implements api.Archives.
func (f *Fake) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	full, err := fullRef(o.Ref)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	archive, ok := f.remote[full]
	if i := f.images[digest.Digest(o.Known)]; !ok && i != nil {
		return f.keep(ctx, i, full)
	}
	if !ok {
		return nil, api.NotFound("pull access denied for %s, repository does not exist or may require 'docker login'",
			strings.Split(familiar(full), ":")[0])
	}
	images, err := readArchive(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	if o.Digest != "" && images[0].id.String() != o.Digest {
		return nil, api.NotFound("manifest for %s@%s not found", familiar(full), o.Digest)
	}
	if err := f.add(images[0].fakeImage, []string{full}); err != nil {
		return nil, err
	}
	f.emit(events.ImageEventType, events.ActionPull, familiar(full), map[string]string{"name": familiar(full)})
	return said(ctx, api.Progress{Status: "Pulling from " + familiar(full), ID: "latest"},
		api.Progress{Status: "Digest: " + images[0].id.String()},
		api.Progress{Status: "Status: Downloaded newer image for " + familiar(full)}), nil
}

// keep answers a pull with an image that is here. The lock is held.
func (f *Fake) keep(ctx context.Context, i *fakeImage, full string) (api.Stream[api.Progress], error) {
	if err := f.add(i, []string{full}); err != nil {
		return nil, err
	}
	return said(ctx, api.Progress{Status: "Digest: " + i.id.String()},
		api.Progress{Status: "Status: Image is up to date for " + familiar(full)}), nil
}

// PushImage implements api.Archives: what was pushed can be pulled.
func (f *Fake) PushImage(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	named, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, api.InvalidArgument("invalid reference format: %q", o.Ref)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, api.InvalidArgument("cannot push a digest reference")
	}
	f.mu.Lock()
	tags := map[string]digest.Digest{} // what they mean, by full reference
	for full, id := range f.tags {
		if n, err := reference.ParseNormalizedNamed(full); err == nil &&
			(full == named.String() || reference.IsNameOnly(named) && n.Name() == named.Name()) {
			tags[full] = id
		}
	}
	f.mu.Unlock()
	if len(tags) == 0 {
		return nil, api.NotFound("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	lines := []api.Progress{{Status: "The push refers to repository [" + named.Name() + "]"}}
	for _, full := range slices.Sorted(maps.Keys(tags)) {
		more, err := f.push(ctx, full, tags[full])
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	return said(ctx, lines...), nil
}

func (f *Fake) push(ctx context.Context, full string, id digest.Digest) ([]api.Progress, error) {
	r, err := f.SaveImages(ctx, []string{full}, api.Platform{})
	if err != nil {
		return nil, err
	}
	archive, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if err := f.Serve(full, archive); err != nil {
		return nil, err
	}
	tag := full[strings.LastIndexByte(full, ':')+1:]
	raw, err := json.Marshal(api.PushResult{Tag: tag, Digest: id.String(), Size: len(archive)})
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	aux := json.RawMessage(raw)
	return []api.Progress{
		{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, id, len(archive))}, {Aux: &aux},
	}, nil
}

// Login implements api.Registries: who has a password is let in.
func (f *Fake) Login(ctx context.Context, a registry.AuthConfig) (registry.AuthResponse, error) {
	if a.Username == "" || a.Password == "" {
		return registry.AuthResponse{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: incorrect username or password")
	}
	return registry.AuthResponse{Status: "Login Succeeded"}, ctx.Err()
}

// InspectDistribution implements api.Registries, about what Serve or a push brought.
func (f *Fake) InspectDistribution(ctx context.Context, ref string, _ registry.AuthConfig) (registry.DistributionInspect, error) {
	var out registry.DistributionInspect
	full, err := fullRef(ref)
	if err != nil {
		return out, err
	}
	f.mu.Lock()
	archive, ok := f.remote[full]
	f.mu.Unlock()
	if !ok {
		return out, api.NotFound("manifest for %s not found: manifest unknown: manifest unknown", familiar(full))
	}
	images, err := readArchive(bytes.NewReader(archive))
	if err != nil {
		return out, err
	}
	out.Descriptor = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: images[0].id, Size: int64(len(archive))}
	out.Platforms = []ocispec.Platform{images[0].config.Platform}
	return out, ctx.Err()
}

// LoadImages implements api.Archives.
func (f *Fake) LoadImages(ctx context.Context, archive io.Reader, _ api.LoadOptions) (api.Stream[api.Progress], error) {
	images, err := readArchive(archive)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []api.Progress
	for _, i := range images {
		if err := f.add(i.fakeImage, i.tags); err != nil {
			return nil, err
		}
		for _, t := range i.tags {
			lines = append(lines, api.Progress{Stream: "Loaded image: " + t + "\n"})
		}
		if len(i.tags) == 0 {
			lines = append(lines, api.Progress{Stream: "Loaded image ID: " + i.id.String() + "\n"})
		}
		f.emit(events.ImageEventType, events.ActionLoad, i.id.String(), map[string]string{"name": i.id.String()})
	}
	return said(ctx, lines...), nil
}

// ImportImage implements api.Archives.
func (f *Fake) ImportImage(ctx context.Context, root io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error) {
	layer, err := io.ReadAll(io.LimitReader(root, maxArchive))
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	now := time.Now().UTC()
	c := ocispec.Image{
		Created: &now, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
		History: []ocispec.History{{Created: &now, Comment: o.Message}},
	}
	for _, change := range o.Changes {
		if err := apply(&c.Config, change); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	i, err := newImage(raw, [][]byte{layer})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var tags []string
	if o.Ref != "" {
		tags = []string{o.Ref}
	}
	if err := f.add(i, tags); err != nil {
		return nil, err
	}
	f.emit(events.ImageEventType, events.ActionImport, i.id.String(), map[string]string{"name": i.id.String()})
	return said(ctx, api.Progress{Status: i.id.String()}), nil
}

// apply is a Dockerfile instruction, of the few that the suite uses.
func apply(c *ocispec.ImageConfig, change string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
	k, v, _ := strings.Cut(rest, "=")
	switch strings.ToUpper(word) {
	case "CMD":
		if json.Unmarshal([]byte(rest), &c.Cmd) != nil {
			c.Cmd = []string{"/bin/sh", "-c", rest}
		}
	case "ENV":
		c.Env = append(c.Env, k+"="+v)
	case "LABEL":
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = v
	default:
		return api.InvalidArgument("%s is not a valid change command", word)
	}
	return nil
}

// SaveImages implements api.Archives.
func (f *Fake) SaveImages(ctx context.Context, refs []string, _ api.Platform) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	type entry struct {
		Config           string
		RepoTags, Layers []string
	}
	var manifest []entry
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	put := func(name string, body []byte) {
		// A buffer takes all there is room for.
		_ = t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
		_, _ = t.Write(body)
	}
	for _, ref := range refs {
		i, err := f.findImage(ref)
		if err != nil {
			return nil, err
		}
		e := entry{Config: i.id.Encoded() + ".json"}
		if full, err := fullRef(ref); err == nil && f.tags[full] == i.id {
			e.RepoTags = []string{familiar(full)}
		}
		put(e.Config, i.raw)
		for _, l := range i.layers {
			name := digest.FromBytes(l).Encoded() + "/layer.tar"
			put(name, l)
			e.Layers = append(e.Layers, name)
		}
		manifest = append(manifest, e)
	}
	m, err := json.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	put("manifest.json", m)
	if err := t.Close(); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return io.NopCloser(&b), ctx.Err()
}
