package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Figures of the publisher.
const (
	// reconcileEvery is how often everything is compared even if no event came.
	reconcileEvery = 30 * time.Second
	// publishRetry is the pause after a report that failed.
	publishRetry = 500 * time.Millisecond
	// maxReport is how many containers or images go into one report, to keep log
	// entries small.
	maxReport = 128
)

// Reports is what a publisher needs of the catalog.
type Reports interface {
	catalog.Reader
	Propose(ctx context.Context, c catalog.Command) (catalog.Result, error)
	// Seq are the numbers of the last reports that were taken from a node.
	Seq(nodeID string) (containers, images, volumes uint64)
}

// Publisher tells the catalog what a node runs and holds. The node never waits for
// it: events only mark what has to be looked at, and looking and reporting happens
// apart, as often as the catalog takes it.
type Publisher struct {
	node    string
	local   api.Engine
	store   Reports
	log     *slog.Logger
	signal  chan struct{} // has an element when something was marked
	mu      sync.Mutex    // guards marked
	marked  marks
	said    map[string]string // by container ID, what was last reported; the loop's
	names   map[string]naming // by container ID, the node's name for it
	images  map[string]string // by digest; nil before the first report
	volumes map[string]string // by name; nil before the first report
	fullRun bool              // the next report shall say everything
}

// marks are what has to be looked at.
type marks struct {
	containers map[string]bool
	images     bool
	volumes    bool
	all        bool
}

// naming is what a container was called here when the cluster had renamed it so often,
// or more.
type naming struct {
	name    string
	renames uint64
}

// NewPublisher makes a publisher for a node; Run runs it.
func NewPublisher(nodeID string, local api.Engine, store Reports, log *slog.Logger) *Publisher {
	return &Publisher{
		node: nodeID, local: local, store: store, log: log, signal: make(chan struct{}, 1),
		said: map[string]string{}, names: map[string]naming{}, fullRun: true,
		marked: marks{containers: map[string]bool{}},
	}
}

// Run reports until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.listen(ctx) })
	g.Go(func() error { return p.report(ctx) })
	return g.Wait()
}

// mark notes what to look at and wakes the reporter.
func (p *Publisher) mark(f func(*marks)) {
	p.mu.Lock()
	f(&p.marked)
	p.mu.Unlock()
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

// take returns what is marked and unmarks it.
func (p *Publisher) take() marks {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.marked
	p.marked = marks{containers: map[string]bool{}}
	return m
}

// listen turns the node's events into marks. After a break everything is marked,
// since events may have been missed.
func (p *Publisher) listen(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := p.local.Events(ctx, api.EventsOptions{})
		if err == nil {
			p.mark(func(m *marks) { m.all = true })
			for msg, e := range api.All(s) {
				if err = e; err != nil {
					break
				}
				p.note(msg)
			}
		}
		if ctx.Err() != nil {
			break
		}
		p.log.Warn("the node's events broke off", "error", err)
		pause(ctx, publishRetry)
	}
	return nil
}

// pause waits unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// quiet are actions that change nothing a report says.
var quiet = []events.Action{
	events.ActionAttach, events.ActionDetach, events.ActionResize, events.ActionTop, events.ActionCopy,
	events.ActionArchivePath, events.ActionExtractToDir, events.ActionExport, events.ActionCommit,
}

func (p *Publisher) note(m events.Message) {
	switch m.Type {
	case events.ContainerEventType:
		if !slices.Contains(quiet, m.Action) && !strings.HasPrefix(string(m.Action), "exec_") {
			p.mark(func(k *marks) { k.containers[m.Actor.ID] = true })
		}
	case events.NetworkEventType:
		if id := m.Actor.Attributes["container"]; id != "" {
			p.mark(func(k *marks) { k.containers[id] = true })
		}
	case events.ImageEventType:
		p.mark(func(k *marks) { k.images = true })
	case events.VolumeEventType:
		if m.Action == events.ActionCreate || m.Action == events.ActionDestroy {
			p.mark(func(k *marks) { k.volumes = true })
		}
	}
}

// report looks at what is marked and tells the catalog, one report after the other.
func (p *Publisher) report(ctx context.Context) error {
	again := time.NewTicker(reconcileEvery)
	defer again.Stop()
	for {
		select {
		case <-p.signal:
		case <-again.C:
			p.mark(func(m *marks) { m.all = true })
		case <-ctx.Done():
			return nil
		}
		m := p.take()
		err := p.publish(ctx, m)
		if err == nil || ctx.Err() != nil {
			continue
		}
		level := slog.LevelWarn
		if errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
			level = slog.LevelDebug // no leader for now, or not joined yet
		}
		p.log.Log(ctx, level, "report to the catalog failed; trying again", "error", err)
		p.mark(func(k *marks) {
			k.all, k.images, k.volumes = k.all || m.all, k.images || m.images, k.volumes || m.volumes
			for id := range m.containers {
				k.containers[id] = true
			}
		})
		pause(ctx, publishRetry)
	}
}

