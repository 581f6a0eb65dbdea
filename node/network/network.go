package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

const (
	modeBridge = "bridge"
	modeNone   = "none"
)

// Config shapes a Network.
type Config struct {
	Root   string // directory of state; made if missing
	RunDir string // directory of pinned namespaces, on a file system that a reboot empties
	// Scope tells the links and tables of agents in one network namespace apart: 1 to 8
	// lower-case letters and digits. See Scope.
	Scope string
	// Subnet is this node's slice of the container network. If it isn't valid, containers
	// can't be connected until SetSubnet.
	Subnet netip.Prefix
	// ClusterSubnet is what the slices of all nodes lie in; if it isn't valid, Subnet.
	ClusterSubnet netip.Prefix
	// MTU of the underlay in bytes; 0: that of the link to the peers or of the default
	// route. Containers get 50 less once there is an overlay.
	MTU int
	// DNS is what containers shall ask for names; if empty, the gateway.
	DNS []netip.Addr
	// Host is the address under which peers know this node. If it isn't valid, VXLAN
	// packets leave with the address the route to each peer suggests.
	Host netip.Addr
	// VXLANPort is the UDP port of the overlay, the same on all nodes; 0: 4789.
	VXLANPort uint16
	// VNI tells overlays on one port apart, the same on all nodes; 0: 1.
	VNI uint32
	// Pool is how many namespaces wait ready for Connect; 0: 3, negative: none. One costs
	// about 100 KiB of kernel memory and saves a start several milliseconds.
	Pool int
	// Netns is the path of the network namespace to work in; "": the process's own.
	Netns  string
	Logger *slog.Logger
}

// Scope derives a Config.Scope from a data directory.
func Scope(dataDir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
	return hex.EncodeToString(sum[:4])
}

// Network is one host's container network. All methods are safe for concurrent use.
type Network struct {
	cfg   Config
	log   *slog.Logger
	store store
	host  host
	ids   keyLock

	ready   chan struct{} // closed after the first Setup
	readied sync.Once
	refill  chan struct{} // buffered: the pool wants more

	kernel sync.Mutex      // serialises changes to bridge, table and VXLAN device
	nl     *netlink.Handle // set by the first Setup, before ready is closed
	table  *table

	mu        sync.Mutex
	degraded  error // why there is no bridge; nil if there is one
	bridge    int   // index of the bridge
	subnet    netip.Prefix
	cluster   netip.Prefix
	mtu       int
	ipam      *ipam
	endpoints map[string]record
	claims    *claims
	pool      []prepared
	waiting   int // namespaces being made for the pool
	overlay   overlayState
	leftovers []string // state files that could not be read
}

var scopeSyntax = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// New reads the state of an earlier Network of the same Root. It changes nothing on the host.
func New(cfg Config) (*Network, error) {
	if !scopeSyntax.MatchString(cfg.Scope) {
		return nil, api.InvalidArgument("network scope %q: 1 to 8 lower-case letters and digits", cfg.Scope)
	}
	if cfg.Root == "" || cfg.RunDir == "" {
		return nil, api.InvalidArgument("network: root and run directory are needed")
	}
	if cfg.VXLANPort == 0 {
		cfg.VXLANPort = 4789
	}
	if cfg.VNI == 0 {
		cfg.VNI = 1
	}
	if cfg.Pool == 0 {
		cfg.Pool = 3
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := openHost(cfg.Netns)
	if err != nil {
		return nil, err
	}
	n := &Network{
		cfg: cfg, log: cfg.Logger, store: store{root: cfg.Root}, host: h,
		ready: make(chan struct{}), refill: make(chan struct{}, 1),
		table:     &table{host: h, name: "shoal-" + cfg.Scope},
		claims:    newClaims(h),
		endpoints: map[string]record{},
		degraded:  api.Unavailable("container network is not set up yet"),
	}
	if cfg.Subnet.IsValid() {
		if err := n.useSubnet(cfg.Subnet, cfg.ClusterSubnet); err != nil {
			h.close()
			return nil, err
		}
	}
	if err := n.load(); err != nil {
		h.close()
		return nil, err
	}
	return n, nil
}

// useSubnet makes a subnet the current one. Caller holds mu or is alone.
func (n *Network) useSubnet(subnet, cluster netip.Prefix) error {
	subnet = subnet.Masked()
	if err := checkSubnet(subnet); err != nil {
		return err
	}
	if !cluster.IsValid() {
		cluster = subnet
	}
	cluster = cluster.Masked()
	if !cluster.Contains(subnet.Addr()) || cluster.Bits() > subnet.Bits() {
		return api.InvalidArgument("container subnet %s does not lie in the cluster's %s", subnet, cluster)
	}
	n.subnet, n.cluster = subnet, cluster
	n.ipam = newIPAM(subnet)
	n.store.loadCursor(n.ipam)
	for _, r := range n.endpoints {
		if r.Mode == modeBridge && subnet.Contains(r.Address.Addr()) {
			if err := n.ipam.reserve(r.Address.Addr()); err != nil {
				return fmt.Errorf("address %s of container %s: %w", r.Address.Addr(), r.ContainerID, err)
			}
		}
	}
	return nil
}

// load finds the endpoints of an earlier Network that still have their namespace.
func (n *Network) load() error {
	records, bad, err := n.store.loadEndpoints()
	if err != nil {
		return err
	}
	for path, err := range bad {
		n.log.Warn("network endpoint can't be read and is dropped", "file", path, "err", err)
		n.leftovers = append(n.leftovers, path)
	}
	for _, r := range records {
		if !pinned(n.netnsPath(r.Netns)) {
			n.leftovers = append(n.leftovers, n.store.endpointFile(r.ContainerID))
			continue
		}
		if r.Mode == modeBridge && n.ipam != nil && n.subnet.Contains(r.Address.Addr()) {
			if err := n.ipam.reserve(r.Address.Addr()); err != nil {
				n.log.Warn("network endpoint has an address that is taken and is dropped", "container", r.ContainerID, "address", r.Address, "err", err)
				n.leftovers = append(n.leftovers, n.store.endpointFile(r.ContainerID))
				continue
			}
		}
		n.endpoints[r.ContainerID] = r
	}
	n.overlay = n.store.loadOverlay()
	return nil
}

func (n *Network) netnsPath(name string) string { return filepath.Join(n.cfg.RunDir, name) }

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
	for _, l := range links {
		if !keep[l] {
			n.warn("leftover link stays", deleteLink(n.nl, l))
		}
	}
	for _, p := range paths {
		if !keep[p] {
			n.warn("leftover namespace stays", unpin(p))
		}
	}
}

