package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	mobynet "github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
)

// place is where a container is to run in the network.
type place struct {
	netns    defaults.Namespace
	endpoint network.Endpoint // zero if it has none of its own
	shares   *ctr             // whose network it shares, if it does
}

// connect finds or makes a container's place in the network.
func (n *Node) connect(ctx context.Context, r record) (place, error) {
	mode := r.HostConfig.NetworkMode
	switch {
	case mode.IsHost():
		return place{netns: defaults.Namespace{Host: true}}, nil
	case mode.IsContainer():
		return n.join(mode.ConnectedContainer())
	}
	q, err := request(r)
	if err != nil {
		return place{}, err
	}
	e, err := n.connectRange(ctx, q, portRanges(r.HostConfig))
	if err != nil {
		return place{}, err
	}
	n.emitNetwork(events.ActionConnect, r, e.NetworkID)
	return place{netns: defaults.Namespace{Path: e.NetnsPath}, endpoint: e}, nil
}

// join is the place of another container, which must run.
func (n *Node) join(ref string) (place, error) {
	other, err := n.index.find(ref)
	if err != nil {
		return place{}, err
	}
	r := other.get()
	if !r.State.live() {
		return place{}, api.Conflict("cannot join network namespace of a non running container: container %s is %s", r.Name, r.State.Status)
	}
	if r.HostConfig.NetworkMode.IsHost() {
		return place{netns: defaults.Namespace{Host: true}, shares: other}, nil
	}
	return place{netns: processNamespace(r.State.Pid, "net"), shares: other}, nil
}

func processNamespace(pid int, kind string) defaults.Namespace {
	return defaults.Namespace{Path: fmt.Sprintf("/proc/%d/ns/%s", pid, kind)}
}

// request asks for what the container's configuration says of the network.
func request(r record) (network.Request, error) {
	mode := r.HostConfig.NetworkMode
	q := network.Request{ContainerID: r.ID, Mode: mode.NetworkName(), Hostname: r.Config.Hostname}
	if r.Config.NetworkDisabled {
		q.Mode = mobynet.NetworkNone
	}
	if e := r.Endpoints[mode.NetworkName()]; e != nil {
		q.MAC = net.HardwareAddr(e.MacAddress)
		if e.IPAMConfig != nil {
			q.Address = e.IPAMConfig.IPv4Address
		}
	}
	if q.Mode == mobynet.NetworkNone {
		return q, nil
	}
	for port, bindings := range r.HostConfig.PortBindings {
		for _, b := range bindings {
			first, _, err := hostPorts(b.HostPort)
			if err != nil {
				return q, err
			}
			q.Ports = append(q.Ports, network.Publish{
				HostIP: b.HostIP, HostPort: first, ContainerPort: port.Num(), Proto: port.Proto(),
			})
		}
		if len(bindings) == 0 {
			q.Ports = append(q.Ports, network.Publish{ContainerPort: port.Num(), Proto: port.Proto()})
		}
	}
	if r.HostConfig.PublishAllPorts {
		for port := range r.Config.ExposedPorts {
			if _, bound := r.HostConfig.PortBindings[port]; !bound {
				q.Ports = append(q.Ports, network.Publish{ContainerPort: port.Num(), Proto: port.Proto()})
			}
		}
	}
	slices.SortFunc(q.Ports, func(a, b network.Publish) int {
		return int(a.ContainerPort) - int(b.ContainerPort)
	})
	return q, nil
}

// hostPorts reads a published port or range; zero is any.
func hostPorts(s string) (first, last uint16, err error) {
	if s == "" {
		return 0, 0, nil
	}
	ports, err := mobynet.ParsePortRange(s)
	if err != nil {
		return 0, 0, api.InvalidArgument("invalid port specification: %q", s)
	}
	return ports.Start(), ports.End(), nil
}

// portRanges are the published ranges of a host, by their first port: one free
// port of each is wanted.
func portRanges(h *container.HostConfig) map[uint16]uint16 {
	ranges := map[uint16]uint16{}
	for _, bindings := range h.PortBindings {
		for _, b := range bindings {
			if first, last, err := hostPorts(b.HostPort); err == nil && last > first {
				ranges[first] = last
			}
		}
	}
	return ranges
}

// connectRange connects. Where a range of host ports was published it goes on
// to the next port while one is taken.
func (n *Node) connectRange(ctx context.Context, q network.Request, ranges map[uint16]uint16) (network.Endpoint, error) {
	type span struct {
		at          int
		first, last uint16
	}
	var spans []span
	for i, p := range q.Ports {
		if last, ok := ranges[p.HostPort]; ok {
			spans = append(spans, span{i, p.HostPort, last})
		}
	}
	e, err := n.network.Connect(ctx, q)
	for _, s := range spans {
		for port := s.first; err != nil && port < s.last && ctx.Err() == nil; {
			port++
			q.Ports[s.at].HostPort = port
			e, err = n.network.Connect(ctx, q)
		}
	}
	return e, err
}

// disconnect frees what connect made; again is no error. It logs a failure: what
// is left is freed when the container starts again or is removed.
func (n *Node) disconnect(ctx context.Context, r record) {
	e, connected := n.network.Endpoint(r.ID)
	if err := n.network.Disconnect(ctx, r.ID); err != nil {
		n.log.Warn("disconnect the container", "container", r.ID, "err", err)
		return
	}
	if connected {
		n.emitNetwork(events.ActionDisconnect, r, e.NetworkID)
	}
}

func (n *Node) emitNetwork(action events.Action, r record, networkID string) {
	name := r.HostConfig.NetworkMode.NetworkName()
	kind := name
	if kind == mobynet.NetworkNone {
		kind = "null"
	}
	if networkID == "" {
		networkID = fixedNetworkID(name)
	}
	n.journal.add(events.NetworkEventType, action, networkID, map[string]string{
		"container": r.ID, "name": name, "type": kind,
	})
}

// portMap tells which host ports answer for the container; ports that are only
// exposed are there without.
func portMap(r record, published []network.Publish) mobynet.PortMap {
	ports := mobynet.PortMap{}
	for p := range r.Config.ExposedPorts {
		ports[p] = nil
	}
	for _, p := range published {
		port, ok := mobynet.PortFrom(p.ContainerPort, p.Proto)
		if !ok {
			continue
		}
		ip := p.HostIP
		if !ip.IsValid() {
			ip = netip.IPv4Unspecified()
		}
		ports[port] = append(ports[port], mobynet.PortBinding{HostIP: ip, HostPort: fmt.Sprint(p.HostPort)})
	}
	return ports
}

// settings is what inspection shows of a container's place in its network.
func settings(asked *mobynet.EndpointSettings, e network.Endpoint, networkID string) *mobynet.EndpointSettings {
	s := asked.Copy()
	if s == nil {
		s = &mobynet.EndpointSettings{}
	}
	s.DriverOpts = maps.Clone(s.DriverOpts)
	s.NetworkID, s.EndpointID = networkID, e.EndpointID
	s.Gateway, s.IPAddress = e.Gateway, e.Address.Addr()
	if e.Address.IsValid() {
		s.IPPrefixLen = e.Address.Bits()
	}
	s.MacAddress = mobynet.HardwareAddr(e.MAC)
	return s
}
