package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
)

// ErrRemoved is what Run ends with when this node isn't part of the cluster any more.
var ErrRemoved = api.Unavailable("this node was removed from the cluster")

// Config describes one node's replica.
type Config struct {
	// Dir keeps the log (log/) and snapshots (snapshots/); empty means in memory.
	Dir    string
	Wire   Wire
	Logger *slog.Logger // nil discards
	// Bootstrap begins a new cluster of which this node is the first voter. It is
	// ignored where Dir has a log already.
	Bootstrap bool
}

// Figures of the replica.
const (
	// A follower that hears nothing for heartbeat to 2×heartbeat stands for election;
	// a leader without a majority for lease steps down. A second rides out a disk or a
	// scheduler that stalls for some hundred milliseconds.
	heartbeat = time.Second
	lease     = 500 * time.Millisecond
	// Followers are told of commits as they happen (see promptTransport); this only
	// covers for a message that got lost. It is how often a quiet leader speaks to each,
	// heartbeats apart.
	commitTimeout = 500 * time.Millisecond
	// A snapshot is taken once that many entries came since the last, looked for
	// every snapshotEvery; the entries before it that are kept let a follower that
	// was away for a moment catch up without a snapshot.
	snapshotThreshold = 8192
	snapshotEvery     = time.Minute
	trailingLogs      = 10240
	keepSnapshots     = 2
	// segmentSize is reserved on disk at once.
	segmentSize = 16 << 20
	ioTimeout   = 10 * time.Second
	applyLimit  = 10 * time.Second
	stopLimit   = 5 * time.Second
)

// Catalog is one node's replica, kept up to date by raft. It reads like a State;
// proposals go to the leader wherever they are made.
//
// Locks: Catalog.mu is taken before promptTransport.mu; no other two are ever held
// together.
type Catalog struct {
	cfg   Config
	log   *slog.Logger
	state *State
	queue chan pending
	links links
	asked sync.WaitGroup // what raft was asked and hasn't answered

	mu      sync.Mutex
	raft    *raft.Raft // nil before Run and after it ended
	trans   *promptTransport
	changed chan struct{}      // closed and replaced when anything below, or raft, changes
	lead    context.Context    // of this node's leadership; nil while it follows
	unlead  context.CancelFunc // ends lead
}

// New makes a replica that Run starts.
func New(cfg Config) *Catalog {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Catalog{cfg: cfg, log: cfg.Logger, state: NewState(), queue: make(chan pending, maxQueue), changed: make(chan struct{})}
	c.links.wire = cfg.Wire
	return c
}

// View is the state as far as this node has followed.
func (c *Catalog) View() View { return c.state.View() }

// Wait blocks until the view's index is above after.
func (c *Catalog) Wait(ctx context.Context, after uint64) error { return c.state.Wait(ctx, after) }

// Settings are those the cluster began with, with the present secret; false until
// they have arrived here.
func (c *Catalog) Settings() (SetSettings, bool) { return c.state.Settings() }

// Seq are the numbers of the last reports that were taken from a node.
func (c *Catalog) Seq(node string) (containers, images, volumes uint64) { return c.state.Seq(node) }

// stores are what raft keeps its things in.
type stores struct {
	logs      raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	closer    io.Closer
}

func openStores(dir string, l *slog.Logger) (stores, error) {
	if dir == "" {
		m := raft.NewInmemStore()
		return stores{m, m, raft.NewInmemSnapshotStore(), io.NopCloser(nil)}, nil
	}
	logs := filepath.Join(dir, "log")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return stores{}, fmt.Errorf("make the catalog's directory: %w", err)
	}
	meta := &metadb.BoltMetaDB{}
	w, err := wal.Open(logs, wal.WithMetaStore(meta), wal.WithSegmentSize(segmentSize), wal.WithLogger(newRaftLog(l)))
	if err != nil {
		return stores{}, errors.Join(damaged(logs, err), meta.Close())
	}
	disk := diskLog{w, meta}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshots, newRaftLog(l))
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("open the catalog's snapshots in %s: %w", dir, err), disk.Close())
	}
	cache, err := raft.NewLogCache(512, w)
	if err != nil {
		return stores{}, errors.Join(fmt.Errorf("make the log's cache: %w", err), disk.Close())
	}
	return stores{cache, w, snapshots, disk}, nil
}

