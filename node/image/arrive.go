package image

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// Early is what lets containers start before their images are here. docs/start-early.md
// says what is promised.
type Early struct {
	// Program opens the executable that keepers are; see early.IsChild.
	Program func() (*os.File, error)
	// Vouch finds a peer that says what a blob consists of.
	Vouch func(ctx context.Context, want ocispec.Descriptor) (*transfer.Vouched, error)
	// Wanted is told of bytes of a blob that are about to be asked for out of turn.
	Wanted func(d digest.Digest, at, end int64)
	// Arrived is told of bytes of a blob that needn't be fetched any more.
	Arrived func(d digest.Digest, at, end int64)
}

// incoming is an image that isn't here yet and of which containers may be made. It ends
// when it is whole, or can't be had and no container needs it.
type incoming struct {
	s        *Store
	rec      incomingRecord
	named    reference.Named
	platform api.Platform
	lease    *lease // of its documents
	ready    chan struct{}
	done     chan struct{} // closed: err is set
	err      error
	layered  chan struct{} // has a token when a layer was unpacked or its blob came

	entry   *entry       // guarded by s.mu, as what follows; nil until its documents are here
	blobs   []*earlyBlob // that containers read, or could
	resumed bool         // run was called

	serving sync.WaitGroup
	once    sync.Once // closes ready
}

// incomingRecord is an incoming image on disk, so that the next process goes on.
type incomingRecord struct {
	Ref      string        `json:"ref"`
	Target   digest.Digest `json:"target"`
	Platform api.Platform  `json:"platform"`
}

func (s *Store) incomingPath(target digest.Digest) string {
	return s.path("records", "arriving", target.Encoded())
}

// Pauses between attempts to get an image that containers run on.
const (
	firstPause = time.Second
	lastPause  = 10 * time.Second
)

