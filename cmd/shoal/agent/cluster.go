package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/server"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/membership"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p"
)

// apiProtocol carries Docker's API to a node's own engine, over the control host.
const apiProtocol = "/shoal/api/1"

// buildCluster makes the two hosts and this node's part in a cluster, if it gets
// into one.
func (a *Agent) buildCluster() (err error) {
	allow := func(peerID, protocol string) bool { return a.cluster.Allow(peerID, protocol) }
	if a.control, err = a.host(a.cfg.Ports.Control, allow, false); err != nil {
		return fmt.Errorf("listen to other nodes, setting ports.control: %w", err)
	}
	if a.bulk, err = a.host(a.cfg.Ports.Bulk, allow, true); err != nil {
		return fmt.Errorf("listen to other nodes, setting ports.bulk: %w", err)
	}
	pool, err := netip.ParsePrefix(a.cfg.Network.Pool)
	if err != nil {
		return err
	}
	a.cluster = cluster.New(cluster.Config{
		Dir: a.cfg.Data, Self: a.self(), Wire: a.control, Members: a.gossip, Local: a.node, Peer: a.peerEngines(),
		Subnet: pool, OnChange: a.changed, Logger: a.log,
	})
	a.front = newFront(a.clusterHandler(), a.cluster.Reader())
	a.policy = access.New(func() catalog.View { return a.cluster.Reader().View() }, a.images)
	a.peers.now.Store(transfer.NewPeers(transfer.PeersConfig{
		Self: a.id, Dial: a.dialBulk, DialBeside: a.dialBeside,
		Locator: locator{a.front, func(ctx context.Context) error { return a.cluster.Store().Sync(ctx) }},
		Members: a.members, Allow: a.mayServe, Chunks: filepath.Join(a.cfg.Data, "chunks"),
		Logger: a.log, OnFetched: a.fetched, OnBytes: a.sources.count,
		OnWrongBytes: func(peer string, d digest.Digest, proven bool) {
			a.log.Error("a peer sent bytes that are not the blob's", "peer", a.nodeName(peer), "digest", d, "proven", proven)
		},
	}))
	return nil
}

// dialBulk opens a stream for blobs to another node.
func (a *Agent) dialBulk(ctx context.Context, id string) (net.Conn, error) {
	conn, err := a.bulk.Dial(ctx, id, transfer.Protocol)
	if err != nil {
		return nil, err
	}
	return a.limits.Conn(conn), nil
}

// dialBeside is dialBulk over a connection of its own.
func (a *Agent) dialBeside(ctx context.Context, id string) (net.Conn, error) {
	conn, err := a.bulk.DialBeside(ctx, id, transfer.Protocol)
	if err != nil {
		return nil, err
	}
	return a.limits.Conn(conn), nil
}

func (a *Agent) host(port uint16, allow func(peerID, protocol string) bool, background bool) (*p2p.Host, error) {
	return p2p.New(p2p.Config{Key: a.key, Listen: []string{a.address(port)}, Allow: allow, Background: background, Logger: a.log})
}

func (a *Agent) address(port uint16) string {
	return net.JoinHostPort(a.cfg.Advertise, fmt.Sprint(port))
}

