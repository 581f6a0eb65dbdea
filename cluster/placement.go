package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/scheduler"
)

// schedule is a catalog's view as the scheduler sees it.
func (r *Router) schedule(v catalog.View) scheduler.View {
	lost := lostNodes(v)
	at := map[string]int{}
	var out scheduler.View
	for _, n := range v.Nodes() {
		at[n.ID] = len(out.Nodes)
		out.Nodes = append(out.Nodes, scheduler.NodeInfo{
			ID: n.ID, Name: n.Name, Tags: n.Tags, OS: n.OS, Arch: n.Arch, CPUs: n.CPUs, Memory: n.Memory,
			Images: map[string]bool{}, Reachable: n.ID == r.self || !lost(n.ID),
		})
	}
	for _, c := range v.Containers() {
		i, ok := at[c.NodeID]
		if !ok {
			continue
		}
		n := &out.Nodes[i]
		n.Containers = append(n.Containers, scheduler.ContainerInfo{ID: c.ID, Name: c.Name, Tags: c.Tags})
		if catalog.Live(c.State) || c.State == "" || c.State == container.StateCreated {
			n.Running++
			n.Reserved += c.Memory
		}
	}
	for _, img := range clusterImages(v) {
		for node := range img.holders {
			i, ok := at[node]
			if !ok {
				continue
			}
			for _, s := range append(slices.Clone(img.names), img.id, img.digest) {
				out.Nodes[i].Images[s] = true
			}
		}
	}
	return out
}

// pins are the nodes that a container must be on because of what it shares: the files
// and addresses of this host, or another container.
func (r *Router) pins(v catalog.View, p *creation) ([]scheduler.Pin, error) {
	var pins []scheduler.Pin
	for _, b := range p.HostConfig.Binds {
		source, _, named := strings.Cut(b, ":")
		if named && strings.HasPrefix(source, "/") {
			pins = append(pins, scheduler.Pin{NodeID: r.self, Why: "it took the request, which mounts " + source + " of its host"})
		}
	}
	for _, name := range p.asked() {
		pins = append(pins, r.volumePin(v, name)...)
	}
	for _, m := range p.HostConfig.Mounts {
		if m.Type == mount.TypeBind {
			pins = append(pins, scheduler.Pin{NodeID: r.self, Why: "it took the request, which mounts " + m.Source + " of its host"})
		}
	}
	for _, port := range p.claim.Ports {
		if port.HostIP.IsValid() && !port.HostIP.IsUnspecified() {
			pins = append(pins, addressPin(v, r.self, port.HostIP))
		}
	}
	for _, s := range shared(p.HostConfig) {
		c, err := v.Container(s.ref)
		if err != nil {
			return nil, err
		}
		pins = append(pins, scheduler.Pin{NodeID: c.NodeID, Why: s.why + " container " + c.Name})
	}
	return pins, nil
}

// volumePin is the node that a named volume is on.
func (r *Router) volumePin(v catalog.View, name string) []scheduler.Pin {
	for _, x := range r.volumesNamed(v, name) {
		return []scheduler.Pin{{NodeID: x.NodeID, Why: "volume " + name + " is there"}}
	}
	return nil
}

// addressPin is the node that has an address; an address of nobody, such as the
// loopback one, is this node's.
func addressPin(v catalog.View, self string, ip netip.Addr) scheduler.Pin {
	for _, n := range v.Nodes() {
		if n.Host == ip {
			return scheduler.Pin{NodeID: n.ID, Why: fmt.Sprintf("address %s is its own", ip)}
		}
	}
	return scheduler.Pin{NodeID: self, Why: fmt.Sprintf("it took the request, which publishes a port at %s", ip)}
}

// share is a container that another one is tied to.
type share struct{ ref, why string }

