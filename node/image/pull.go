package image

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image/registry"
	"github.com/shoal-engine/shoal/transfer"
)

// layersAtOnce is how many layers one pull fetches at once.
const layersAtOnce = 4

// pull is one Pull under way.
type pull struct {
	s      *Store
	l      *lease
	f      *feed
	named  reference.Named // what was asked for, with its tag or digest
	target digest.Digest   // of the manifest or index that it means
	size   int64           // of that, as the registry says; 0 if it wasn't asked
	p      api.Platform
	repo   *registry.Repository // where the name says that the image is; nil if no registries are reached

	in      *incoming       // of which containers are made meanwhile; nil for none
	serving context.Context // for as long as they are served; set if in is
}

// Pull makes the store hold what a name means: o.Digest if the caller knows it, else
// what the registry says now, else, if the registry can't be asked or doesn't know,
// what Config.Resolve or o.Known say or it means here. What is missing is asked of
// Config.Fetchers and then of the registry.
func (s *Store) Pull(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	named, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, api.InvalidArgument("%w", err)
	}
	named = reference.TagNameOnly(named)
	return s.start(ctx, func(ctx context.Context, f *feed) (err error) {
		p := &pull{s: s, l: s.lease(), f: f, named: named, p: platform(o.Platform, s.cfg.Platform)}
		defer func() { p.l.end(err) }()
		if s.cfg.Registry != nil {
			p.repo = s.cfg.Registry.Repository(named, o.Auth)
		}
		if err := p.resolve(ctx, digest.Digest(o.Digest), digest.Digest(o.Known)); err != nil {
			return err
		}
		if err := s.allowed(ctx, p.target); err != nil {
			return err
		}
		if o.Early && s.cfg.Early != nil {
			if here, err := p.held(); err == nil && here == nil {
				return p.early(ctx)
			}
		}
		return p.run(transfer.PartOf(ctx, p.target))
	})
}

// denied is Docker's error for a name that nobody knows.
func denied(n reference.Named) error {
	return api.NotFound("pull access denied for %s, repository does not exist or may require 'docker login'", reference.FamiliarName(n))
}

// resolve finds out which manifest is meant.
func (p *pull) resolve(ctx context.Context, pinned, known digest.Digest) error {
	if c, ok := p.named.(reference.Canonical); ok {
		if pinned != "" && pinned != c.Digest() {
			return api.InvalidArgument("%s is not %s", p.named, pinned)
		}
		pinned = c.Digest()
	}
	if pinned == "" {
		var err error
		if known, err = p.known(ctx, known); err != nil {
			return err
		}
		if pinned, err = p.ask(ctx, known); err != nil {
			return err
		}
	}
	if pinned == "" {
		return denied(p.named)
	}
	p.target = pinned
	return checkDigest(pinned)
}

// known is what the tag means without its registry: in the cluster, or else here.
// Empty if it means nothing.
func (p *pull) known(ctx context.Context, known digest.Digest) (digest.Digest, error) {
	if known != "" {
		return known, nil
	}
	if p.s.cfg.Resolve != nil {
		d, err := p.s.cfg.Resolve(ctx, p.named.String())
		if err == nil {
			return digest.Digest(d), nil
		}
		if !errdefs.IsNotFound(err) {
			return "", err
		}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.s.names[p.named.String()].Target, nil
}

// askWithin bounds how long a registry is waited for when there is another answer.
const askWithin = 5 * time.Second

// ask asks the registry what the tag means now. If it can't tell, what is known is
// good enough.
func (p *pull) ask(ctx context.Context, known digest.Digest) (digest.Digest, error) {
	tagged, ok := p.named.(reference.Tagged)
	if p.s.cfg.Registry == nil || !ok {
		return known, nil
	}
	asking := ctx
	if known != "" {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, askWithin)
		defer cancel()
	}
	d, err := p.repo.Resolve(asking, tagged.Tag())
	switch {
	case err == nil:
		p.size = d.Size
		return d.Digest, nil
	case known == "" || ctx.Err() != nil:
		return "", err
	}
	p.s.log.Info("registry passed over", "name", p.named.String(), "known", known.String(), "error", err)
	return known, nil
}