// self is what this node says about itself.
func (a *Agent) self() catalog.Node {
	n := catalog.Node{
		ID: a.id, Name: a.cfg.Name, Host: netip.MustParseAddr(a.cfg.Advertise), // validated with the configuration
		Control: a.control.Addrs(), Bulk: a.bulk.Addrs(), Gossip: a.address(a.cfg.Ports.Gossip),
		OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Tags: a.cfg.Tags, Version: a.version,
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		n.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	return n
}

func (a *Agent) gossip(key []byte) (cluster.Members, error) {
	return membership.New(membership.Config{
		ID: a.id, Name: a.cfg.Name, Bind: a.address(a.cfg.Ports.Gossip), Key: key, Logger: a.log,
	})
}

// peerEngines gives the engines of other nodes; each keeps its connections.
func (a *Agent) peerEngines() func(context.Context, string) (api.Engine, error) {
	var mu sync.Mutex
	engines := map[string]api.Engine{}
	return func(_ context.Context, id string) (api.Engine, error) {
		mu.Lock()
		defer mu.Unlock()
		if e, ok := engines[id]; ok {
			return e, nil
		}
		e := client.New(client.Config{
			Dial:      func(ctx context.Context) (net.Conn, error) { return a.control.Dial(ctx, id, apiProtocol) },
			UserAgent: "shoal/" + a.version,
		})
		engines[id] = e
		return e, nil
	}
}

// runCluster serves other nodes and takes part in a cluster, until ctx ends.
func (a *Agent) runCluster(ctx context.Context) error {
	calls, err := a.control.Listen(apiProtocol)
	if err != nil {
		return fmt.Errorf("serve other nodes' calls: %w", err)
	}
	blobs, err := a.bulk.Listen(transfer.Protocol)
	if err != nil {
		return fmt.Errorf("serve blobs: %w", err)
	}
	blobs = a.limits.Listener(blobs)
	g, ctx := errgroup.WithContext(ctx)
	a.member = newTasks(ctx)
	g.Go(func() error { return server.Wrap(a.peerHandler(), a.log).Run(ctx, calls) })
	peers := a.peers.now.Load()
	a.images.OnChange(func(string, string, string) { peers.Changed() })
	g.Go(func() error { return peers.Serve(ctx, blobs, a.images) })
	g.Go(func() error { peers.Prepare(ctx, a.images); return nil })
	g.Go(func() error { return access.Follow(ctx, a.front, peers.Review) })
	g.Go(func() error { return a.cluster.Run(ctx) })
	err = g.Wait()
	a.member.stop()
	return err
}

// changed makes the host fit for the cluster it has come into, or for none.
func (a *Agent) changed(member bool) {
	a.member.stop()
	a.front.show(a.clusterHandler(), a.cluster.Reader())
	if !member {
		return
	}
	a.member.start(func(ctx context.Context) {
		if err := a.useSlice(ctx); err != nil {
			a.log.Error("containers here can't be reached from other nodes", "err", err)
		}
		if err := follow(ctx, a.cluster.Reader(), a.id, a.network, a.bulk, a.log); err != nil {
			a.log.Error("the host does not follow the cluster any more", "err", err)
		}
	})
	a.joined.Do(func() { close(a.ready) })
}

// useSlice gives containers addresses of the slice that the catalog leased this node.
func (a *Agent) useSlice(ctx context.Context) error {
	self, ok := a.cluster.Reader().View().Node(a.id)
	if !ok || !self.Subnet.IsValid() {
		return fmt.Errorf("the catalog leases this node no addresses")
	}
	pool, err := netip.ParsePrefix(a.cfg.Network.Pool)
	if err != nil {
		return err
	}
	if !pool.Contains(self.Subnet.Addr()) {
		return fmt.Errorf("the cluster's addresses, such as %s, are not in this node's network.pool %s: set it to the pool the cluster was made with", self.Subnet, pool)
	}
	if err := a.network.SetSubnet(ctx, self.Subnet, pool); err != nil {
		return err
	}
	select {
	case a.gateway <- a.network.Info().Gateway:
	case <-ctx.Done():
	}
	return nil
}

// clusterHandler serves the engine there is now, with Shoal's own words.
func (a *Agent) clusterHandler() http.Handler {
	mux := http.NewServeMux()
	look := discovery.Handler(a.cluster.Reader(), a.log)
	for _, path := range []string{"resolve", "watch", "catalog"} {
		mux.Handle("/shoal/v1/"+path, look)
	}
	mux.HandleFunc("POST /shoal/v1/images/verify", a.serveVerify)
	mux.Handle("/shoal/", a.cluster.Handler())
	return server.New(server.Config{Engine: a.cluster.Engine(), Logger: a.log, Version: a.version, Extra: mux})
}

// fetched logs a blob's journey.
func (a *Agent) fetched(d digest.Digest, size int64, byPeer map[string]int64, took time.Duration) {
	a.sources.add(d, byPeer)
	from := make([]string, 0, len(byPeer)+1)
	other := size // a registry's, or this node's own
	for id, n := range byPeer {
		other -= n
		from = append(from, fmt.Sprintf("%s:%d", a.nodeName(id), n))
	}
	slices.Sort(from)
	if other > 0 {
		from = append(from, fmt.Sprintf("no node:%d", other))
	}
	a.log.Info("blob fetched", "digest", d.Encoded()[:12], "bytes", size, "took", took, "from", strings.Join(from, ","))
}

// nodeName is what people call a node.
func (a *Agent) nodeName(id string) string {
	if n, ok := a.front.View().Node(id); ok {
		return n.Name
	}
	return id
}
