package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// look reads the containers with these IDs, or all for nil, as the catalog wants them.
func (p *Publisher) look(ctx context.Context, ids []string) (map[string]catalog.Container, error) {
	o := api.ListOptions{All: true}
	if ids != nil {
		o.Filters = api.Filters{"id": ids}
	}
	before := p.store.View()
	listed, err := p.local.ListContainers(ctx, o)
	if err != nil {
		return nil, err
	}
	out := map[string]catalog.Container{}
	for _, s := range listed {
		i, err := p.local.InspectContainer(ctx, s.ID, api.InspectOptions{})
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c := p.record(s, i)
		// A name that is seen here is at least as new as that (see renames).
		if known, err := before.Container(s.ID); err == nil {
			c.Renames = known.Renames
		}
		out[s.ID] = c
	}
	return out, nil
}

// record is what the catalog keeps of a container.
func (p *Publisher) record(s container.Summary, i container.InspectResponse) catalog.Container {
	s.Status, s.SizeRw, s.SizeRootFs = "", 0, 0 // computed when shown
	c := catalog.Container{
		ID: s.ID, Name: strings.TrimPrefix(i.Name, "/"), NodeID: p.node, Summary: s, State: s.State,
		Created: moment(i.Created),
	}
	if c.Created.IsZero() {
		c.Created = time.Unix(s.Created, 0).UTC()
	}
	if i.State != nil {
		c.State = i.State.Status
		c.Summary.State = i.State.Status
		c.Started, c.Finished, c.ExitCode = moment(i.State.StartedAt), moment(i.State.FinishedAt), i.State.ExitCode
		c.Healthy = i.State.Running && healthy(i.State.Health)
	}
	if i.HostConfig != nil {
		c.Memory = i.HostConfig.Memory
		c.Ports = publishedPorts(i.HostConfig.PortBindings)
	}
	if i.NetworkSettings != nil && len(i.NetworkSettings.Ports) > 0 {
		if actual := publishedPorts(i.NetworkSettings.Ports); len(actual) > 0 {
			c.Ports = actual
		}
	}
	if catalog.Live(c.State) {
		c.Addresses = p.addresses(i)
	}
	return c
}

// moment reads a time as inspection writes it; the zero time for "never".
func moment(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t.UTC()
}

func healthy(h *container.Health) bool {
	return h == nil || h.Status == container.NoHealthcheck || h.Status == "" || h.Status == container.Healthy
}

// publishedPorts are the ports of a port map that have a number on the host.
func publishedPorts(m network.PortMap) []catalog.Port {
	var out []catalog.Port
	for port, bindings := range m {
		for _, b := range bindings {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || n == 0 {
				continue
			}
			p := catalog.Port{HostIP: b.HostIP, HostPort: uint16(n), ContainerPort: port.Num(), Proto: string(port.Proto())}
			if b.HostIP.IsValid() && b.HostIP.IsUnspecified() {
				p.HostIP = netip.Addr{} // 0.0.0.0 and :: together are "everywhere"
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b catalog.Port) int { return strings.Compare(portText(a), portText(b)) })
	return slices.Compact(out)
}

// addresses are where a running container is reached from every node: its own, its
// host's, or those of the container whose network it shares.
func (p *Publisher) addresses(i container.InspectResponse) []netip.Addr {
	var out []netip.Addr
	v := p.store.View()
	if i.HostConfig != nil && i.HostConfig.NetworkMode.IsHost() {
		if n, ok := v.Node(p.node); ok && n.Host.IsValid() {
			return []netip.Addr{n.Host}
		}
	}
	if i.HostConfig != nil && i.HostConfig.NetworkMode.IsContainer() {
		if c, err := v.Container(i.HostConfig.NetworkMode.ConnectedContainer()); err == nil {
			return c.Addresses
		}
	}
	if i.NetworkSettings == nil {
		return nil
	}
	for _, ep := range i.NetworkSettings.Networks {
		for _, ip := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
			if ip.IsValid() {
				out = append(out, ip)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