func (p *pull) run(ctx context.Context) error {
	add, err := p.held()
	if err != nil {
		return err
	}
	if add == nil {
		if add, err = p.fetchDocuments(ctx); err != nil {
			return err
		}
	}
	what := "Pulling from " + reference.Path(p.named)
	if tagged, ok := p.named.(reference.Tagged); ok {
		p.f.status(tagged.Tag(), what)
	} else {
		p.f.status(p.target.String(), what)
	}
	before := p.pointsAt()
	if p.in != nil {
		defer p.in.begin(ctx, p, *add)()
	}
	if err := p.layers(ctx, *add); err != nil {
		return err
	}
	p.s.tell(event{"pull", add.id(), reference.FamiliarString(p.named)})
	p.f.status("", "Digest: "+p.target.String())
	if before == add.id() {
		p.f.status("", "Status: Image is up to date for "+reference.FamiliarString(p.named))
	} else {
		p.f.status("", "Status: Downloaded newer image for "+reference.FamiliarString(p.named))
	}
	return nil
}

// pointsAt is the image that the name means before the pull.
func (p *pull) pointsAt() digest.Digest {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if e, _ := p.s.byName(p.named); e != nil {
		return e.rec.ID
	}
	return ""
}

// held finds the image among those that are here; nil if it is not.
func (p *pull) held() (*addition, error) {
	manifest, target := p.heldManifest()
	if manifest == "" {
		return nil, nil
	}
	p.s.mu.Lock()
	e, i := p.s.byManifest(manifest)
	if e != nil {
		p.l.take(e.needs().all()...)
	}
	p.s.mu.Unlock()
	if e == nil {
		return nil, nil
	}
	add, err := p.s.addition(target, e.rec.Manifests[i].Manifest)
	if err != nil {
		return nil, err
	}
	return &add, nil
}

// heldManifest follows what the name means to the manifest for the platform, as far
// as that is here; empty if it is not. An index decides by what it says itself: an
// image's own config may say otherwise.
func (p *pull) heldManifest() (manifest digest.Digest, target ocispec.Descriptor) {
	d := p.target
	for range 3 {
		p.l.hold(d)
		b, err := p.s.readVerified(d, maxManifest)
		if err != nil {
			return "", target
		}
		doc, err := decodeDocument(b)
		if err != nil {
			return "", target
		}
		if d == p.target {
			target = ocispec.Descriptor{MediaType: doc.mediaType, Digest: d, Size: int64(len(b))}
		}
		if doc.manifest != nil {
			return d, target
		}
		next, err := choose(doc.index, p.p)
		if err != nil {
			return "", target
		}
		d = next.Digest
	}
	return "", target
}

