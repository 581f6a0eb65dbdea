package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mobynet "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

// portKey is a published port as the kernel looks it up. addr is invalid for every address.
type portKey struct {
	addr  netip.Addr
	proto mobynet.IPProtocol
	port  uint16
}

func keyOf(p Publish) portKey {
	k := portKey{addr: p.HostIP, proto: p.Proto, port: p.HostPort}
	if k.addr.IsUnspecified() {
		k.addr = netip.Addr{}
	}
	return k
}

// overlaps reports whether both keys can match one packet.
func (k portKey) overlaps(o portKey) bool {
	return k.proto == o.proto && k.port == o.port &&
		(k.addr == o.addr || !k.addr.IsValid() || !o.addr.IsValid())
}

func (k portKey) String() string {
	a := "0.0.0.0"
	if k.addr.IsValid() {
		a = k.addr.String()
	}
	return fmt.Sprintf("%s:%d", a, k.port)
}

// frame is all that shapes the rules but the ports.
type frame struct {
	bridge, vxlan string
	slice         netip.Prefix   // this node's subnet
	subnets       []netip.Prefix // with those of containers from before a change of subnet
	cluster       netip.Prefix
	overlay       bool
	vni           uint32
	vxlanPort     uint16
}

// desired is what the kernel's table shall be.
type desired struct {
	frame
	ports map[portKey]netip.AddrPort
	peers []netip.Addr // hosts that may send to the VXLAN device
}

// mergePorts is the map of ports of this host: the publishes of its containers, then those
// forwards that no publish overlaps. Of forwards that overlap the first one counts.
func mergePorts(local map[portKey]netip.AddrPort, forwards []Forward) map[portKey]netip.AddrPort {
	type service struct {
		proto mobynet.IPProtocol
		port  uint16
	}
	ports := make(map[portKey]netip.AddrPort, len(local)+len(forwards))
	taken := map[service][]portKey{}
	for k, to := range local {
		ports[k] = to
		taken[service{k.proto, k.port}] = append(taken[service{k.proto, k.port}], k)
	}
	for _, f := range forwards {
		k := keyOf(f.Publish)
		s := service{k.proto, k.port}
		if !slices.ContainsFunc(taken[s], k.overlaps) {
			ports[k] = f.Target
			taken[s] = append(taken[s], k)
		}
	}
	return ports
}

// chain is a chain of the table and its rules in order.
type chain struct {
	name     string
	kind     nftables.ChainType // "" for one that is only jumped to
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

// rule is a rule with the words nft would print for it, roughly.
type rule struct {
	text  string
	exprs []expr.Any
}

const (
	mapAny   = "published"       // protocol . port -> address . port
	mapBound = "published_bound" // address . protocol . port -> address . port
	setPeers = "peers"
)

// chains builds the rules.
func (f frame) chains() []chain {
	return []chain{
		{"guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, f.guard()},
		{"published_ports", "", nil, nil, f.publishedPorts()},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, []rule{
			// Only the host itself may reach what is published on its loopback.
			join(destinedTo(netip.MustParsePrefix("127.0.0.0/8")), verdict(expr.VerdictReturn, "")),
			join(toThisHost(), verdict(expr.VerdictJump, "published_ports")),
		}},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, []rule{
			join(toThisHost(), verdict(expr.VerdictJump, "published_ports")),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, f.postrouting()},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, f.forward()},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, f.input()},
	}
}

// guard keeps containers from the host's loopback, which route_localnet on the bridge would
// open to them.
func (f frame) guard() []rule {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	return []rule{
		join(iif(expr.CmpOpEq, f.bridge), destinedTo(loopback), verdict(expr.VerdictDrop, "")),
		join(iif(expr.CmpOpEq, f.vxlan), destinedTo(loopback), verdict(expr.VerdictDrop, "")),
	}
}