// diskLog closes a log with the database of its segments, which the log leaves open
// by itself.
type diskLog struct {
	log  *wal.WAL
	meta *metadb.BoltMetaDB
}

func (d diskLog) Close() error { return errors.Join(d.log.Close(), d.meta.Close()) }

// damaged says what to do about files that can't be read.
func damaged(path string, err error) error {
	return fmt.Errorf("the catalog in %s can't be read: %w; if other nodes of the cluster are up, stop this one, move %s away and join again (containers are kept); if this is the only node, restore it from a backup", path, err, filepath.Dir(path))
}

// Run takes part in the cluster until ctx ends (nil) or this replica can't go on.
//
// Start: stores, streams, raft, then the answering of other nodes. Stop: hand
// leadership over, end the links of others and to others, raft, streams, stores.
func (c *Catalog) Run(ctx context.Context) error {
	st, err := openStores(c.cfg.Dir, c.log)
	if err != nil {
		return err
	}
	err = c.runWith(ctx, st)
	if e := st.closer.Close(); e != nil {
		err = errors.Join(err, fmt.Errorf("close the catalog's log: %w", e))
	}
	return err
}

func (c *Catalog) runWith(ctx context.Context, st stores) error {
	life, end := context.WithCancel(ctx)
	defer end()
	l, err := c.cfg.Wire.Listen(RaftProtocol)
	if err != nil {
		return fmt.Errorf("listen for the catalog's peers: %w", err)
	}
	layer := &streams{Listener: l, wire: c.cfg.Wire, ctx: life}
	trans := newPromptTransport(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: 4, Timeout: ioTimeout, Logger: newRaftLog(c.log),
	}))
	broken := make(chan error, 1)
	machine := &fsm{state: c.state, applied: trans.committed, failed: func(err error) { broken <- err }}
	notify := make(chan bool, 16)
	r, err := c.start(st, trans, machine, notify)
	if err != nil {
		return errors.Join(err, trans.Close())
	}
	c.set(func() { c.raft, c.trans = r, trans })

	g, gctx := errgroup.WithContext(life)
	g.Go(func() error { return c.follow(gctx, r, notify) })
	g.Go(func() error { return c.batches(gctx, r) })
	g.Go(func() error { return c.serve(gctx) })
	g.Go(func() error {
		select {
		case err := <-broken:
			return err
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return c.keepReach(gctx) })
	g.Go(func() error { return c.endAfter(gctx, r) })
	err = g.Wait()
	c.set(func() { c.raft, c.trans = nil, nil })
	c.links.close()
	c.settle(r)
	end()
	layer.open.closeAll()
	trans.giveUp()
	if e := r.Shutdown().Error(); e != nil {
		err = errors.Join(err, fmt.Errorf("stop raft: %w", e))
	}
	return errors.Join(err, trans.Close())
}

// settle waits until raft has answered what it was asked: what is left when it is shut
// down is never answered, and whoever waits for it stays for ever. Raft that shut itself
// down, because the cluster goes on without this node, isn't waited for.
func (c *Catalog) settle(r *raft.Raft) {
	if r.State() == raft.Shutdown {
		return
	}
	done := make(chan struct{})
	go func() {
		c.asked.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopLimit):
		c.log.Warn("raft doesn't answer; shutting it down all the same")
	}
}

// endAfter waits for the end and hands leadership over, so that the others need no
// time-out to notice.
func (c *Catalog) endAfter(ctx context.Context, r *raft.Raft) error {
	<-ctx.Done()
	if r.State() != raft.Leader || len(r.GetConfiguration().Configuration().Servers) < 2 {
		return nil
	}
	f := r.LeadershipTransfer()
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		c.log.Debug("handed leadership over", "error", err)
	case <-time.After(stopLimit):
	}
	return nil
}

