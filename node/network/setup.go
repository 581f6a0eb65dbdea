package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// Setup makes the host ready: the bridge, its address, the rules, and what an earlier
// Network left is adopted or cleaned. It may be called again, to repair or to retry. An
// error means that only containers without network can be connected; Connect then gives
// the same error for others.
func (n *Network) Setup(ctx context.Context) error {
	n.kernel.Lock()
	defer n.kernel.Unlock()
	err := n.setup(ctx)
	n.mu.Lock()
	n.degraded = err
	n.mu.Unlock()
	n.readied.Do(func() { close(n.ready) })
	return err
}

func (n *Network) setup(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	n.clean()
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	none := !n.subnet.IsValid()
	n.mu.Unlock()
	if none {
		return api.Unavailable("container network has no subnet yet")
	}
	if err := n.host.do(func() error { return sysctl("ipv4/ip_forward", "1") }); err != nil {
		return unprivileged(err)
	}
	if err := n.syncDevices(); err != nil {
		return unprivileged(err)
	}
	n.adoptPorts()
	n.table.applied = nil
	if err := n.syncTable(); err != nil {
		return unprivileged(err)
	}
	if err := n.openFirewall(); err != nil {
		n.log.Warn("the host's firewall may stop container traffic", "err", err)
	}
	n.repairLinks()
	return nil
}

// unprivileged adds what to do about a lack of rights.
func unprivileged(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
		return api.Unavailable("set up container network: %w (it needs CAP_NET_ADMIN, CAP_SYS_ADMIN and a writable /proc/sys/net)", err)
	}
	return api.Unavailable("set up container network: %w", err)
}

// open makes the directories and sockets. Caller holds kernel.
func (n *Network) open() error {
	for _, dir := range []string{n.cfg.Root, filepath.Join(n.cfg.Root, "endpoints"), n.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make network directory: %w", err)
		}
	}
	if n.nl != nil {
		return nil
	}
	return n.host.do(func() (err error) {
		n.nl, err = openHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
		return err
	})
}

// clean removes what belongs to no endpoint. Caller holds kernel.
func (n *Network) clean() {
	n.mu.Lock()
	keep := map[string]bool{}
	for _, r := range n.endpoints {
		keep[n.netnsPath(r.Netns)], keep[r.Link] = true, true
	}
	for _, p := range n.pool {
		keep[n.netnsPath(p.netns)], keep[p.link] = true, true
	}
	busy := n.waiting > 0
	files := n.leftovers
	n.leftovers = nil
	n.mu.Unlock()
	for _, f := range files {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			n.log.Warn("leftover network state stays", "err", err)
		}
	}
	n.store.clean()
	if busy {
		return // a namespace being made is no leftover
	}
	links, err := linksWith(n.nl, vethPrefix(n.cfg.Scope))
	if err != nil {
		n.log.Warn("leftover links are not cleaned", "err", err)
	}
	paths, err := pins(n.cfg.RunDir)
	if err != nil {
		n.log.Warn("leftover namespaces are not cleaned", "err", err)
	}
	for _, p := range paths {
		if !keep[p] {
			n.warn("leftover namespace stays", unpin(p))
		}
	}
	for _, l := range links { // those whose namespace has not taken them along
		if !keep[l] {
			n.warn("leftover link stays", deleteLink(n.nl, l))
		}
	}
}

// repair sets the network up again if it isn't there, or wasn't possible before.
func (n *Network) repair(ctx context.Context) {
	before := n.Degraded()
	if before == nil && n.intact() {
		return
	}
	n.mu.Lock()
	none := !n.subnet.IsValid()
	n.mu.Unlock()
	if none {
		return
	}
	err := n.Setup(ctx)
	switch {
	case err == nil:
		n.log.Warn("container network was not as it should be and is set up again")
		n.wantRefill()
	case ctx.Err() == nil && (before == nil || before.Error() != err.Error()):
		n.log.Error("containers get no network of their own", "err", err)
	}
}

// intact reports whether the bridge and the rules are there.
func (n *Network) intact() bool {
	n.kernel.Lock()
	defer n.kernel.Unlock()
	l, err := n.nl.LinkByName(bridgeName(n.cfg.Scope))
	if err != nil {
		return !notFound(err)
	}
	there, err := n.table.there()
	return l.Attrs().Flags&net.FlagUp != 0 && (there || err != nil)
}