func (n *Network) warn(msg string, err error) {
	if err != nil {
		n.log.Warn(msg, "err", err)
	}
}

// Run sets the network up, if Setup hasn't, and keeps namespaces ready for Connect until
// ctx ends. If the host doesn't allow a bridge it says so in the log and goes on: containers
// without network still work. Its end leaves containers and their traffic alone.
func (n *Network) Run(ctx context.Context) error {
	select {
	case <-n.ready:
	default:
		if err := n.Setup(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("containers get no network of their own", "err", err)
		}
	}
	n.fillPool(ctx)
	return nil
}

// Degraded is why containers can't be connected to the bridge; nil if they can.
func (n *Network) Degraded() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.degraded
}

// Info implements node.Networker.
func (n *Network) Info() Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := Info{ID: n.id(), Bridge: bridgeName(n.cfg.Scope), Subnet: n.subnet, MTU: n.mtu}
	if n.subnet.IsValid() {
		i.Gateway = gatewayOf(n.subnet)
	}
	return i
}

// id is the network's ID, the same for every agent of a Root.
func (n *Network) id() string {
	sum := sha256.Sum256([]byte("shoal bridge network " + n.cfg.Scope))
	return hex.EncodeToString(sum[:])
}

// SetSubnet changes this node's slice of the container network, as when it joins a
// cluster. Containers connected before keep their addresses and everything they have:
// they go on to reach other containers here, the outside and, with this node's address, the
// overlay; only containers on other nodes can't reach them but through published ports.
func (n *Network) SetSubnet(ctx context.Context, subnet, cluster netip.Prefix) error {
	if !cluster.IsValid() {
		cluster = subnet
	}
	n.mu.Lock()
	same := n.subnet == subnet.Masked() && n.cluster == cluster.Masked()
	n.mu.Unlock()
	if same {
		return nil
	}
	n.kernel.Lock()
	n.mu.Lock()
	err := n.useSubnet(subnet, cluster)
	n.mu.Unlock()
	n.kernel.Unlock()
	if err != nil {
		return err
	}
	err = n.Setup(ctx)
	n.dropPool() // after Setup: what is made from now on has the new subnet
	return err
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
		vx, err := n.nl.LinkByName(vxlanName(n.cfg.Scope))
		if err != nil && !notFound(err) {
			return fmt.Errorf("find VXLAN device: %w", err)
		}
		if len(overlay.Routes) > 0 || vx != nil {
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
		if len(overlay.Routes) == 0 && vx == nil {
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

// syncTable makes the nftables table as it shall be. Caller holds kernel.
func (n *Network) syncTable() error {
	n.mu.Lock()
	d := n.desired()
	n.mu.Unlock()
	return n.table.apply(d)
}

// desired is the table for the current state. Caller holds mu.
func (n *Network) desired() desired {
	d := desired{frame: frame{
		bridge: bridgeName(n.cfg.Scope), vxlan: vxlanName(n.cfg.Scope),
		slice: n.subnet, subnets: []netip.Prefix{n.subnet}, cluster: n.cluster,
		overlay: len(n.overlay.Routes) > 0, vni: n.cfg.VNI, vxlanPort: n.cfg.VXLANPort,
	}}
	local := map[portKey]netip.AddrPort{}
	for _, r := range n.endpoints {
		if r.Mode != modeBridge {
			continue
		}
		if s := r.Address.Masked(); !slices.Contains(d.subnets, s) {
			d.subnets = append(d.subnets, s)
		}
		for _, p := range r.publishes() {
			local[keyOf(p)] = target(r.Address, p)
		}
	}
	slices.SortFunc(d.subnets, netip.Prefix.Compare)
	var forwards []Forward
	for _, f := range n.overlay.Forwards {
		if c, ok := n.claims.held[keyOf(f.Publish)]; ok && c.owner == forwardOwner {
			forwards = append(forwards, f)
		}
	}
	d.ports = mergePorts(local, forwards)
	for _, r := range n.overlay.Routes {
		d.peers = append(d.peers, r.Host)
	}
	slices.SortFunc(d.peers, netip.Addr.Compare)
	d.peers = slices.Compact(d.peers)
	return d
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

// Close lets go of sockets and files. Containers and their traffic go on, but nothing
// guards their ports until a new Network takes over. Call it after Run has ended.
func (n *Network) Close() error {
	n.dropPool()
	n.kernel.Lock()
	defer n.kernel.Unlock()
	n.mu.Lock()
	n.claims.close()
	n.mu.Unlock()
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	n.host.close()
	return nil
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
