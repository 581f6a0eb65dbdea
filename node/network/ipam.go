package network

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/shoal-engine/shoal/api"
)

// ipam leases the addresses of a subnet. The first usable address is the gateway's; the
// first of all is the VXLAN device's. Not safe for concurrent use.
type ipam struct {
	subnet netip.Prefix
	next   uint32 // where the search for a free address starts
	used   map[uint32]bool
}

func newIPAM(subnet netip.Prefix) *ipam {
	p := &ipam{subnet: subnet.Masked(), used: map[uint32]bool{}}
	p.next = p.first()
	return p
}

func (p *ipam) base() uint32  { return toUint(p.subnet.Addr()) }
func (p *ipam) first() uint32 { return p.base() + 2 }
func (p *ipam) last() uint32  { return p.base() + 1<<(32-p.subnet.Bits()) - 2 } // without the broadcast address

// take leases the next free address. It starts behind the one leased last, so that an
// address given back rests until all others have had their turn: connections and caches
// that still know the container before meet nobody rather than a stranger.
func (p *ipam) take() (netip.Addr, error) {
	start := p.next
	if start < p.first() || start > p.last() {
		start = p.first()
	}
	for a := start; ; {
		following := a + 1
		if following > p.last() {
			following = p.first()
		}
		if !p.used[a] {
			p.used[a] = true
			p.next = following
			return fromUint(a), nil
		}
		if a = following; a == start {
			return netip.Addr{}, api.Unavailable("no available IPv4 addresses on this network's address pools: bridge (%s)", p.subnet)
		}
	}
}

// reserve leases a given address.
func (p *ipam) reserve(a netip.Addr) error {
	if !a.Is4() || !p.subnet.Contains(a) {
		return api.InvalidArgument("invalid address %s: It does not belong to any of this network's subnets", a)
	}
	n := toUint(a)
	if n < p.first() || n > p.last() || p.used[n] {
		return api.Conflict("Address already in use")
	}
	p.used[n] = true
	return nil
}

// release gives an address back; one of another subnet is ignored.
func (p *ipam) release(a netip.Addr) {
	if a.Is4() && p.subnet.Contains(a) {
		delete(p.used, toUint(a))
	}
}

// checkSubnet says what is wrong with a subnet, if anything.
func checkSubnet(subnet netip.Prefix) error {
	switch {
	case !subnet.IsValid() || !subnet.Addr().Is4():
		return api.InvalidArgument("container subnet %s is not an IPv4 network", subnet)
	case subnet.Bits() > 29 || subnet.Bits() < 8:
		return api.InvalidArgument("container subnet %s: its prefix length must lie between 8 and 29", subnet)
	case subnet.Addr().IsLoopback() || subnet.Addr().IsMulticast() || subnet.Addr().IsUnspecified():
		return api.InvalidArgument("container subnet %s is reserved", subnet)
	}
	return nil
}

// gatewayOf is the address the bridge has in a subnet.
func gatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// macOf derives a container's hardware address from its address, as Docker does: neighbours'
// caches stay right when an address moves.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// vtepMACOf derives the hardware address of a node's VXLAN device from the node's subnet.
func vtepMACOf(subnet netip.Prefix) net.HardwareAddr {
	b := subnet.Masked().Addr().As4()
	return net.HardwareAddr{0x0e, 0x42, b[0], b[1], b[2], b[3]}
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromUint(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
