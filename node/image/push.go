package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/auxprogress"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image/registry"
)

const (
	uploadsAtOnce = 3
	maxMounts     = 3 // repositories from which a blob may be mounted
)

// Push sends what a name means to its registry; a name without a tag stands for all
// tags of its repository. Blobs go as they are kept, so digests stay what they are.
func (s *Store) Push(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error) {
	named, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, api.InvalidArgument("%w", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, api.InvalidArgument("cannot push a digest reference")
	}
	tags := s.tagsToPush(named)
	if len(tags) == 0 {
		return nil, api.NotFound("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	if s.cfg.Registry == nil {
		return nil, api.Unavailable("this node reaches no registries")
	}
	return s.start(ctx, func(ctx context.Context, f *feed) error {
		p := &push{s: s, l: s.lease(), f: f, repo: s.cfg.Registry.Repository(named, o.Auth), p: o.Platform}
		defer p.l.release()
		f.status("", fmt.Sprintf("The push refers to repository [%s]", named.Name()))
		for _, tag := range tags {
			if err := p.run(ctx, tag); err != nil {
				return err
			}
		}
		return nil
	})
}

// tagsToPush are the tags that are here of what was asked for, sorted.
func (s *Store) tagsToPush(named reference.Named) []reference.NamedTagged {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []reference.NamedTagged
	for name := range s.names {
		n, err := reference.ParseNormalizedNamed(name)
		if t, ok := n.(reference.NamedTagged); err == nil && ok && n.Name() == named.Name() &&
			(reference.IsNameOnly(named) || t.String() == named.String()) {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b reference.NamedTagged) int { return strings.Compare(a.Tag(), b.Tag()) })
	return all
}

// push is one Push under way.
type push struct {
	s    *Store
	l    *lease
	f    *feed
	repo *registry.Repository
	p    api.Platform // zero: all there is
}

// parcel is what one tag means: blobs first, then the manifests that refer to them,
// the one that gets the tag last.
type parcel struct {
	layers    []ocispec.Descriptor
	configs   []ocispec.Descriptor
	manifests []manifestBody
	whole     *ocispec.Descriptor // the index that is pushed only in part
}

type manifestBody struct {
	ocispec.Descriptor
	body []byte
}

func (p *push) run(ctx context.Context, tag reference.NamedTagged) error {
	p.s.mu.Lock()
	target, id := p.s.names[tag.String()].Target, p.s.names[tag.String()].Image
	if target != "" {
		p.l.take(target)
	}
	p.s.mu.Unlock()
	if target == "" {
		return api.NotFound("An image does not exist locally with the tag: %s", reference.FamiliarName(tag))
	}
	c, err := p.pack(target)
	if err != nil {
		return err
	}
	mounts := p.mounts(tag, c)
	p.repo.Push(union(mounts)...)
	if err := p.blobs(ctx, c, mounts); err != nil {
		return err
	}
	for i, m := range c.manifests {
		ref := m.Digest.String()
		if i == len(c.manifests)-1 {
			ref = tag.Tag()
		}
		if err := p.repo.PutManifest(ctx, m.MediaType, m.body, ref); err != nil {
			return err
		}
	}
	top := c.manifests[len(c.manifests)-1].Descriptor
	p.s.tell(event{"push", id, reference.FamiliarString(tag)})
	p.f.status("", fmt.Sprintf("%s: digest: %s size: %d", tag.Tag(), top.Digest, top.Size))
	if err := p.aux(api.PushResult{Tag: tag.Tag(), Digest: top.Digest.String(), Size: int(top.Size)}); err != nil {
		return err
	}
	if c.whole == nil {
		return nil
	}
	return p.aux(auxprogress.ManifestPushedInsteadOfIndex{
		ManifestPushedInsteadOfIndex: true, OriginalIndex: *c.whole, SelectedManifest: top,
	})
}

func (p *push) aux(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return api.Internal("encode the result: %w", err)
	}
	message := json.RawMessage(raw)
	p.f.send(api.Progress{Aux: &message})
	return nil
}

// pack collects what a target refers to. Of an index of which not everything is here,
// or of which one platform was asked for, it is the manifest of one platform.
func (p *push) pack(target digest.Digest) (*parcel, error) {
	c := &parcel{}
	missing, err := p.collect(c, target, 0)
	if err != nil {
		return nil, err
	}
	top := c.manifests[len(c.manifests)-1]
	doc, err := decodeDocument(top.body)
	if err != nil || doc.index == nil || missing == "" && p.p == (api.Platform{}) {
		if err == nil && missing != "" {
			err = api.NotFound("blob %s of what shall be pushed is not here", missing)
		}
		return c, err
	}
	one, err := choose(doc.index, platform(p.p, p.s.cfg.Platform))
	if err != nil {
		return nil, err
	}
	part := &parcel{whole: &top.Descriptor}
	if missing, err = p.collect(part, one.Digest, 0); err == nil && missing != "" {
		err = api.NotFound("blob %s of what shall be pushed is not here", missing)
	}
	if p.p != (api.Platform{}) {
		part.whole = nil // it was asked for
	}
	return part, err
}

