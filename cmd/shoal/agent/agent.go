// Package agent is the long-running process of a node: it makes the parts, connects them and runs them.
package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/server"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/cluster/identity"
	"github.com/shoal-engine/shoal/cmd/shoal/config"
	"github.com/shoal-engine/shoal/node"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/image/registry"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/slack"
	"github.com/shoal-engine/shoal/node/supervisor"
	"github.com/shoal-engine/shoal/transfer/p2p"
	"github.com/shoal-engine/shoal/transfer/pace"
	"github.com/shoal-engine/shoal/transfer/plugin"
)

// timerSlack is how late the agent's timers may be. With more, what one goroutine hands to
// another waits noticeably where processors are busy: Go's scheduler naps, too.
const timerSlack = 250 * time.Microsecond

// Agent is one node. New makes it, Run runs it; it runs once.
type Agent struct {
	cfg     config.Config
	log     *slog.Logger
	version string

	key      ed25519.PrivateKey
	id       string // the peer ID that the key proves
	registry *registry.Client
	images   *image.Store
	network  *network.Network
	node     *node.Node
	front    *front
	peers    *peerSource      // where images come from
	sources  sources          // nodes that blobs came from
	plugins  []*plugin.Plugin // other ways that images come
	gateway  chan netip.Addr

	control, bulk *p2p.Host   // made of one key, on two ports
	limits        pace.Limits // of what is fetched and served
	cluster       *cluster.Cluster
	policy        *access.Policy // who may have what
	member        *tasks         // what a member of a cluster does
	ready         chan struct{}  // closed: in the cluster that the disk tells of
	joined        sync.Once
}

// New makes an agent that has touched nothing yet.
func New(c config.Config, log *slog.Logger, version string) *Agent {
	return &Agent{cfg: c, log: log, version: version, peers: &peerSource{}, gateway: make(chan netip.Addr), ready: make(chan struct{})}
}