func (f frame) publishedPorts() []rule {
	var rules []rule
	if f.slice.IsValid() {
		// The resolver of the containers listens on the gateway: publishing port 53 must
		// not take it away from them.
		gateway := netip.PrefixFrom(gatewayOf(f.slice), 32)
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rules = append(rules, join(destinedTo(gateway), l4proto(proto), dport(53), verdict(expr.VerdictReturn, "")))
		}
	}
	return append(rules,
		rule{"dnat ip to ip daddr . meta l4proto . th dport map @" + mapBound, []expr.Any{
			load4(offsetDaddr, 8),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 9},
			&expr.Payload{DestRegister: 10, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 8, DestRegister: 12, IsDestRegSet: true, SetName: mapBound},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 12, RegProtoMin: 13, Specified: true},
		}},
		rule{"dnat ip to meta l4proto . th dport map @" + mapAny, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 8},
			&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 8, DestRegister: 12, IsDestRegSet: true, SetName: mapAny},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 12, RegProtoMin: 13, Specified: true},
		}},
	)
}

func (f frame) postrouting() []rule {
	masquerade := rule{"masquerade", []expr.Any{&expr.Masq{}}}
	rules := []rule{
		// The host through its loopback: nobody could answer to 127.0.0.1.
		join(oif(expr.CmpOpEq, f.bridge), from(expr.CmpOpEq, netip.MustParsePrefix("127.0.0.0/8")), masquerade),
	}
	for _, s := range f.subnets {
		// A container through a port published here: the other one would answer directly,
		// past the translation.
		rules = append(rules, join(oif(expr.CmpOpEq, f.bridge), from(expr.CmpOpEq, s), translated(expr.CmpOpNeq), masquerade))
	}
	if f.slice.IsValid() {
		// Whatever isn't of this node's slice gets no answer over the overlay unless it
		// speaks with this node's address there.
		rules = append(rules, join(oif(expr.CmpOpEq, f.vxlan), from(expr.CmpOpNeq, f.slice), masquerade))
	}
	for _, s := range f.subnets {
		rules = append(rules, join(from(expr.CmpOpEq, s), oif(expr.CmpOpNeq, f.bridge), oif(expr.CmpOpNeq, f.vxlan), masquerade))
	}
	return rules
}

func (f frame) forward() []rule {
	rules := []rule{
		// Containers are reached from outside only through what they publish, even if
		// somebody routes their subnet to this host.
		join(oif(expr.CmpOpEq, f.bridge), iif(expr.CmpOpNeq, f.bridge), iif(expr.CmpOpNeq, f.vxlan),
			unestablished(), translated(expr.CmpOpEq), verdict(expr.VerdictDrop, "")),
	}
	if f.cluster.IsValid() {
		// A slice nobody has: say so at once, and don't let private addresses out.
		rules = append(rules, join(iif(expr.CmpOpEq, f.bridge), oif(expr.CmpOpNeq, f.bridge), oif(expr.CmpOpNeq, f.vxlan),
			destinedTo(f.cluster), translated(expr.CmpOpEq), rule{"reject with icmpx host-unreachable", []expr.Any{
				&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH},
			}}))
	}
	return rules
}

// input lets only peers into the overlay. Other overlays on the same port have other VNIs.
func (f frame) input() []rule {
	if !f.overlay {
		return nil
	}
	ours := join(ipv4(), l4proto(unix.IPPROTO_UDP), dport(f.vxlanPort), rule{fmt.Sprintf("@th,96,24 %d", f.vni), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(f.vni >> 16), byte(f.vni >> 8), byte(f.vni)}},
	}})
	peer := rule{"ip saddr @" + setPeers, []expr.Any{
		load4(offsetSaddr, 1),
		&expr.Lookup{SourceRegister: 1, SetName: setPeers},
	}}
	return []rule{
		join(ours, peer, verdict(expr.VerdictAccept, "")),
		join(ours, verdict(expr.VerdictDrop, "")),
	}
}

const (
	offsetSaddr = 12 // of the source in an IPv4 header
	offsetDaddr = 16
)

func join(rs ...rule) rule {
	var all rule
	for i, r := range rs {
		if i > 0 {
			all.text += " "
		}
		all.text += r.text
		all.exprs = append(all.exprs, r.exprs...)
	}
	return all
}