func shared(h *container.HostConfig) []share {
	var out []share
	for mode, why := range map[string]string{
		string(h.NetworkMode): "it shares the network of",
		string(h.IpcMode):     "it shares the IPC namespace of",
		string(h.PidMode):     "it shares the processes of",
	} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			out = append(out, share{ref, why})
		}
	}
	for _, from := range h.VolumesFrom {
		ref, _, _ := strings.Cut(from, ":")
		out = append(out, share{ref, "it shares the volumes of"})
	}
	for _, link := range h.Links {
		ref, _, _ := strings.Cut(link, ":")
		out = append(out, share{ref, "it is linked to"})
	}
	slices.SortFunc(out, func(a, b share) int { return strings.Compare(a.why+a.ref, b.why+b.ref) })
	return out
}

// ports are what a container publishes, with HostPort 0 for those to be chosen.
func (r *Router) ports(ctx context.Context, p *creation) ([]catalog.Port, error) {
	var out []catalog.Port
	for port, bindings := range p.HostConfig.PortBindings {
		for _, b := range bindings {
			host, err := r.hostPort(b.HostPort, string(port.Proto()))
			if err != nil {
				return nil, err
			}
			out = append(out, catalog.Port{HostIP: b.HostIP, HostPort: host, ContainerPort: port.Num(), Proto: string(port.Proto())})
		}
	}
	if p.HostConfig.PublishAllPorts {
		exposed, err := r.exposed(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, port := range exposed {
			if len(p.HostConfig.PortBindings[port]) == 0 {
				out = append(out, catalog.Port{ContainerPort: port.Num(), Proto: string(port.Proto())})
			}
		}
	}
	slices.SortFunc(out, func(a, b catalog.Port) int {
		return strings.Compare(portText(a), portText(b))
	})
	return out, nil
}

func portText(p catalog.Port) string {
	return fmt.Sprintf("%05d/%s/%s/%05d", p.ContainerPort, p.Proto, p.HostIP, p.HostPort)
}

// hostPort reads a binding's port; of a range it takes the first that looks free.
func (r *Router) hostPort(s, proto string) (uint16, error) {
	if s == "" {
		return 0, nil
	}
	from, to, ranged := strings.Cut(s, "-")
	low, err := strconv.ParseUint(from, 10, 16)
	high := low
	if err == nil && ranged {
		high, err = strconv.ParseUint(to, 10, 16)
	}
	if err != nil || high < low {
		return 0, api.InvalidArgument("invalid port specification: %q", s)
	}
	if low == high {
		return uint16(low), nil
	}
	taken := map[uint16]bool{}
	for _, c := range r.reader.View().Containers() {
		for _, p := range c.Ports {
			taken[p.HostPort] = taken[p.HostPort] || p.Proto == proto
		}
	}
	for n := low; n <= high; n++ {
		if !taken[uint16(n)] {
			return uint16(n), nil
		}
	}
	return uint16(low), nil
}

// exposed are the ports that a container and its image expose.
func (r *Router) exposed(ctx context.Context, p *creation) ([]network.Port, error) {
	set := map[network.Port]bool{}
	for port := range p.Config.ExposedPorts {
		set[port] = true
	}
	i, err := r.InspectImage(ctx, p.image.id, api.ImageInspectOptions{})
	if err != nil {
		return nil, err
	}
	if i.Config != nil {
		for s := range i.Config.ExposedPorts {
			if port, err := network.ParsePort(s); err == nil {
				set[port] = true
			}
		}
	}
	var out []network.Port
	for port := range set {
		out = append(out, port)
	}
	slices.SortFunc(out, func(a, b network.Port) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// bound is a host configuration with the ports that were claimed.
func bound(h *container.HostConfig, ports []catalog.Port) *container.HostConfig {
	out := *h
	out.PublishAllPorts = false
	if len(ports) == 0 {
		return &out
	}
	out.PortBindings = network.PortMap{}
	for _, p := range ports {
		port, ok := network.PortFrom(p.ContainerPort, network.IPProtocol(p.Proto))
		if !ok {
			continue // claimed ports have a protocol
		}
		out.PortBindings[port] = append(out.PortBindings[port], network.PortBinding{
			HostIP: p.HostIP, HostPort: strconv.Itoa(int(p.HostPort)),
		})
	}
	return &out
}
