package cluster

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// ListContainers implements api.Observers. It reads the catalog, so it answers
// whatever the nodes and the leader do; only sizes are asked of the nodes.
func (r *Router) ListContainers(ctx context.Context, o api.ListOptions) ([]container.Summary, error) {
	r.sync(ctx, listSync)
	v := r.reader.View()
	now := time.Now()
	o.Filters = r.ancestors(v, o.Filters)
	found, err := listing.Containers(summaries(v, now), o)
	if err != nil || !o.Size {
		return found, err
	}
	return found, r.fillSizes(ctx, found)
}

// summaries are all containers of a view as docker ps shows them, newest first.
func summaries(v catalog.View, now time.Time) []container.Summary {
	cs := v.Containers()
	out := make([]container.Summary, len(cs))
	for i := range cs {
		out[i] = summary(v, &cs[i], now)
	}
	return out
}

func summary(v catalog.View, c *catalog.Container, now time.Time) container.Summary {
	s := c.Summary
	s.State = cmp.Or(c.State, container.StateCreated)
	var health container.HealthStatus
	if s.Health != nil {
		health = s.Health.Status
	}
	s.Status = listing.Status(s.State, c.Started, c.Finished, c.ExitCode, health, now)
	if c.Lost {
		name := c.NodeID
		if n, ok := v.Node(c.NodeID); ok {
			name = n.Name
		}
		s.Status += " (Unreachable: node " + name + ")"
	}
	if c.Denied {
		s.Ports = unpublished(s.Ports)
	}
	if s.Ports == nil {
		s.Ports = []container.PortSummary{}
	}
	if s.Mounts == nil {
		s.Mounts = []container.MountPoint{}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.NetworkSettings == nil {
		s.NetworkSettings = &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{}}
	}
	return s
}

// unpublished are ports as they are shown where nothing leads to them.
func unpublished(ports []container.PortSummary) []container.PortSummary {
	var out []container.PortSummary
	for _, p := range ports {
		out = append(out, container.PortSummary{PrivatePort: p.PrivatePort, Type: p.Type})
	}
	return slices.Compact(out)
}

// ancestors adds what references mean in the cluster to an ancestor filter.
func (r *Router) ancestors(v catalog.View, f api.Filters) api.Filters {
	if !f.Has("ancestor") {
		return f
	}
	more := api.Filters{}
	for k, vs := range f {
		more[k] = slices.Clone(vs)
	}
	for _, ref := range f["ancestor"] {
		if img, err := resolveImage(v, ref); err == nil {
			more["ancestor"] = append(more["ancestor"], img.id)
		}
	}
	return more
}

// fillSizes asks the nodes of the containers shown for their sizes. What can't be
// asked stays without one.
func (r *Router) fillSizes(ctx context.Context, shown []container.Summary) error {
	var mu sync.Mutex
	sizes := map[string]container.Summary{}
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.ListContainers(ctx, api.ListOptions{All: true, Size: true})
		mu.Lock()
		defer mu.Unlock()
		for _, s := range part {
			sizes[s.ID] = s
		}
		return err
	})
	for i := range shown {
		shown[i].SizeRw, shown[i].SizeRootFs = sizes[shown[i].ID].SizeRw, sizes[shown[i].ID].SizeRootFs
	}
	return err
}

// ListNetworks implements api.Networks: every node has the same ones.
func (r *Router) ListNetworks(ctx context.Context, f api.Filters) ([]network.Inspect, error) {
	e, err := r.local(ctx)
	if err != nil {
		return nil, err
	}
	return e.ListNetworks(ctx, f)
}

// InspectNetwork implements api.Networks: the local network with the containers of
// all nodes.
func (r *Router) InspectNetwork(ctx context.Context, id string, o api.NetworkInspectOptions) (network.Inspect, error) {
	e, err := r.local(ctx)
	if err != nil {
		return network.Inspect{}, err
	}
	n, err := e.InspectNetwork(ctx, id, o)
	if err != nil {
		return n, err
	}
	r.sync(ctx, listSync)
	v := r.reader.View()
	all := map[string]network.EndpointResource{}
	for _, c := range v.Containers() {
		if !listing.Running(c.State) || c.Summary.NetworkSettings == nil {
			continue
		}
		if ep := c.Summary.NetworkSettings.Networks[n.Name]; ep != nil {
			all[c.ID] = resource(c.Name, ep)
		}
	}
	n.Containers = all
	return n, nil
}

func resource(name string, ep *network.EndpointSettings) network.EndpointResource {
	out := network.EndpointResource{Name: name, EndpointID: ep.EndpointID, MacAddress: ep.MacAddress}
	if ep.IPAddress.IsValid() {
		out.IPv4Address = netip.PrefixFrom(ep.IPAddress, ep.IPPrefixLen)
	}
	if ep.GlobalIPv6Address.IsValid() {
		out.IPv6Address = netip.PrefixFrom(ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen)
	}
	return out
}
