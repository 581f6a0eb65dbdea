package network

import (
	"net"
	"net/netip"

	mobynet "github.com/moby/moby/api/types/network"
)

// Request asks for a container's place in the network.
type Request struct {
	ContainerID string
	Name        string // the container's name, for messages only; may be empty
	Mode        string // "bridge" or "default", "none"; "host" and "container:…" never come here
	Hostname    string
	Address     netip.Addr       // a fixed address, if valid
	MAC         net.HardwareAddr // a fixed hardware address, if set
	Ports       []Publish
}

// Publish makes a container's port answer on the host.
type Publish struct {
	HostIP        netip.Addr // invalid: every address
	HostPort      uint16     // 0: the network chooses one
	ContainerPort uint16
	Proto         mobynet.IPProtocol
}

// Endpoint is a container's place in the network, also after a restart of the agent.
type Endpoint struct {
	NetworkID  string
	EndpointID string
	NetnsPath  string // pinned network namespace
	Address    netip.Prefix
	Gateway    netip.Addr
	MAC        net.HardwareAddr
	DNS        []netip.Addr
	Ports      []Publish // with the ports chosen
}

// Route is another node's slice of the container network.
type Route struct {
	NodeID string
	Host   netip.Addr   // where the node is reached
	Subnet netip.Prefix // the containers' addresses there
}

// Forward makes a port of this host lead to a container on another one.
type Forward struct {
	Publish
	Target netip.AddrPort
}

// Info describes the container network of this host.
type Info struct {
	ID, Bridge string
	Subnet     netip.Prefix
	Gateway    netip.Addr
	MTU        int
}
