package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// Config says what a plugin is. All but Name, Bin and Dir may be left out.
type Config struct {
	Name string
	Bin  string // the directory where shoal-transport-NAME lies
	Dir  string // a directory of the plugin's own, its working directory; made if need be
	// Settings are passed on to the plugin.
	Settings map[string]string
	// Silence is how long a plugin that was asked may say nothing, Patience how long
	// its answer may take if it says now and then that it is coming.
	Silence, Patience time.Duration
	// Processes is how many there may be at once: each does one thing at a time.
	Processes int
	Logger    *slog.Logger
}

const (
	defaultSilence   = 15 * time.Second
	defaultPatience  = 10 * time.Minute
	defaultProcesses = 4
	// busyWait is how long a fetch waits for a process before others than this
	// plugin are asked.
	busyWait = 5 * time.Second
	// A look-up must come quickly: others wait to be asked.
	lookSilence, lookPatience = 5 * time.Second, 30 * time.Second
	// grace is how long processes have to end in order.
	grace = 2 * time.Second
	// A plugin that fails is left alone for firstPause, then twice as long each time
	// up to lastPause.
	firstPause = time.Second
	lastPause  = time.Minute
	// maxUnsized bounds blobs whose size only the plugin knows: manifests.
	maxUnsized = 8 << 20
)

// Plugin is one transport. Its methods may be called concurrently.
type Plugin struct {
	cfg   Config
	log   *slog.Logger
	slots chan struct{}  // one token for each process at work
	puts  chan struct{}  // one token for the put under way: gets come first
	start chan struct{}  // one token for whoever starts a process
	live  sync.WaitGroup // processes

	mu      sync.Mutex
	closed  bool
	idle    []*child
	busy    map[*child]struct{}
	strikes int
	until   time.Time // no process is started before
	why     error     // of the last strike
}

var _ transfer.Fetcher = (*Plugin)(nil)

// New makes a plugin; its processes start when they are needed.
func New(c Config) (*Plugin, error) {
	if err := CheckName(c.Name); err != nil {
		return nil, err
	}
	if c.Silence <= 0 {
		c.Silence = defaultSilence
	}
	if c.Patience <= 0 {
		c.Patience = defaultPatience
	}
	if c.Processes <= 0 {
		c.Processes = defaultProcesses
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("plugin", c.Name)
	return &Plugin{
		cfg: c, log: c.Logger, slots: make(chan struct{}, c.Processes), puts: make(chan struct{}, 1), start: make(chan struct{}, 1), busy: map[*child]struct{}{},
	}, nil
}

// Name is the plugin's.
func (p *Plugin) Name() string { return p.cfg.Name }

// Check says whether the plugin could be started: nil, or what is the matter with its file.
func (p *Plugin) Check() error {
	_, err := executable(p.cfg.Bin, p.cfg.Name)
	return err
}

// Run waits for ctx to end, and then for the plugin's processes to.
func (p *Plugin) Run(ctx context.Context) error {
	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	all := slices.AppendSeq(p.idle, maps.Keys(p.busy))
	p.idle = nil
	p.mu.Unlock()
	t := time.NewTimer(grace)
	defer t.Stop()
	late := make(chan time.Time)
	go func() {
		<-t.C
		close(late) // for all of them
	}()
	var ends sync.WaitGroup
	for _, k := range all {
		ends.Go(func() { k.end(late) })
	}
	ends.Wait()
	p.live.Wait()
	return nil
}

// Fetch implements transfer.Fetcher.
func (p *Plugin) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	err := p.with(ctx, func(k *child) error { return p.fetch(ctx, k, dst, want, progress) })
	return p.named(ctx, err, "fetch", want.Digest)
}

// Offer gives the plugin a blob, if it wants blobs and hasn't this one yet.
func (p *Plugin) Offer(ctx context.Context, src transfer.Store, d digest.Digest) error {
	select {
	case p.puts <- struct{}{}:
		defer func() { <-p.puts }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := p.with(ctx, func(k *child) error { return p.offer(ctx, k, src, d) })
	return p.named(ctx, err, "offer", d)
}

// named says whose error it is, and gives it a class.
func (p *Plugin) named(ctx context.Context, err error, doing string, d digest.Digest) error {
	var r refusal
	var f *fault
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &r), errors.As(err, &f):
		return api.Unavailable("transport plugin %s: %s blob %s: %w", p.cfg.Name, doing, d, err)
	}
	return fmt.Errorf("transport plugin %s: %s blob %s: %w", p.cfg.Name, doing, d, err)
}

// with does something with a process of the plugin's, which ends if ctx does.
func (p *Plugin) with(ctx context.Context, do func(*child) error) error {
	if err := p.slot(ctx); err != nil {
		return err
	}
	defer func() { <-p.slots }()
	k, err := p.take(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, k.kill)
	err = do(k)
	whole := stop() // else it was killed, and it isn't to blame
	var f *fault
	faulty := whole && errors.As(err, &f)
	if faulty {
		err = k.obituary(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, k)
	switch {
	case faulty:
		p.strike(err)
	case !whole || k.unusable || p.closed:
		k.kill()
	default:
		p.idle, p.strikes = append(p.idle, k), 0
	}
	return err
}

// slot waits a bounded time for a process to be free.
func (p *Plugin) slot(ctx context.Context) error {
	t := time.NewTimer(busyWait)
	defer t.Stop()
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return api.Unavailable("all its %d processes are busy", p.cfg.Processes)
	}
}

