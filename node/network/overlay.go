package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// vxlanOverhead is what VXLAN over IPv4 adds to a packet, in bytes.
const vxlanOverhead = 50

// SetRoutes makes the other nodes' containers reachable: exactly these. The first call
// with routes turns the overlay on. The routes are kept until the next call, also over a
// restart. A route whose subnet overlaps this node's or an earlier route's is refused.
func (n *Network) SetRoutes(ctx context.Context, routes []Route) error {
	if err := n.await(ctx); err != nil {
		return err
	}
	n.kernel.Lock()
	defer n.kernel.Unlock()
	n.mu.Lock()
	err := checkRoutes(n.subnet, routes)
	if err == nil {
		n.overlay.Routes = slices.Clone(routes)
		n.overlay.On = n.overlay.On || len(routes) > 0
		err = n.store.saveOverlay(n.overlay)
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	// Whom to let in comes before whom to send to.
	if err := n.syncTable(); err != nil {
		return api.Internal("set routes: %w", err)
	}
	if err := n.syncDevices(); err != nil {
		return api.Internal("set routes: %w", err)
	}
	return nil
}

// await waits for the first Setup and gives its error.
func (n *Network) await(ctx context.Context) error {
	select {
	case <-n.ready:
		return n.Degraded()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dropOverlapping forgets routes that can't be followed together with this node's subnet.
// Caller holds mu or is alone.
func (n *Network) dropOverlapping() {
	n.overlay.Routes = slices.DeleteFunc(n.overlay.Routes, func(r Route) bool {
		return checkRoutes(n.subnet, []Route{r}) != nil
	})
}

func checkRoutes(own netip.Prefix, routes []Route) error {
	seen := []netip.Prefix{own}
	for _, r := range routes {
		if !r.Host.Is4() {
			return api.InvalidArgument("route to node %s: host address %s is not IPv4", r.NodeID, r.Host)
		}
		if err := checkSubnet(r.Subnet); err != nil {
			return fmt.Errorf("route to node %s: %w", r.NodeID, err)
		}
		for _, s := range seen {
			if s.Overlaps(r.Subnet) {
				return api.Conflict("route to node %s: subnet %s overlaps %s", r.NodeID, r.Subnet, s)
			}
		}
		seen = append(seen, r.Subnet)
	}
	return nil
}

// SetForwards makes ports of this host lead to containers on other nodes: exactly these.
// A local publish of the same port wins while it lasts. A port some other program of this
// host listens on is left to it, with a word in the log. The forwards are kept until the
// next call, also over a restart.
func (n *Network) SetForwards(ctx context.Context, forwards []Forward) error {
	if err := n.await(ctx); err != nil {
		return err
	}
	forwards = slices.Clone(forwards)
	for i := range forwards {
		if err := checkForward(&forwards[i]); err != nil {
			return err
		}
	}
	n.mu.Lock()
	changed := changedForwards(n.overlay.Forwards, forwards)
	if len(changed) == 0 {
		n.mu.Unlock()
		return nil
	}
	n.overlay.Forwards = forwards
	n.claimForwards()
	err := n.store.saveOverlay(n.overlay)
	n.mu.Unlock()
	if err != nil {
		return api.Internal("set forwards: %w", err)
	}
	if err := n.resync(changed); err != nil {
		return api.Internal("set forwards: %w", err)
	}
	return nil
}

func checkForward(f *Forward) error {
	f.HostIP = f.HostIP.Unmap()
	f.ContainerPort = f.Target.Port()
	if err := checkPublish(f.Publish); err != nil {
		return fmt.Errorf("forward of port %d: %w", f.HostPort, err)
	}
	if f.HostPort == 0 || !f.Target.Addr().Is4() {
		return api.InvalidArgument("forward of port %d to %s: both need a port and an IPv4 address", f.HostPort, f.Target)
	}
	return nil
}

// changedForwards are those in only one of the lists.
func changedForwards(have, want []Forward) []Publish {
	var ps []Publish
	for _, f := range have {
		if !slices.Contains(want, f) {
			ps = append(ps, f.Publish)
		}
	}
	for _, f := range want {
		if !slices.Contains(have, f) {
			ps = append(ps, f.Publish)
		}
	}
	return ps
}

// claimForwards holds the ports of exactly the current forwards, but those that are taken.
// Caller holds mu.
func (n *Network) claimForwards() {
	want := map[portKey]bool{}
	for _, f := range n.overlay.Forwards {
		want[keyOf(f.Publish)] = true
	}
	for k, c := range n.claims.held {
		if c.owner == forwardOwner && !want[k] {
			n.claims.drop(k)
		}
	}
	for _, f := range n.overlay.Forwards {
		k := keyOf(f.Publish)
		if n.claims.overlapped(k) {
			continue // by a local publish or by itself
		}
		if err := n.claims.hold(forwardOwner, k); err != nil {
			n.log.Warn("a port published by another node does not answer here", "port", k.String(), "proto", k.proto, "err", err)
		}
	}
}

// underlayMTU is the largest packet that the links to the peers carry, in bytes.
func (n *Network) underlayMTU(routes []Route) (int, error) {
	if n.cfg.MTU > 0 {
		return n.cfg.MTU, nil
	}
	mtu := 0
	for _, r := range routes {
		mtu = minMTU(mtu, n.mtuTo(r.Host))
	}
	if mtu == 0 {
		mtu = n.mtuTo(netip.MustParseAddr("192.0.2.1")) // somewhere outside: the default route
	}
	if mtu == 0 {
		mtu = 1500
	}
	if mtu < 576+vxlanOverhead {
		return 0, fmt.Errorf("the underlay's MTU of %d bytes is too small", mtu)
	}
	return mtu, nil
}

func minMTU(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// mtuTo is the MTU of the link to an address; 0 if there is none or it is the host itself.
func (n *Network) mtuTo(a netip.Addr) int {
	routes, err := n.nl.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type == unix.RTN_LOCAL {
		return 0
	}
	l, err := n.nl.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return 0
	}
	return l.Attrs().MTU
}

// syncOverlay makes the VXLAN device and what leads to the peers. Caller holds kernel and
// is on a thread in the host's namespace.
func (n *Network) syncOverlay(subnet netip.Prefix, mtu int, routes []Route) error {
	vx, err := n.ensureVXLAN(subnet, mtu)
	if err != nil {
		return err
	}
	o := overlay{nl: n.nl, index: vx.Attrs().Index}
	if err := o.syncNeighbours(routes); err != nil {
		return err
	}
	return o.syncRoutes(routes)
}

// ensureVXLAN makes the device, or adopts one with the same settings.
func (n *Network) ensureVXLAN(subnet netip.Prefix, mtu int) (netlink.Link, error) {
	name := vxlanName(n.cfg.Scope)
	want := n.vxlan(subnet, mtu)
	l, err := n.nl.LinkByName(name)
	if err == nil && !sameVXLAN(l, want) {
		if err := n.nl.LinkDel(l); err != nil {
			return nil, fmt.Errorf("replace VXLAN device %s: %w", name, err)
		}
		l, err = nil, netlink.LinkNotFoundError{}
	}
	if notFound(err) {
		if err := n.nl.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("make VXLAN device %s: %w", name, err)
		}
		l, err = n.nl.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find VXLAN device %s: %w", name, err)
	}
	if l.Attrs().MTU != mtu {
		if err := n.nl.LinkSetMTU(l, mtu); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	if err := quiet(name); err != nil {
		return nil, err
	}
	// As on the bridge. The host reaches published ports of other nodes through its loopback.
	for key, value := range map[string]string{"rp_filter": "1", "route_localnet": "1"} {
		if err := sysctl("ipv4/conf/"+name+"/"+key, value); err != nil {
			return nil, err
		}
	}
	if err := setAddresses(n.nl, l, []netip.Prefix{netip.PrefixFrom(subnet.Masked().Addr(), 32)}); err != nil {
		return nil, err
	}
	if err := n.nl.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return l, nil
}

func (n *Network) vxlan(subnet netip.Prefix, mtu int) *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = vxlanName(n.cfg.Scope), mtu, vtepMACOf(subnet)
	vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(n.cfg.VNI), Port: int(n.cfg.VXLANPort), Learning: false}
	if n.cfg.Host.IsValid() {
		vx.SrcAddr = n.cfg.Host.AsSlice()
	}
	return vx
}

func sameVXLAN(have netlink.Link, want *netlink.Vxlan) bool {
	h, ok := have.(*netlink.Vxlan)
	return ok && h.VxlanId == want.VxlanId && h.Port == want.Port && h.Learning == want.Learning &&
		h.SrcAddr.Equal(want.SrcAddr) && bytes.Equal(h.HardwareAddr, want.HardwareAddr)
}

// overlay is the VXLAN device as far as peers are concerned.
type overlay struct {
	nl    *netlink.Handle
	index int
}

// vtep is the address of a node's VXLAN device: the first of its subnet.
func vtep(r Route) netip.Addr { return r.Subnet.Masked().Addr() }

// syncNeighbours tells the kernel each peer's hardware address and host, and no others', so
// that nothing has to be asked for or learned.
func (o overlay) syncNeighbours(routes []Route) error {
	arp, fdb := map[string]netlink.Neigh{}, map[string]netlink.Neigh{}
	for _, r := range routes {
		mac := vtepMACOf(r.Subnet)
		arp[vtep(r).String()] = netlink.Neigh{LinkIndex: o.index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: vtep(r).AsSlice(), HardwareAddr: mac}
		fdb[mac.String()] = netlink.Neigh{LinkIndex: o.index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: r.Host.AsSlice(), HardwareAddr: mac}
	}
	if err := o.syncEntries(unix.AF_BRIDGE, fdb, func(e netlink.Neigh) string { return e.HardwareAddr.String() }); err != nil {
		return fmt.Errorf("set forwarding entries of the overlay: %w", err)
	}
	if err := o.syncEntries(unix.AF_INET, arp, func(e netlink.Neigh) string { return e.IP.String() }); err != nil {
		return fmt.Errorf("set neighbours of the overlay: %w", err)
	}
	return nil
}

func (o overlay) syncEntries(family int, want map[string]netlink.Neigh, key func(netlink.Neigh) string) error {
	have, err := o.nl.NeighList(o.index, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	for _, e := range have {
		w, ok := want[key(e)]
		if ok && w.IP.Equal(e.IP) && bytes.Equal(w.HardwareAddr, e.HardwareAddr) && e.State == netlink.NUD_PERMANENT {
			delete(want, key(e))
			continue
		}
		if e.State&netlink.NUD_NOARP != 0 {
			continue // the kernel's own, as for broadcasts
		}
		e.LinkIndex, e.Family = o.index, family
		if family == unix.AF_BRIDGE {
			e.Flags = netlink.NTF_SELF
		}
		if err := o.nl.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	for _, e := range want {
		if err := o.nl.NeighSet(&e); err != nil {
			return err
		}
	}
	return nil
}

// syncRoutes routes each peer's subnet through its VXLAN device.
func (o overlay) syncRoutes(routes []Route) error {
	want := map[netip.Prefix]netlink.Route{}
	for _, r := range routes {
		want[r.Subnet.Masked()] = netlink.Route{LinkIndex: o.index, Dst: toIPNet(r.Subnet.Masked()), Gw: vtep(r).AsSlice(),
			Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_STATIC}
	}
	have, err := o.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{LinkIndex: o.index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes of the overlay: %w", err)
	}
	for _, h := range have {
		p := toPrefix(h.Dst)
		if w, ok := want[p]; ok && w.Gw.Equal(h.Gw) {
			delete(want, p)
		} else if err := o.nl.RouteDel(&h); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", p, err)
		}
	}
	for p, r := range want {
		if err := o.nl.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", p, err)
		}
	}
	return nil
}

// stableMAC derives a bridge's hardware address from its name.
func stableMAC(name string) net.HardwareAddr {
	mac := net.HardwareAddr{0x0a, 0x42, 0, 0, 0, 0}
	for i, b := range []byte(name) {
		mac[2+i%4] = mac[2+i%4]*31 + b
	}
	return mac
}
