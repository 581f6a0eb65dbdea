package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxLinkName is the longest name the kernel takes, in bytes.
const maxLinkName = unix.IFNAMSIZ - 1

// containerLink is the name of a container's link inside its namespace.
const containerLink = "eth0"

func bridgeName(scope string) string { return "shoal-" + scope }
func vxlanName(scope string) string  { return "shoalx-" + scope }

// vethPrefix starts the name of the host's end of each container's link.
func vethPrefix(scope string) string { return "v" + scope + "-" }

// ensureBridge makes the bridge or adopts it, and gives it exactly the addresses.
func ensureBridge(nl *netlink.Handle, name string, mtu int, addrs []netip.Prefix) (netlink.Link, error) {
	l, err := nl.LinkByName(name)
	if notFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		// A fixed hardware address: otherwise it changes with the containers that come and
		// go, and so do neighbours' caches.
		attrs.HardwareAddr = stableMAC(name)
		no := false
		if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", name, err)
		}
		l, err = nl.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	if l.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s, not a bridge", name, l.Type())
	}
	if l.Attrs().MTU != mtu {
		if err := nl.LinkSetMTU(l, mtu); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	if err := quiet(name); err != nil {
		return nil, err
	}
	// Strict: a container may only send from an address that is routed to the bridge.
	for key, value := range map[string]string{"rp_filter": "1", "route_localnet": "1", "send_redirects": "0"} {
		if err := sysctl("ipv4/conf/"+name+"/"+key, value); err != nil {
			return nil, err
		}
	}
	if err := hasty(name); err != nil {
		return nil, err
	}
	if err := setAddresses(nl, l, addrs); err != nil {
		return nil, err
	}
	if err := nl.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return l, nil
}

// setAddresses gives a link exactly these IPv4 addresses.
func setAddresses(nl *netlink.Handle, l netlink.Link, want []netip.Prefix) error {
	name := l.Attrs().Name
	have, err := nl.AddrList(l, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	missing := map[netip.Prefix]bool{}
	for _, p := range want {
		missing[p] = true
	}
	for _, a := range have {
		p := toPrefix(a.IPNet)
		if missing[p] {
			delete(missing, p)
			continue
		}
		if err := nl.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s of %s: %w", p, name, err)
		}
	}
	for _, p := range want { // in order: the first one is what the host speaks with
		if !missing[p] {
			continue
		}
		if err := nl.AddrAdd(l, &netlink.Addr{IPNet: toIPNet(p)}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return nil
}

// setHostRoutes routes exactly these single addresses to a link.
func setHostRoutes(nl *netlink.Handle, l netlink.Link, want []netip.Addr) error {
	have, err := nl.RouteListFiltered(unix.AF_INET, &netlink.Route{LinkIndex: l.Attrs().Index, Protocol: unix.RTPROT_STATIC},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", l.Attrs().Name, err)
	}
	missing := map[netip.Prefix]bool{}
	for _, a := range want {
		missing[netip.PrefixFrom(a, 32)] = true
	}
	for _, r := range have {
		if p := toPrefix(r.Dst); missing[p] {
			delete(missing, p)
		} else if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", p, err)
		}
	}
	for p := range missing {
		r := netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(p), Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
		if err := nl.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", p, err)
		}
	}
	return nil
}

// wire is a container's link.
type wire struct {
	link    string // the host's end
	bridge  int    // index of the bridge
	mtu     int
	address netip.Prefix
	gateway netip.Addr
	mac     net.HardwareAddr
}

// connect makes the link. It is called on a thread in the container's namespace, nl is the host's.
func (w wire) connect(nl *netlink.Handle, ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags, attrs.MasterIndex = w.link, w.mtu, net.FlagUp, w.bridge
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerHardwareAddr = containerLink, netlink.NsFd(ns.Fd()), w.mac
	if err := nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", w.link, err)
	}
	// A container that calls its own published port gets its packet back over the port it came in.
	err := nl.LinkSetHairpin(veth, true)
	if err != nil {
		err = fmt.Errorf("set hairpin mode of %s: %w", w.link, err)
	} else {
		err = w.configure()
	}
	if err != nil {
		return errors.Join(err, deleteLink(nl, w.link))
	}
	return nil
}

// configure sets up the container's end, from inside.
func (w wire) configure() error {
	nl, err := openHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	l, err := nl.LinkByName(containerLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", containerLink, err)
	}
	if err := nl.AddrAdd(l, &netlink.Addr{IPNet: toIPNet(w.address)}); err != nil {
		return fmt.Errorf("add address %s: %w", w.address, err)
	}
	if err := nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", containerLink, err)
	}
	if err := hasty(containerLink); err != nil {
		return err
	}
	route := netlink.Route{LinkIndex: l.Attrs().Index, Gw: w.gateway.AsSlice()}
	if err := nl.RouteAdd(&route); err != nil {
		return fmt.Errorf("add default route via %s: %w", w.gateway, err)
	}
	return nil
}

// furnish sets up what every container's namespace has, from inside.
func furnish() error {
	nl, err := openHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	for key, value := range map[string]string{
		"ipv4/ip_unprivileged_port_start": "0", // as in Docker: the namespace is the container's own
		"ipv4/ping_group_range":           "0\t2147483647",
	} {
		if err := sysctl(key, value); err != nil {
			return err
		}
	}
	return quiet("default")
}

// hasty lets a connection over a link to an address that nobody has fail after 0.3 s instead
// of 3: neighbours on a bridge answer within microseconds, and whoever meets a container that
// has just stopped, a load balancer for one, tries another the sooner.
func hasty(link string) error {
	return sysctl("ipv4/neigh/"+link+"/retrans_time_ms", "100")
}

// quiet turns IPv6 off on a link, or on those to come: containers have IPv4 addresses, and
// the traffic of address configuration on every link would be all it does.
func quiet(link string) error {
	err := sysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}

// setMTU changes the MTU of a container's link, both ends.
func setMTU(nl *netlink.Handle, link, netns string, mtu int) error {
	l, err := nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	if err := nl.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set MTU of %s: %w", link, err)
	}
	return inPinned(netns, func() error {
		nl, err := openHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		l, err := nl.LinkByName(containerLink)
		if err != nil {
			return fmt.Errorf("find %s: %w", containerLink, err)
		}
		if err := nl.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU of %s: %w", containerLink, err)
		}
		return nil
	})
}

// deleteLink deletes a link, and with it the other end of a pair; one that is gone is no error.
func deleteLink(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkDel(l)
	}
	if err != nil && !notFound(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// linksWith lists the names of links by prefix.
func linksWith(nl *netlink.Handle, prefix string) ([]string, error) {
	ls, err := nl.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		ls, err = nl.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range ls {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

func notFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// toPrefix is the inverse; invalid for nil.
func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
