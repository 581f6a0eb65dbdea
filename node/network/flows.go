package network

import (
	"net/netip"

	mobynet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows makes the kernel look at UDP packets to these ports afresh. It decides once
// per flow where packets go, and a client that sends on and on keeps a flow alive for ever:
// it would talk to a container long gone, or to nobody though there is one now. TCP needs
// nothing of the kind, as a new connection is a new flow.
func (n *Network) forgetFlows(ps []Publish) {
	keys := map[portKey]bool{}
	for _, p := range ps {
		if p.Proto == mobynet.UDP {
			keys[keyOf(p)] = true
		}
	}
	if len(keys) == 0 {
		return
	}
	_, err := n.nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowFilter(keys))
	n.warn("old UDP flows stay", err)
}

// flowFilter matches flows that were sent to one of the ports.
type flowFilter map[portKey]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	k := portKey{proto: mobynet.UDP, port: flow.Forward.DstPort}
	if f[k] {
		return true
	}
	a, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	k.addr = a.Unmap()
	return ok && f[k]
}
