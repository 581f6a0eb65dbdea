package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// Config is what a node is made of.
type Config struct {
	Root string // where containers and volumes are kept; made if missing
	ID   string // what info calls the engine; a cluster's node ID. Empty means Name
	Name string // of this host; empty means its host name

	Images  Images
	Network Networker
	Runtime runtime.Runtime
	Logger  *slog.Logger

	Version, Commit string
	Labels          []string // key=value, as info shows them
}

// Node is this host as an engine. It implements api.Engine.
type Node struct {
	cfg     Config
	log     *slog.Logger
	images  Images
	network Networker
	runtime runtime.Runtime
	host    host
	index   *index
	journal *journal
	volumes *volumes

	ready chan struct{}   // closed: containers of earlier runs are adopted
	life  context.Context // ends when the node shuts down; background work hangs on it
	end   context.CancelCauseFunc

	mu      sync.Mutex
	closing bool // no further background work
	work    sync.WaitGroup
}

var _ api.Engine = (*Node)(nil)

// errShutdown is why background work ends.
var errShutdown = api.Unavailable("the engine is shutting down")

// New makes a node and reads what it knows of its containers. It starts nothing
// and asks nobody; Run does. A record that can't be read is logged and set aside.
func New(cfg Config) (*Node, error) {
	if cfg.Images == nil || cfg.Network == nil || cfg.Runtime == nil {
		return nil, errors.New("a node needs images, a network and a runtime")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("the node's root: %w", err)
	}
	cfg.Root = root
	n := &Node{
		cfg: cfg, log: cfg.Logger, images: cfg.Images, network: cfg.Network, runtime: cfg.Runtime,
		host: probeHost(), index: newIndex(), journal: newJournal(),
		volumes: &volumes{root: filepath.Join(root, "volumes"), held: map[string][]string{}},
		ready:   make(chan struct{}),
	}
	if n.cfg.Name == "" {
		n.cfg.Name = n.host.hostname()
	}
	if n.cfg.ID == "" {
		n.cfg.ID = n.cfg.Name
	}
	n.life, n.end = context.WithCancelCause(context.Background())
	err = os.MkdirAll(filepath.Join(root, "containers"), 0o711)
	if err = errors.Join(err, n.volumes.open()); err != nil {
		return nil, fmt.Errorf("make the node's directories: %w", err)
	}
	if err := n.loadRecords(); err != nil {
		return nil, err
	}
	n.images.OnChange(n.imageChanged)
	n.images.OnTrouble(func(id string, reason error, stop bool) { n.spawn(func() { n.imageTrouble(id, reason, stop) }) })
	return n, nil
}

// Run adopts the containers of earlier runs and then serves until ctx ends. It
// leaves containers running. Until they are adopted, calls about containers wait.
func (n *Node) Run(ctx context.Context) error {
	defer n.shutdown()
	stop := context.AfterFunc(ctx, func() { n.end(errShutdown) })
	defer stop()
	if err := n.adopt(n.life); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("adopt containers: %w", err)
	}
	close(n.ready)
	<-ctx.Done()
	return nil
}

// shutdown ends the background work and waits for it.
func (n *Node) shutdown() {
	n.end(errShutdown)
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	n.work.Wait()
}

// spawn runs f in the background until it returns; Run waits for it. After the
// node began to shut down it does nothing.
func (n *Node) spawn(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closing {
		n.work.Go(f)
	}
}

// up waits until the node knows its containers. It fails if the caller or the node
// is about to go.
func (n *Node) up(ctx context.Context) error {
	for _, c := range []context.Context{n.life, ctx} { // ready holds for ever
		if c.Err() != nil {
			return context.Cause(c)
		}
	}
	select {
	case <-n.ready:
		return nil
	case <-n.life.Done():
		return context.Cause(n.life)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// find looks a container up.
func (n *Node) find(ctx context.Context, ref string) (*ctr, error) {
	if err := n.up(ctx); err != nil {
		return nil, err
	}
	return n.index.find(ref)
}

// cleanupTime bounds what is done to undo something, whatever became of the
// request that began it.
const cleanupTime = 30 * time.Second

// cleanup is a context for undoing.
func (n *Node) cleanup() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(n.life), cleanupTime)
}

// emit records an event of a container, with its labels as Docker does.
func (n *Node) emit(r record, action events.Action, more map[string]string) {
	a := make(map[string]string, len(r.Config.Labels)+len(more)+2)
	maps.Copy(a, r.Config.Labels)
	a["image"], a["name"] = r.Config.Image, r.Name
	maps.Copy(a, more)
	n.journal.add(events.ContainerEventType, action, r.ID, a)
}