func (c *Catalog) start(st stores, trans *promptTransport, m *fsm, notify chan<- bool) (r *raft.Raft, err error) {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(c.cfg.Wire.ID())
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = heartbeat, heartbeat, lease
	cfg.CommitTimeout = commitTimeout
	cfg.SnapshotThreshold, cfg.SnapshotInterval, cfg.TrailingLogs = snapshotThreshold, snapshotEvery, trailingLogs
	cfg.Logger, cfg.NotifyCh = newRaftLog(c.log), notify
	cfg.NoLegacyTelemetry = true
	has, err := raft.HasExistingState(st.logs, st.stable, st.snapshots)
	if err != nil {
		return nil, damaged(c.cfg.Dir, err)
	}
	if err := c.checkReach(st); err != nil {
		return nil, err
	}
	if c.cfg.Bootstrap && !has {
		first := raft.Configuration{Servers: []raft.Server{{
			ID: cfg.LocalID, Address: raft.ServerAddress(cfg.LocalID),
		}}}
		if err := raft.BootstrapCluster(cfg, st.logs, st.stable, st.snapshots, trans, first); err != nil {
			return nil, fmt.Errorf("begin a cluster: %w", err)
		}
	}
	// A log with a hole makes raft panic.
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, damaged(filepath.Join(c.cfg.Dir, "log"), fmt.Errorf("%v", p))
		}
	}()
	r, err = raft.NewRaft(cfg, m, st.logs, st.stable, st.snapshots, trans)
	if err != nil {
		return nil, damaged(filepath.Join(c.cfg.Dir, "snapshots"), err)
	}
	return r, nil
}

// set changes what mu guards and wakes everyone who waits for that.
func (c *Catalog) set(f func()) {
	c.mu.Lock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
}

// Leader is the ID of the node that leads, as far as this one knows.
func (c *Catalog) Leader() (string, bool) {
	c.mu.Lock()
	r := c.raft
	c.mu.Unlock()
	if r == nil {
		return "", false
	}
	_, id := r.LeaderWithID()
	return string(id), id != ""
}

// follow keeps track of leadership, this node's and others'.
func (c *Catalog) follow(ctx context.Context, r *raft.Raft, notify <-chan bool) error {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	defer c.set(func() { c.resign() })
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		select {
		case <-seen:
			c.set(func() {})
		case leads := <-notify:
			c.set(func() { c.resign() })
			if leads {
				tasks.Go(func() { c.takeOver(ctx, r) })
			}
		case <-ctx.Done():
			return nil
		}
		if r.State() == raft.Shutdown {
			return ErrRemoved
		}
	}
}

// resign is called with mu held.
func (c *Catalog) resign() {
	if c.unlead != nil {
		c.unlead()
		c.trans.forgetFollowers()
	}
	c.lead, c.unlead = nil, nil
}

// takeOver lets this node act as leader once it has applied all that leaders before
// it have committed.
func (c *Catalog) takeOver(ctx context.Context, r *raft.Raft) {
	if err := r.Barrier(applyLimit).Error(); err != nil {
		c.log.Debug("leadership ended before it began", "error", err)
		return
	}
	c.set(func() {
		if r.State() != raft.Leader || c.raft != r || ctx.Err() != nil {
			return
		}
		c.resign()
		c.lead, c.unlead = context.WithCancel(ctx)
	})
}

// Lead runs duty whenever this node leads, with a context that ends when it doesn't
// any more. It returns when ctx ends or duty fails while the node still leads.
func (c *Catalog) Lead(ctx context.Context, duty func(context.Context) error) error {
	for {
		c.mu.Lock()
		lead, changed := c.lead, c.changed
		c.mu.Unlock()
		if lead != nil && lead.Err() == nil {
			mine, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(lead, cancel)
			err := duty(mine)
			lost := mine.Err() != nil
			stop()
			cancel()
			if err != nil && !lost {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// leading says whether this node leads.
func (c *Catalog) leading() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leads()
}

// leads is called with mu held.
func (c *Catalog) leads() bool {
	return c.raft != nil && c.lead != nil && c.lead.Err() == nil
}

// asking gives out raft if this node leads. Whoever asks raft for something calls done
// once he has the answer: until then it isn't shut down.
func (c *Catalog) asking() (r *raft.Raft, done func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leads() {
		return nil, nil, false
	}
	c.asked.Add(1)
	return c.raft, c.asked.Done, true
}