// take is an idle process, or a new one. One at a time is started: a plugin that
// can't be is tried once, and not by all who wait.
func (p *Plugin) take(ctx context.Context) (*child, error) {
	if k, err := p.reuse(); k != nil || err != nil {
		return k, err
	}
	select {
	case p.start <- struct{}{}:
		defer func() { <-p.start }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if k, err := p.reuse(); k != nil || err != nil {
		return k, err
	}
	k, err := p.begin(ctx)
	if err != nil && ctx.Err() == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.strike(err)
	}
	return k, err
}

// reuse is an idle process; nil if there is none and a new one may be started.
func (p *Plugin) reuse() (*child, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, api.Unavailable("the agent is ending")
	}
	for len(p.idle) > 0 {
		k := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if k.alive() {
			p.busy[k] = struct{}{}
			return k, nil
		}
		k.kill() // closes its pipes
	}
	if left := time.Until(p.until); left > 0 {
		return nil, api.Unavailable("is left alone for another %s: %w", left.Round(time.Millisecond), p.why)
	}
	return nil, nil //nolint:nilnil // neither is an error
}

// begin starts a process and greets it. It is among the busy then.
func (p *Plugin) begin(ctx context.Context) (*child, error) {
	path, err := executable(p.cfg.Bin, p.cfg.Name)
	if err != nil {
		return nil, api.Unavailable("%w", err)
	}
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return nil, api.Internal("make its directory: %w", err)
	}
	k, err := p.spawn(path)
	if err != nil {
		return nil, api.Unavailable("start %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, k.kill)
	a, err := k.ask(request{Op: "hello", Versions: []int{version}, Settings: p.cfg.Settings})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && a.Version != version {
		err = faultf("hello: it chose version %d of the protocol, which was not offered", a.Version)
	}
	if err != nil {
		err = k.obituary(err)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, k)
		return nil, api.Unavailable("%w", err)
	}
	k.put = a.Put
	p.log.Debug("transport plugin started", "path", path, "pid", k.pid, "put", k.put)
	return k, nil
}

// spawn starts a process that Run will end.
func (p *Plugin) spawn(path string) (*child, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the agent is ending")
	}
	k, err := spawn(path, p.cfg)
	if err != nil {
		return nil, err
	}
	p.busy[k] = struct{}{}
	p.live.Go(func() { <-k.done })
	return k, nil
}

// strike leaves the plugin alone for a while; with mu held.
func (p *Plugin) strike(why error) {
	pause := min(lastPause, firstPause<<min(p.strikes, 10))
	p.strikes++
	p.until, p.why = time.Now().Add(pause), why
	p.log.Warn("transport plugin failed", "error", why, "pause", pause)
}

func (p *Plugin) fetch(ctx context.Context, k *child, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	a, err := k.quick(lookSilence, lookPatience).ask(request{Op: "have", Digest: want.Digest, Size: want.Size})
	if err != nil {
		return err
	}
	if !a.OK {
		return api.NotFound("it isn't there")
	}
	if want.Size == 0 { // not known, or truly none
		if a.Size > maxUnsized {
			return api.InvalidArgument("it says that it has %d bytes; at most %d are taken unannounced", a.Size, maxUnsized)
		}
		want.Size = a.Size
	}
	for {
		resumed, err := p.get(ctx, k, dst, want, progress)
		if resumed && errdefs.IsDataLoss(err) {
			continue // what was here before may have been wrong; it is dropped now
		}
		if errdefs.IsDataLoss(err) {
			return &fault{err}
		}
		return err
	}
}

// get fetches once. resumed says that it built on bytes that were here before.
func (p *Plugin) get(ctx context.Context, k *child, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) (resumed bool, err error) {
	w, err := dst.Ingest(ctx, want)
	if err != nil {
		if errdefs.IsAlreadyExists(err) {
			return false, nil
		}
		return false, err
	}
	defer w.Close()
	a, err := k.ask(request{Op: "get", Digest: want.Digest, Size: want.Size, Offset: w.Offset()})
	if err != nil {
		return false, err
	}
	if !a.OK {
		return false, api.NotFound("it isn't there any more")
	}
	if a.Offset > w.Offset() {
		return false, faultf("get: it begins at byte %d, and was asked to at %d", a.Offset, w.Offset())
	}
	at := a.Offset
	err = k.receive(want.Size-at, func(b []byte) error {
		n, err := w.WriteAt(b, at)
		at += int64(n)
		if err == nil && progress != nil {
			progress(at)
		}
		return err
	})
	if err != nil {
		var own errSink
		k.unusable = errors.As(err, &own)
		// Nobody vouches for half a blob, and the next to be asked must not build on it.
		return false, errors.Join(err, w.Abort())
	}
	return a.Offset > 0, w.Commit(ctx)
}

func (p *Plugin) offer(ctx context.Context, k *child, src transfer.Store, d digest.Digest) error {
	if !k.put {
		return nil
	}
	b, err := src.Open(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	defer b.Close()
	if a, err := k.quick(lookSilence, lookPatience).ask(request{Op: "have", Digest: d, Size: b.Size()}); err != nil || a.OK {
		return err
	}
	a, err := k.ask(request{Op: "put", Digest: d, Size: b.Size()})
	if err != nil || !a.OK {
		return err
	}
	err = k.send(io.NewSectionReader(b, 0, b.Size()), b.Size())
	var own errSink
	k.unusable = errors.As(err, &own)
	return err
}