// Run runs the node until ctx ends or a part fails. Containers go on afterwards.
//
// The parts start in the order in which they need each other, and a socket opens
// only when what it serves is there.
func (a *Agent) Run(ctx context.Context) error {
	held, err := lock(ctx, a.cfg.Data)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := slack.Set(timerSlack); err != nil {
		a.log.Debug("the agent is woken more often than need be", "err", err)
	}
	if err := makeDirs(a.cfg); err != nil {
		return err
	}
	if err := spendReserve(a.cfg.Data); err != nil {
		a.log.Warn("the start may fail for want of space", "err", err)
	}
	if err := a.build(ctx); err != nil {
		return err
	}
	defer a.close()
	if err := keepReserve(a.cfg.Data); err != nil {
		a.log.Warn("the next start may fail for want of space", "err", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.images.Run(ctx) })
	g.Go(func() error { return a.runPlugins(ctx) })
	g.Go(func() error { return a.network.Run(ctx) })
	g.Go(func() error { return a.node.Run(ctx) })
	g.Go(func() error { return a.serveNames(ctx) })
	g.Go(func() error { return a.serveDistribution(ctx) })
	g.Go(func() error { return a.serve(ctx, a.cfg.NodeSocket(), a.nodeHandler(a.own())) })
	g.Go(func() error { return a.runCluster(ctx) })
	g.Go(func() error { return a.serveCluster(ctx) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil // asked to end
	}
	return err
}

// serveCluster opens the cluster's socket: at once on a host that is in none, else
// when the host is in it again, so that nobody is told of an engine that isn't there.
func (a *Agent) serveCluster(ctx context.Context) error {
	_, err := identity.LoadState(a.cfg.Data)
	if err == nil {
		select {
		case <-a.ready:
		case <-ctx.Done():
			return nil
		}
	}
	return a.serve(ctx, a.cfg.Socket(), a.front)
}

// close lets go of what build took.
func (a *Agent) close() {
	for what, err := range map[string]error{
		"control": a.control.Close(), "bulk": a.bulk.Close(), "images": a.images.Close(), "registries": a.registry.Close(),
		"network": a.network.Close(),
	} {
		if err != nil {
			a.log.Warn("not closed in order", "part", what, "err", err)
		}
	}
}

// build makes the parts of the node itself.
func (a *Agent) build(ctx context.Context) (err error) {
	data := func(name string) string { return filepath.Join(a.cfg.Data, name) }
	if a.key, err = identity.Key(a.cfg.Data); err != nil {
		return fmt.Errorf("the node's identity: %w", err)
	}
	a.id = p2p.PeerID(a.key.Public().(ed25519.PublicKey))
	if a.limits, err = a.cfg.Transfer.Limits(); err != nil {
		return err
	}
	a.registry, err = registry.New(registry.Config{
		Mirrors: a.cfg.Registry.Mirrors, Insecure: a.cfg.Registry.Insecure, Limit: a.limits.Conn, UserAgent: "shoal/" + a.version, Logger: a.log,
	})
	if err != nil {
		return err
	}
	fetchers, err := a.buildPlugins(data("plugins"))
	if err != nil {
		return err
	}
	a.images, err = image.Open(image.Config{
		Root: data("images"), Fetchers: fetchers, Resolve: a.resolveImage, Allow: a.mayHold, Registry: a.registry,
		Through: a.peers.through, Logger: a.log, Early: a.early(),
	})
	if err != nil {
		return err
	}
	if err := a.buildNetwork(data("network")); err != nil {
		return fmt.Errorf("the containers' network: %w", err)
	}
	if a.cfg.Runtime.FavorDynMods {
		if err := supervisor.FavorDynMods(); err != nil {
			a.log.Warn("containers start without favordynmods", "error", err)
		}
	}
	runtime, err := supervisor.Connect(ctx, supervisor.Config{Dir: data("supervisor"), RunDir: a.cfg.Run, Logger: a.log})
	if err != nil {
		return err
	}
	a.node, err = node.New(node.Config{
		Root: data("node"), ID: a.id, Name: a.cfg.Name, Images: witness{a.images, &a.sources}, Network: a.network, Runtime: runtime,
		Logger: a.log, Version: a.version, Labels: labels(a.cfg.Tags),
	})
	if err != nil {
		return fmt.Errorf("the node: %w", err)
	}
	return a.buildCluster()
}

func (a *Agent) buildNetwork(root string) error {
	pool, err := netip.ParsePrefix(a.cfg.Network.Pool)
	if err != nil {
		return err
	}
	host, err := netip.ParseAddr(a.cfg.Advertise)
	if err != nil {
		return err
	}
	// The first slice, until a cluster leases this node one.
	slice := netip.PrefixFrom(pool.Masked().Addr(), 24)
	a.network, err = network.New(network.Config{
		Root: root, RunDir: filepath.Join(a.cfg.Run, "netns"), Scope: Scope(a.cfg.Data), Subnet: slice, ClusterSubnet: pool,
		MTU: a.cfg.Network.MTU, Host: host, VXLANPort: a.cfg.Ports.VXLAN, Logger: a.log,
	})
	return err
}

// nodeHandler serves this node alone; extra serves what is Shoal's own.
func (a *Agent) nodeHandler(extra http.Handler) http.Handler {
	return a.handlerOf(a.node, extra)
}

func (a *Agent) handlerOf(e api.Engine, extra http.Handler) http.Handler {
	return server.New(server.Config{Engine: e, Logger: a.log, Version: a.version, Extra: extra})
}

// serve opens a unix socket and serves it until ctx ends.
func (a *Agent) serve(ctx context.Context, path string, h http.Handler) error {
	l, err := listen(path, a.cfg.SocketGroup)
	if err != nil {
		return err
	}
	return server.Wrap(h, a.log).Run(ctx, l)
}

func labels(tags map[string]string) []string {
	var out []string
	for k, v := range tags {
		out = append(out, k+"="+v)
	}
	return out
}