// syncDevices makes bridge, VXLAN device and their addresses and routes as they shall be.
// Caller holds kernel.
func (n *Network) syncDevices() error {
	n.mu.Lock()
	subnet, overlay := n.subnet, n.overlay
	addrs := []netip.Prefix{netip.PrefixFrom(gatewayOf(subnet), subnet.Bits())}
	var strays []netip.Addr
	for _, r := range n.endpoints {
		if r.Mode != modeBridge || subnet.Contains(r.Address.Addr()) {
			continue
		}
		// Only what is needed: the rest of the old subnet may be another node's slice.
		strays = append(strays, r.Address.Addr())
		if p := netip.PrefixFrom(r.Gateway, 32); !slices.Contains(addrs, p) {
			addrs = append(addrs, p)
		}
	}
	n.mu.Unlock()
	mtu, err := n.underlayMTU(overlay.Routes)
	if err != nil {
		return err
	}
	return n.host.do(func() error {
		if overlay.On {
			mtu -= vxlanOverhead
		}
		l, err := ensureBridge(n.nl, bridgeName(n.cfg.Scope), mtu, addrs)
		if err != nil {
			return err
		}
		if err := setHostRoutes(n.nl, l, strays); err != nil {
			return err
		}
		n.changeBridge(l.Attrs().Index, mtu)
		if !overlay.On {
			return nil
		}
		return n.syncOverlay(subnet, mtu, overlay.Routes)
	})
}

// changeBridge notes the bridge's index and adapts containers to its MTU. Caller holds kernel.
func (n *Network) changeBridge(index, mtu int) {
	n.mu.Lock()
	before := n.mtu
	n.bridge, n.mtu = index, mtu
	var rs []record
	for _, r := range n.endpoints {
		if r.Mode == modeBridge {
			rs = append(rs, r)
		}
	}
	n.mu.Unlock()
	if before == mtu {
		return
	}
	n.dropPool()
	for _, r := range rs {
		// One that fails still learns from the host which packets are too big.
		n.warn("container keeps its MTU", setMTU(n.nl, r.Link, n.netnsPath(r.Netns), mtu))
	}
}

// adoptPorts holds the ports of endpoints found. Caller holds kernel.
func (n *Network) adoptPorts() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, r := range n.endpoints {
		for _, p := range r.publishes() {
			if _, held := n.claims.held[keyOf(p)]; held {
				continue
			}
			if err := n.claims.adopt(id, keyOf(p)); err != nil {
				n.log.Warn("a published port is in use by another program", "container", id, "err", err)
			}
		}
	}
	n.claimForwards()
}

// repairLinks makes links of endpoints anew that somebody deleted. Caller holds kernel.
func (n *Network) repairLinks() {
	n.mu.Lock()
	bridge := n.bridge
	var rs []record
	for _, r := range n.endpoints {
		if r.Mode == modeBridge {
			rs = append(rs, r)
		}
	}
	n.mu.Unlock()
	for _, r := range rs {
		l, err := n.nl.LinkByName(r.Link)
		switch {
		case notFound(err):
			err = n.reconnect(r)
		case err == nil && l.Attrs().MasterIndex != bridge:
			err = n.nl.LinkSetMasterByIndex(l, bridge)
		}
		n.warn("link of container "+r.ContainerID+" is not as it was", err)
	}
}

// reconnect makes the link of an endpoint anew.
func (n *Network) reconnect(r record) error {
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	n.mu.Lock()
	w := wire{link: r.Link, bridge: n.bridge, mtu: n.mtu, address: r.Address, gateway: r.Gateway, mac: mac}
	n.mu.Unlock()
	ns, err := os.Open(n.netnsPath(r.Netns))
	if err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	defer ns.Close()
	return inNamespace(ns, func() error { return w.connect(n.nl, ns) })
}

// Teardown disconnects every container and removes links, rules, namespaces and state of
// this scope from the host, also what a crash left. Call it after Run has ended, or
// without Run; the Network is of no use afterwards but to Close.
func (n *Network) Teardown(ctx context.Context) error {
	n.mu.Lock()
	var ids []string
	for id := range n.endpoints {
		ids = append(ids, id)
	}
	n.mu.Unlock()
	n.kernel.Lock()
	err := n.open()
	n.kernel.Unlock()
	if err != nil {
		return err
	}
	n.dropPool()
	var errs []error
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		unlock := n.ids.lock(id)
		errs = append(errs, n.disconnect(id))
		unlock()
	}
	n.kernel.Lock()
	defer n.kernel.Unlock()
	n.clean()
	errs = append(errs, n.closeFirewall(), n.table.remove(),
		deleteLink(n.nl, vxlanName(n.cfg.Scope)), deleteLink(n.nl, bridgeName(n.cfg.Scope)))
	n.mu.Lock()
	n.claims.close()
	n.overlay = overlayState{}
	n.degraded = api.Unavailable("container network is torn down")
	n.mu.Unlock()
	return errors.Join(append(errs, n.store.remove())...)
}