func (p *Publisher) publish(ctx context.Context, m marks) error {
	if m.images || m.all {
		// Images first: a container's image is known before the container is.
		if err := p.publishImages(ctx); err != nil {
			return err
		}
	}
	if err := p.publishContainers(ctx, m); err != nil || !m.volumes && !m.all {
		return err
	}
	return p.publishVolumes(ctx)
}

func (p *Publisher) publishContainers(ctx context.Context, m marks) error {
	if m.all {
		return p.publishAll(ctx)
	}
	ids := make([]string, 0, len(m.containers))
	for id := range m.containers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for part := range slices.Chunk(ids, maxReport) {
		if err := p.publishSome(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// publishSome reports containers that something happened to.
func (p *Publisher) publishSome(ctx context.Context, ids []string) error {
	found, err := p.look(ctx, ids)
	if err != nil {
		return err
	}
	var changed []catalog.Container
	var gone []string
	for _, id := range ids {
		c, ok := found[id]
		if !ok {
			gone = append(gone, id)
		} else if p.said[id] != fingerprint(c) {
			changed = append(changed, c)
		}
	}
	if err := p.send(ctx, changed, gone, false); err != nil {
		return err
	}
	if len(p.obey(ctx, changed)) > 0 {
		p.mark(func(m *marks) { m.all = true })
	}
	return nil
}

// publishAll compares everything. It says all of it at first, and again whenever the
// catalog lists other containers for this node than it has.
func (p *Publisher) publishAll(ctx context.Context) error {
	found, err := p.look(ctx, nil)
	if err != nil {
		return err
	}
	full := p.fullRun || p.differs(found)
	var changed []catalog.Container
	for _, c := range found {
		if full || p.said[c.ID] != fingerprint(c) {
			changed = append(changed, c)
		}
	}
	slices.SortFunc(changed, func(a, b catalog.Container) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	if full {
		err := p.send(ctx, changed, nil, true)
		p.fullRun = err != nil
		if err == nil {
			p.obeyAll(ctx, changed)
		}
		return err
	}
	for part := range slices.Chunk(changed, maxReport) {
		if err := p.send(ctx, part, nil, false); err != nil {
			return err
		}
	}
	return nil
}

// obey gives the node's containers the names that the cluster has for them: whoever
// renamed one may not have lived to tell the node, and of two who did, the first may
// have come last. The report before has made the view newer than what was looked at.
// What is returned has a name coming that is another container's here.
func (p *Publisher) obey(ctx context.Context, cs []catalog.Container) (blocked []catalog.Container) {
	for _, c := range cs {
		known, err := p.store.View().Container(c.ID)
		if err != nil || known.Name == c.Name {
			continue
		}
		err = p.local.RenameContainer(ctx, c.ID, known.Name)
		switch {
		case err == nil:
			p.names[c.ID] = naming{known.Name, known.Renames}
		case errdefs.IsInvalidArgument(err): // it has been told meanwhile
		case listing.IsNameTaken(err):
			blocked = append(blocked, c)
		default:
			p.log.Warn("a container's name isn't the cluster's", "container", c.ID, "name", c.Name, "cluster", known.Name, "error", err)
		}
	}
	return blocked
}

// obeyAll obeys for all of the node's containers. Some may have each other's names:
// those step aside first.
func (p *Publisher) obeyAll(ctx context.Context, all []catalog.Container) {
	blocked := p.obey(ctx, all)
	for _, c := range blocked {
		if err := p.local.RenameContainer(ctx, c.ID, c.ID); err != nil && !errdefs.IsInvalidArgument(err) {
			p.log.Warn("a container keeps a name that is another one's", "container", c.ID, "name", c.Name, "error", err)
			continue
		}
		p.names[c.ID] = naming{name: c.ID}
	}
	for _, c := range p.obey(ctx, blocked) {
		p.log.Warn("a container's name isn't the cluster's: another one here has it", "container", c.ID, "name", c.Name)
	}
}

// differs says whether the catalog lists confirmed containers that the node doesn't
// have, or under other names, or the other way round.
func (p *Publisher) differs(found map[string]catalog.Container) bool {
	listed := 0
	for _, c := range p.store.View().Containers() {
		if c.NodeID != p.node || c.State == "" {
			continue
		}
		if have, ok := found[c.ID]; !ok || have.Name != c.Name {
			return true
		}
		listed++
	}
	return listed != len(found)
}

// inTurn proposes one report. One that comes out as stale is made again with the next
// number: an earlier report had its number, whose answer was lost.
func (p *Publisher) inTurn(ctx context.Context, next func() (uint64, catalog.Command)) error {
	for {
		seq, c := next()
		res, err := p.store.Propose(ctx, c)
		if err != nil || res.Seq == seq {
			return err
		}
		if err := p.store.Wait(ctx, res.Index-1); err != nil {
			return err
		}
	}
}

// send proposes a report of containers.
func (p *Publisher) send(ctx context.Context, changed []catalog.Container, gone []string, full bool) error {
	if len(changed)+len(gone) == 0 && !full {
		return nil
	}
	err := p.inTurn(ctx, func() (uint64, catalog.Command) {
		last, _, _ := p.store.Seq(p.node)
		return last + 1, catalog.PutContainers{NodeID: p.node, Seq: last + 1, Full: full, Containers: changed, Gone: gone}
	})
	if err != nil {
		return err
	}
	if full {
		clear(p.said)
	}
	for _, c := range changed {
		p.said[c.ID] = fingerprint(c)
	}
	for _, id := range gone {
		delete(p.said, id)
		delete(p.names, id)
	}
	return p.renames(ctx, changed)
}

// renames follows names that were changed on the node itself. Where the cluster has
// renamed the container since, it has decided otherwise: what is seen here may be an
// earlier name that it gave.
func (p *Publisher) renames(ctx context.Context, cs []catalog.Container) error {
	for _, c := range cs {
		was := p.names[c.ID]
		p.names[c.ID] = naming{c.Name, c.Renames}
		if was.name == "" || was.name == c.Name {
			continue
		}
		res, err := p.store.Propose(ctx, catalog.RenameContainer{ID: c.ID, Name: c.Name, From: was.name, Seen: &was.renames})
		if err == nil && res.Container.Name == c.Name {
			p.names[c.ID] = naming{c.Name, res.Container.Renames}
		}
		if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			p.names[c.ID] = was
			return err
		}
	}
	return nil
}

// publishImages reports what the node's images became.
func (p *Publisher) publishImages(ctx context.Context) error {
	held, err := p.local.ListImages(ctx, api.ImageListOptions{All: true})
	if err != nil {
		return err
	}
	now := map[string]string{}
	var changed []catalog.Image
	for _, s := range held {
		s.Containers, s.SharedSize = -1, -1
		img := catalog.Image{NodeID: p.node, Digest: s.ID, Summary: s}
		if s.Descriptor != nil {
			img.Digest = s.Descriptor.Digest.String()
		}
		now[img.Digest] = fingerprint(img)
		if p.images[img.Digest] != now[img.Digest] {
			changed = append(changed, img)
		}
	}
	var gone []string
	for d := range p.images {
		if now[d] == "" {
			gone = append(gone, d)
		}
	}
	full := p.images == nil
	if len(changed)+len(gone) == 0 && !full {
		return nil
	}
	err = p.inTurn(ctx, func() (uint64, catalog.Command) {
		_, last, _ := p.store.Seq(p.node)
		return last + 1, catalog.PutImages{NodeID: p.node, Seq: last + 1, Full: full, Images: changed, Gone: gone}
	})
	if err != nil {
		return err
	}
	p.images = now
	return nil
}

// publishVolumes reports what the node's volumes became.
func (p *Publisher) publishVolumes(ctx context.Context) error {
	held, err := p.local.ListVolumes(ctx, nil)
	if err != nil {
		return err
	}
	now := map[string]string{}
	var changed []catalog.Volume
	for _, v := range held.Volumes {
		now[v.Name] = fingerprint(v)
		if p.volumes[v.Name] != now[v.Name] {
			changed = append(changed, catalog.Volume{Name: v.Name, Volume: v})
		}
	}
	var gone []string
	for name := range p.volumes {
		if now[name] == "" {
			gone = append(gone, name)
		}
	}
	full := p.volumes == nil
	if len(changed)+len(gone) == 0 && !full {
		return nil
	}
	err = p.inTurn(ctx, func() (uint64, catalog.Command) {
		_, _, last := p.store.Seq(p.node)
		return last + 1, catalog.PutVolumes{NodeID: p.node, Seq: last + 1, Full: full, Volumes: changed, Gone: gone}
	})
	if err != nil {
		return err
	}
	p.volumes = now
	return nil
}

// fingerprint tells whether a record changed.
func fingerprint(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error() // types of the API always encode
	}
	return string(b)
}
