package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Endpoint is an address and port at which a running, healthy container serves.
type Endpoint struct {
	Name    string     `json:"name"` // of the container
	ID      string     `json:"id"`
	Node    string     `json:"node"` // the node's name
	NodeID  string     `json:"nodeID"`
	Address netip.Addr `json:"address"` // the container's own, reached from every node
	Port    uint16     `json:"port"`
	Proto   string     `json:"proto"`
	// Published is where the node that runs the container serves the port to
	// everybody; invalid if it isn't published.
	Published netip.AddrPort    `json:"published,omitzero"`
	Tags      map[string]string `json:"tags,omitempty"`
	Since     time.Time         `json:"since"` // when the container started
}

// Port is what a container declares: published, or exposed by its image.
type Port struct {
	Number    uint16
	Proto     string         // "tcp", "udp" or "sctp"
	Published netip.AddrPort // invalid if not published
}

// Up says whether a container's name leads to it: it runs, paused or not, on a
// node that is reached.
func Up(c *catalog.Container) bool {
	return !c.Lost && len(c.Addresses) > 0 &&
		(c.State == container.StateRunning || c.State == container.StatePaused)
}

// Ready says whether a container serves: it runs, is healthy, and its node is reached.
func Ready(c *catalog.Container) bool {
	return Up(c) && c.State == container.StateRunning && c.Healthy
}

// Ports lists the ports a container declares, by number and protocol, each once.
// Where one is published more than once, the lowest host port counts; host
// addresses that other hosts can't use (loopback) don't.
func Ports(c *catalog.Container, host netip.Addr) []Port {
	var ports []Port
	for _, p := range c.Ports {
		outside := published(p.HostIP, p.HostPort, host)
		if c.Denied {
			outside = netip.AddrPort{}
		}
		ports = append(ports, Port{p.ContainerPort, proto(p.Proto), outside})
	}
	for _, p := range c.Summary.Ports {
		ports = append(ports, Port{p.PrivatePort, proto(p.Type), netip.AddrPort{}})
	}
	ports = slices.DeleteFunc(ports, func(p Port) bool { return p.Number == 0 })
	slices.SortFunc(ports, func(a, b Port) int {
		if c := cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Proto, b.Proto)); c != 0 {
			return c
		}
		if a.Published.IsValid() != b.Published.IsValid() {
			if a.Published.IsValid() {
				return -1
			}
			return 1
		}
		return a.Published.Compare(b.Published)
	})
	return slices.CompactFunc(ports, func(a, b Port) bool { return a.Number == b.Number && a.Proto == b.Proto })
}

func proto(s string) string {
	if s == "" {
		return "tcp"
	}
	return s
}

func published(ip netip.Addr, port uint16, host netip.Addr) netip.AddrPort {
	switch {
	case port == 0 || ip.IsLoopback():
		return netip.AddrPort{}
	case !ip.IsValid() || ip.IsUnspecified():
		ip = host
	}
	if !ip.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, port)
}

// endpoints are those of one container that the query asks for.
func endpoints(v catalog.View, c *catalog.Container, q *Query) []Endpoint {
	n, _ := v.Node(c.NodeID)
	ports := Ports(c, n.Host)
	if q.Port != 0 {
		// Docker doesn't need a port to be declared to be used, so one that is
		// asked for by number is taken at its word.
		i := slices.IndexFunc(ports, func(p Port) bool { return p.Number == q.Port && p.Proto == proto(q.Proto) })
		if i < 0 {
			ports = []Port{{Number: q.Port, Proto: proto(q.Proto)}}
		} else {
			ports = ports[i : i+1]
		}
	}
	var es []Endpoint
	for _, p := range ports {
		if q.Proto != "" && p.Proto != q.Proto {
			continue
		}
		es = append(es, Endpoint{
			Name: c.Name, ID: c.ID, Node: n.Name, NodeID: c.NodeID,
			Address: c.Addresses[0], Port: p.Number, Proto: p.Proto, Published: p.Published,
			Tags: c.Tags, Since: c.Started,
		})
	}
	return es
}