func verdict(kind expr.VerdictKind, target string) rule {
	names := map[expr.VerdictKind]string{expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictReturn: "return", expr.VerdictJump: "jump " + target}
	return rule{names[kind], []expr.Any{&expr.Verdict{Kind: kind, Chain: target}}}
}

func op(o expr.CmpOp) string {
	if o == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(o expr.CmpOp, name string) rule {
	return rule{"iifname " + op(o) + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: o, Register: 1, Data: ifname(name)},
	}}
}

func oif(o expr.CmpOp, name string) rule {
	return rule{"oifname " + op(o) + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: o, Register: 1, Data: ifname(name)},
	}}
}

func ipv4() rule {
	return rule{"meta nfproto ipv4", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}}
}

func l4proto(n byte) rule {
	return rule{fmt.Sprintf("meta l4proto %d", n), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}},
	}}
}

func dport(p uint16) rule {
	return rule{fmt.Sprintf("th dport %d", p), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}}
}

func load4(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func within(o expr.CmpOp, offset uint32, p netip.Prefix) []expr.Any {
	p = p.Masked()
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return append(ipv4().exprs,
		load4(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: o, Register: 1, Data: p.Addr().AsSlice()},
	)
}

func from(o expr.CmpOp, p netip.Prefix) rule {
	return rule{"ip saddr " + op(o) + p.String(), within(o, offsetSaddr, p)}
}

func destinedTo(p netip.Prefix) rule {
	return rule{"ip daddr " + p.String(), within(expr.CmpOpEq, offsetDaddr, p)}
}

// toThisHost matches packets for one of the host's own addresses.
func toThisHost() rule {
	return join(ipv4(), rule{"fib daddr type local", []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}})
}

// conntrack's status bit of a connection with a translated destination (IPS_DST_NAT).
const statusDNAT = 1 << 5

// translated compares the bit with zero: CmpOpNeq matches translated connections.
func translated(o expr.CmpOp) rule {
	text := "ct status & dnat == 0"
	if o == expr.CmpOpNeq {
		text = "ct status dnat"
	}
	return rule{text, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: o, Register: 1, Data: make([]byte, 4)},
	}}
}

func unestablished() rule {
	return rule{"ct state & (established | related) == 0", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}}
}

// protoNumber is a protocol's number; 0 if it is not one that has ports here.
func protoNumber(p mobynet.IPProtocol) byte {
	switch p {
	case mobynet.TCP:
		return unix.IPPROTO_TCP
	case mobynet.UDP:
		return unix.IPPROTO_UDP
	case mobynet.SCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// element is a published port as an element of the map it belongs in. The kernel pads each
// part of a concatenation to four bytes.
func element(k portKey, to netip.AddrPort) (set string, e nftables.SetElement) {
	set = mapAny
	if k.addr.IsValid() {
		set = mapBound
		e.Key = append(e.Key, k.addr.AsSlice()...)
	}
	e.Key = append(e.Key, protoNumber(k.proto), 0, 0, 0, byte(k.port>>8), byte(k.port), 0, 0)
	if to.IsValid() {
		e.Val = append(to.Addr().AsSlice(), byte(to.Port()>>8), byte(to.Port()), 0, 0)
	}
	return set, e
}

// change is one step from one map of ports to another.
type change struct {
	key portKey
	to  netip.AddrPort // invalid: the port goes
}

// diffPorts is what leads from have to want; what goes comes first.
func diffPorts(have, want map[portKey]netip.AddrPort) []change {
	var gone, come []change
	for k, to := range have {
		if want[k] != to {
			gone = append(gone, change{key: k})
		}
	}
	for k, to := range want {
		if have[k] != to {
			come = append(come, change{k, to})
		}
	}
	order := func(a, b change) int {
		return cmp.Or(cmp.Compare(a.key.proto, b.key.proto), cmp.Compare(a.key.port, b.key.port), a.key.addr.Compare(b.key.addr))
	}
	slices.SortFunc(gone, order)
	slices.SortFunc(come, order)
	return append(gone, come...)
}