// early pulls until containers can be made of the image; the rest comes later.
func (p *pull) early(ctx context.Context) error {
	in, err := p.s.receive(p)
	if err != nil {
		return err
	}
	p.f.status(p.target.String(), "Starting early from "+reference.Path(p.named))
	select {
	case <-in.ready:
		return nil
	case <-in.done:
		return in.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receive joins the receiving of an image, or begins it.
func (s *Store) receive(p *pull) (*incoming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if in := s.incoming[p.target]; in != nil {
		return in, nil
	}
	in := s.newIncoming(incomingRecord{Ref: p.named.String(), Target: p.target, Platform: p.p}, p.named)
	if !s.jobs.begin() {
		return nil, api.Unavailable("the image store is closed")
	}
	s.incoming[p.target], in.resumed = in, true
	go in.run(s.jobs.life)
	return in, nil
}

func (s *Store) newIncoming(rec incomingRecord, named reference.Named) *incoming {
	return &incoming{
		s: s, rec: rec, named: named, platform: rec.Platform, lease: s.lease(),
		ready: make(chan struct{}), done: make(chan struct{}), layered: make(chan struct{}, 1),
	}
}

// run pulls until the image is whole or nobody needs it any more. A process that ends
// leaves it to the next.
func (in *incoming) run(ctx context.Context) {
	s := in.s
	defer s.jobs.end()
	ctx = transfer.PartOf(ctx, in.rec.Target)
	serving, stop := context.WithCancel(ctx)
	defer in.serving.Wait()
	defer stop()
	for _, e := range in.begun() { // by an earlier process
		in.serve(serving, e)
	}
	pause := firstPause
	for {
		in.err = in.attempt(ctx, serving)
		if in.err == nil || ctx.Err() != nil || !in.needed() {
			break
		}
		s.log.Warn("an image that containers run on doesn't arrive", "image", in.rec.Ref, "again in", pause, "error", in.err)
		wait(ctx, pause)
		pause = min(2*pause, lastPause)
	}
	if ctx.Err() == nil {
		in.finish()
	} else {
		for _, e := range in.begun() {
			e.close()
		}
	}
	close(in.done)
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (in *incoming) attempt(ctx, serving context.Context) (err error) {
	s := in.s
	if err := s.allowed(ctx, in.rec.Target); err != nil {
		return err
	}
	p := &pull{s: s, l: s.lease(), f: newFeed(), named: in.named, target: in.rec.Target, p: in.platform, in: in, serving: serving}
	defer func() { p.l.end(err) }()
	return p.run(ctx)
}

// begun are the blobs that containers can read, or could.
func (in *incoming) begun() []*earlyBlob {
	in.s.mu.Lock()
	defer in.s.mu.Unlock()
	return append([]*earlyBlob(nil), in.blobs...)
}

// needed says whether containers are made of the image.
func (in *incoming) needed() bool {
	in.s.mu.Lock()
	defer in.s.mu.Unlock()
	if in.entry == nil {
		return false
	}
	for id, box := range in.s.boxes {
		if box.Image == in.entry.rec.ID || slices.ContainsFunc(in.blobs, func(e *earlyBlob) bool { _, ok := e.users[id]; return ok }) {
			return true
		}
	}
	return false
}

// begin learns what the image is, and makes its layers readable while p fetches them.
// end waits for that.
func (in *incoming) begin(ctx context.Context, p *pull, add addition) (end func()) {
	in.know(add)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	heard := map[*earlyBlob]chan struct{}{}
	for _, e := range in.s.readableSoon(in, add.refs) {
		told := make(chan struct{})
		heard[e] = told
		wg.Go(func() { e.findVoucher(ctx, told) })
	}
	wg.Go(func() {
		if err := in.open(ctx, p.serving, add.refs, heard); err != nil && ctx.Err() == nil {
			in.s.log.Info("containers wait for their image", "image", in.rec.Ref, "reason", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// know notes what the image is, also for the next process.
func (in *incoming) know(add addition) {
	in.s.mu.Lock()
	known := in.entry != nil
	if !known {
		m := manifestRecord{Target: add.target, Manifest: add.manifest}
		in.lease.take(add.target.Digest, add.manifest.Digest, add.id())
		in.entry = &entry{
			rec: imageRecord{ID: add.id(), Manifests: []manifestRecord{m}, Sizes: make([]int64, len(add.refs)), Updated: time.Now()},
			cfg: add.cfg, bodies: []*ocispec.Manifest{add.body},
		}
	}
	in.s.mu.Unlock()
	if err := writeRecord(in.s.incomingPath(in.rec.Target), in.rec, true); err != nil && !known {
		in.s.log.Warn("note that an image arrives", "image", in.rec.Ref, "error", err)
	}
}

// open makes one layer after the other readable, once it was heard whether somebody
// vouches for it, or waits until it is here.
func (in *incoming) open(ctx, serving context.Context, refs []layerRef, heard map[*earlyBlob]chan struct{}) error {
	for i, ref := range refs {
		if in.s.usable(ref.Chain) {
			continue
		}
		if e := in.s.earlyBlob(ref); e != nil && heard[e] != nil {
			<-heard[e] // ends with ctx
			err := e.open(ctx, refs[:i])
			if err == nil {
				in.serve(serving, e)
				in.add(e)
				continue
			}
			in.s.log.Info("a layer can't be read before it is here", "layer", ref.Desc.Digest, "reason", err)
		}
		if err := in.await(ctx, refs, i); err != nil {
			return err
		}
	}
	in.once.Do(func() { close(in.ready) })
	return nil
}

// await waits until a layer is here. It belongs to the others only once those below it
// do; where these arrive still it is made usable by itself.
func (in *incoming) await(ctx context.Context, refs []layerRef, i int) error {
	tried := false
	for !in.s.usable(refs[i].Chain) {
		if below := refs[:i]; !tried && in.s.has(refs[i].Desc.Digest) && !in.s.hasLayers(below) {
			tried = true
			e, err := in.s.openHeld(ctx, refs[i], below)
			if err == nil {
				in.add(e)
				return nil
			}
			in.s.log.Info("a layer can't be used before those below it are here", "layer", refs[i].Desc.Digest, "reason", err)
		}
		select {
		case <-in.layered:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// add makes a layer one that containers can use.
func (in *incoming) add(e *earlyBlob) {
	in.s.mu.Lock()
	defer in.s.mu.Unlock()
	in.s.earlyLayers[e.rec.Ref.Chain] = e
	e.opened = true
	if !slices.Contains(in.blobs, e) {
		in.blobs = append(in.blobs, e)
	}
}

// unpacked says that a layer was, or that its blob came.
func (in *incoming) unpacked() {
	select {
	case in.layered <- struct{}{}:
	default:
	}
}

// serve fetches what readers of a blob wait for, and stops its containers if it proves
// to be wrong.
func (in *incoming) serve(ctx context.Context, e *earlyBlob) {
	in.serving.Go(func() { e.serve(ctx) })
	in.serving.Go(func() {
		select {
		case <-e.lost:
			in.s.trouble(e, errWrongEarly, true)
		case <-ctx.Done():
		}
	})
}

var errWrongEarly = errors.New("its image isn't what its digest says: the container had begun with wrong bytes of a peer, and was stopped")

// finish forgets the image, which is whole or will never be. Who reads it goes on.
func (in *incoming) finish() {
	s := in.s
	for _, e := range in.begun() {
		if in.err == nil && s.isOpened(e) && !e.held && !s.sameTree(e) {
			e.wrong()
			s.trouble(e, errWrongEarly, true)
		}
		if in.err != nil {
			e.fail()
		}
		s.dropEarly(e)
	}
	s.mu.Lock()
	delete(s.incoming, in.rec.Target)
	in.blobs = nil
	s.mu.Unlock()
	if err := removeRecord(s.incomingPath(in.rec.Target)); err != nil {
		s.log.Warn("forget that an image arrived", "image", in.rec.Ref, "error", err)
	}
	in.lease.end(in.err)
}

// Coming finds an image that isn't whole yet, and of which containers can be made. Who
// wants one that is here asks Get first.
func (s *Store) Coming(_ context.Context, ref string) (Image, error) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return Image{}, api.InvalidArgument("%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.incoming {
		if in.isReady() && in.entry != nil && in.is(parsed) {
			return s.image(in.entry, 0), nil
		}
	}
	return Image{}, noSuchImage(parsed)
}

func (in *incoming) isReady() bool {
	select {
	case <-in.ready:
		return true
	default:
		return false
	}
}

func (in *incoming) is(ref reference.Reference) bool {
	if d, ok := ref.(reference.Digested); ok {
		return d.Digest() == in.rec.Target || d.Digest() == in.entry.rec.ID
	}
	named, ok := ref.(reference.Named)
	return ok && reference.TagNameOnly(named).String() == in.named.String()
}

// comingByID is an entry of an image that isn't whole; with mu held.
func (s *Store) comingByID(id digest.Digest) *entry {
	for _, in := range s.incoming {
		if in.entry != nil && in.entry.rec.ID == id {
			return in.entry
		}
	}
	return nil
}

// awaitComing waits until layers of an image that arrives can be used; false if no such
// image arrives.
func (s *Store) awaitComing(ctx context.Context, refs []layerRef) (bool, error) {
	s.mu.Lock()
	var found *incoming
	for _, in := range s.incoming {
		if in.entry != nil && len(refs) > 0 && refs[len(refs)-1].Chain == in.entry.refs(0)[len(in.entry.refs(0))-1].Chain {
			found = in
		}
	}
	s.mu.Unlock()
	if found == nil {
		return false, nil
	}
	select {
	case <-found.ready:
		return true, nil
	case <-found.done:
		return found.err == nil, found.err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