// collect adds a manifest or index and what it refers to; missing is a blob of it that
// is not here.
func (p *push) collect(c *parcel, d digest.Digest, depth int) (missing digest.Digest, err error) {
	p.l.hold(d)
	if depth == 3 {
		return "", api.InvalidArgument("manifest %s: indexes are nested too deeply", d)
	}
	if !p.s.has(d) && depth > 0 {
		return d, nil
	}
	body, err := p.s.readVerified(d, maxManifest)
	if err != nil {
		return "", err
	}
	doc, err := decodeDocument(body)
	if err != nil {
		return "", err
	}
	switch {
	case doc.manifest != nil:
		c.configs = append(c.configs, doc.manifest.Config)
		c.layers = append(c.layers, doc.manifest.Layers...)
		for _, b := range append([]ocispec.Descriptor{doc.manifest.Config}, doc.manifest.Layers...) {
			p.l.hold(b.Digest)
			if missing == "" && !p.s.has(b.Digest) {
				missing = b.Digest
			}
		}
	default:
		for _, m := range doc.index.Manifests {
			lacks, err := p.collect(c, m.Digest, depth+1)
			if err != nil {
				return "", err
			}
			if missing == "" {
				missing = lacks
			}
		}
	}
	c.manifests = append(c.manifests, manifestBody{ocispec.Descriptor{MediaType: doc.mediaType, Digest: d, Size: int64(len(body))}, body})
	return missing, nil
}

// mounts are repositories of the same registry that may have a blob already, because
// the blob is of an image that has a name there.
func (p *push) mounts(tag reference.Named, c *parcel) map[digest.Digest][]string {
	wanted := map[digest.Digest]bool{}
	for _, l := range c.layers {
		wanted[l.Digest] = true
	}
	out := map[digest.Digest][]string{}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for name, rec := range p.s.names {
		n, err := reference.ParseNormalizedNamed(name)
		e := p.s.images[rec.Image]
		if err != nil || e == nil || reference.Domain(n) != reference.Domain(tag) || reference.Path(n) == reference.Path(tag) {
			continue
		}
		for _, m := range e.bodies {
			for _, l := range m.Layers {
				if wanted[l.Digest] && len(out[l.Digest]) < maxMounts && !slices.Contains(out[l.Digest], reference.Path(n)) {
					out[l.Digest] = append(out[l.Digest], reference.Path(n))
				}
			}
		}
	}
	return out
}

func union(m map[digest.Digest][]string) []string {
	var all []string
	for _, l := range m {
		all = append(all, l...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// blobs pushes layers, which the stream tells of, and configs, of which it doesn't.
func (p *push) blobs(ctx context.Context, c *parcel, mounts map[digest.Digest][]string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(uploadsAtOnce)
	begun := map[digest.Digest]bool{}
	var todo []ocispec.Descriptor
	for _, d := range c.layers {
		if !begun[d.Digest] {
			begun[d.Digest] = true
			p.f.status(short(d.Digest), "Preparing")
			todo = append(todo, d)
		}
	}
	layers := len(todo)
	for _, d := range c.configs {
		if !begun[d.Digest] {
			begun[d.Digest] = true
			todo = append(todo, d)
		}
	}
	for i, d := range todo {
		g.Go(func() error { return p.blob(ctx, d, mounts[d.Digest], i < layers) })
	}
	return g.Wait()
}

func (p *push) blob(ctx context.Context, d ocispec.Descriptor, mounts []string, tell bool) error {
	b, err := p.s.open(d.Digest)
	if err != nil {
		return err
	}
	defer b.Close()
	d.Size = b.size
	m := &meter{feed: p.f, id: short(d.Digest), status: "Pushing", total: d.Size}
	progress := func(n int64) {
		if tell {
			m.at(n)
		}
	}
	how, err := p.repo.PutBlob(ctx, d, b, mounts, progress)
	switch {
	case err != nil:
		return err
	case !tell:
	case how.Exists:
		p.f.status(m.id, "Layer already exists")
	case how.From != "":
		p.f.status(m.id, "Mounted from "+strings.TrimPrefix(how.From, "library/"))
	default:
		p.f.status(m.id, "Pushed")
	}
	return nil
}