// fetchDocuments fetches what says what the image is: manifests and config.
func (p *pull) fetchDocuments(ctx context.Context) (*addition, error) {
	target := ocispec.Descriptor{Digest: p.target}
	manifest := target
	for range 3 {
		p.l.hold(manifest.Digest)
		err := p.fetchManifest(ctx, manifest)
		if errdefs.IsNotFound(err) && manifest.Digest == p.target && p.repo == nil {
			return nil, denied(p.named)
		}
		if err != nil {
			return nil, err
		}
		b, err := p.s.readVerified(manifest.Digest, maxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := decodeDocument(b)
		if err != nil {
			return nil, err
		}
		if manifest.Digest == p.target {
			target.MediaType, target.Size = doc.mediaType, int64(len(b))
		}
		if doc.manifest != nil {
			p.l.hold(doc.manifest.Config.Digest)
			if err := p.fetch(ctx, bare(doc.manifest.Config)); err != nil {
				return nil, err
			}
			add, err := p.s.addition(target, manifest)
			return &add, err
		}
		if manifest, err = choose(doc.index, p.p); err != nil {
			return nil, err
		}
	}
	return nil, api.InvalidArgument("manifest %s: indexes are nested too deeply", p.target)
}

// fetchManifest takes the registry's word for the size of what a tag means, without
// which peers can't share it while it arrives, if that proves to be right.
func (p *pull) fetchManifest(ctx context.Context, d ocispec.Descriptor) error {
	if d.Digest == p.target && p.size > 0 {
		sized := d
		sized.Size = p.size
		if err := p.fetch(ctx, asManifest(sized)); !errdefs.IsDataLoss(err) {
			return err
		}
	}
	return p.fetch(ctx, asManifest(d))
}

// fetch fetches from wherever, the registry last.
func (p *pull) fetch(ctx context.Context, d ocispec.Descriptor) error {
	if p.repo == nil {
		return p.s.fetch(ctx, d)
	}
	return p.s.fetchOr(ctx, d, p.repo)
}

// asManifest makes sure that a manifest is asked for as one: registries keep them
// apart from blobs.
func asManifest(d ocispec.Descriptor) ocispec.Descriptor {
	d = bare(d)
	switch d.MediaType {
	case ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerManifest, dockerManifestList:
	default:
		d.MediaType = ocispec.MediaTypeImageManifest
	}
	return d
}

// layers fetches and unpacks what is missing, both at once, and gives the image its
// names.
func (p *pull) layers(ctx context.Context, add addition) error {
	p.l.hold(add.blobs()...)
	for _, r := range add.refs {
		p.l.hold(r.Chain)
	}
	names := []reference.Named{p.named}
	if _, ok := p.named.(reference.Canonical); !ok {
		if c, err := reference.WithDigest(reference.TrimNamed(p.named), p.target); err == nil {
			names = append(names, c)
		}
	}
	arrivals, u := p.prepare(add)
	uctx, stop := context.WithCancel(ctx)
	defer stop()
	unpacked := make(chan error, 1)
	go func() {
		_, err := p.s.add(uctx, p.l, add, names, u)
		unpacked <- err
	}()
	fetched := p.fetchLayers(ctx, add, arrivals)
	if fetched != nil {
		stop()
	}
	err := <-unpacked
	switch {
	case fetched != nil:
		return fetched
	case err == nil || ctx.Err() != nil:
		return err
	}
	// What arrived first may have been a liar's; what is here now was verified.
	u.source = p.s.held
	_, err = p.s.add(ctx, p.l, add, names, u)
	return err
}

// fetchLayers ends every arrival.
func (p *pull) fetchLayers(ctx context.Context, add addition, arrivals map[digest.Digest]*arrival) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	begun := map[digest.Digest]bool{}
	for _, r := range add.refs {
		if !begun[r.Desc.Digest] {
			begun[r.Desc.Digest] = true
			g.Go(func() error { return p.fetchLayer(ctx, r, arrivals[r.Desc.Digest]) })
		}
	}
	return g.Wait()
}

func (p *pull) fetchLayer(ctx context.Context, r layerRef, a *arrival) (err error) {
	defer func() { a.end(err) }()
	if p.s.has(r.Desc.Digest) {
		return nil
	}
	m := &meter{feed: p.f, id: short(r.Desc.Digest), status: "Downloading", total: r.Desc.Size}
	defer p.s.watched.add(r.Desc.Digest, func(n int64) {
		a.begin()
		m.at(n)
	})()
	if err := p.fetch(ctx, bare(r.Desc)); err != nil {
		return err
	}
	p.f.status(m.id, "Download complete")
	if p.in != nil {
		p.in.unpacked()
	}
	return nil
}

// prepare announces the layers, and says how they will be unpacked.
func (p *pull) prepare(add addition) (map[digest.Digest]*arrival, *unpacker) {
	arrivals := make(map[digest.Digest]*arrival, len(add.refs))
	meters := make([]*meter, len(add.refs))
	var once sync.Map // layers whose end was told, by place
	for i, r := range add.refs {
		id := short(r.Desc.Digest)
		meters[i] = &meter{feed: p.f, id: id, status: "Extracting", total: r.Desc.Size}
		if p.s.has(r.Desc.Digest) && p.s.hasLayer(r.Chain) {
			p.f.status(id, "Already exists")
			once.Store(i, true)
		} else {
			p.f.status(id, "Pulling fs layer")
		}
		arrivals[r.Desc.Digest] = newArrival()
	}
	u := &unpacker{
		source: func(ctx context.Context, ref layerRef) (io.ReadCloser, error) {
			return arrivals[ref.Desc.Digest].open(ctx, p.s, ref.Desc.Digest)
		},
		progress: func(i int, n int64) { meters[i].at(n) },
		done: func(i int) {
			if p.in != nil {
				p.in.unpacked()
			}
			if _, told := once.LoadOrStore(i, true); !told {
				p.f.status(meters[i].id, "Pull complete")
			}
		},
	}
	return arrivals, u
}
