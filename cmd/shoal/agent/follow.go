package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	mobynet "github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/node/network"
)

// plan is what this host's kernel and connections should be like, as far as the
// catalog decides it.
type plan struct {
	routes   []network.Route
	forwards []network.Forward
	peers    map[string][]string // by node ID, where its blobs are served
}

// planFor reads the plan of one node out of a view.
func planFor(v catalog.View, self string) plan {
	p := plan{peers: map[string][]string{}}
	for _, n := range v.Nodes() {
		if n.ID == self {
			continue
		}
		p.peers[n.ID] = n.Bulk
		if n.Subnet.IsValid() && n.Host.IsValid() {
			p.routes = append(p.routes, network.Route{NodeID: n.ID, Host: n.Host, Subnet: n.Subnet})
		}
	}
	for _, c := range v.Containers() {
		// A container that is lost keeps its forwards: what can't be reached refuses
		// connections by itself, and one whose agent alone died still serves.
		c.Lost = false
		if c.NodeID == self || c.Denied || !discovery.Up(&c) {
			continue
		}
		i := slices.IndexFunc(c.Addresses, netip.Addr.Is4)
		if i < 0 {
			continue
		}
		for _, port := range c.Ports {
			if port.HostPort == 0 || (port.HostIP.IsValid() && !port.HostIP.IsUnspecified()) {
				continue
			}
			p.forwards = append(p.forwards, network.Forward{
				Publish: network.Publish{HostPort: port.HostPort, ContainerPort: port.ContainerPort, Proto: mobynet.IPProtocol(port.Proto)},
				Target:  netip.AddrPortFrom(c.Addresses[i], port.ContainerPort),
			})
		}
	}
	slices.SortFunc(p.forwards, func(a, b network.Forward) int { return a.Target.Compare(b.Target) })
	return p
}

// fabric is what a plan changes.
type fabric interface {
	SetRoutes(ctx context.Context, routes []network.Route) error
	SetForwards(ctx context.Context, forwards []network.Forward) error
}

// peerBook is where addresses of other nodes are kept.
type peerBook interface {
	SetPeer(id string, addrs []string)
	ForgetPeer(id string)
}

// follow keeps the host as the catalog wants it, until ctx ends. What fails is
// tried again, at the next change or after a moment.
func follow(ctx context.Context, r catalog.Reader, self string, net fabric, bulk peerBook, log *slog.Logger) error {
	var done plan
	const retry = 5 * time.Second
	for {
		view := r.View()
		want := planFor(view, self)
		err := apply(ctx, &done, want, net, bulk)
		if err != nil && ctx.Err() == nil {
			log.Warn("the host's network is not as the cluster wants it; trying again", "err", err)
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if err != nil {
			wait, cancel = context.WithTimeout(ctx, retry)
		}
		err = r.Wait(wait, view.Index())
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// apply makes only the changes that differ from what was done.
func apply(ctx context.Context, done *plan, want plan, net fabric, bulk peerBook) error {
	for id := range done.peers {
		if _, still := want.peers[id]; !still {
			bulk.ForgetPeer(id)
		}
	}
	for id, addrs := range want.peers {
		if !slices.Equal(done.peers[id], addrs) {
			bulk.SetPeer(id, addrs)
		}
	}
	done.peers = maps.Clone(want.peers)
	if !slices.Equal(done.routes, want.routes) {
		if err := net.SetRoutes(ctx, want.routes); err != nil {
			return err
		}
		done.routes = want.routes
	}
	if !reflect.DeepEqual(done.forwards, want.forwards) {
		if err := net.SetForwards(ctx, want.forwards); err != nil {
			return err
		}
		done.forwards = want.forwards
	}
	return nil
}
