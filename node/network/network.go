package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/shoal-engine/shoal/api"
)

const (
	modeBridge = "bridge"
	modeNone   = "none"
)

// Config shapes a Network.
type Config struct {
	Root string // directory of state; made if missing
	// RunDir is the directory of pinned namespaces, used by nothing else, on a file system
	// that a reboot empties.
	RunDir string
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
	// VNI tells overlays on one port apart, the same on all nodes, below 2^24; 0: 21320.
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
	if cfg.VNI >= 1<<24 {
		return nil, api.InvalidArgument("network VNI %d is too big", cfg.VNI)
	}
	if cfg.Root == "" || cfg.RunDir == "" {
		return nil, api.InvalidArgument("network: root and run directory are needed")
	}
	if cfg.VXLANPort == 0 {
		cfg.VXLANPort = 4789
	}
	if cfg.VNI == 0 {
		cfg.VNI = 21320 // any number that others seldom take; they start at 1 and at 4096
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
	n.claims.resolver = gatewayOf(subnet)
	n.dropOverlapping()
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
	n.dropOverlapping()
	return nil
}

func (n *Network) netnsPath(name string) string { return filepath.Join(n.cfg.RunDir, name) }

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
	defer n.dropPool()
	n.wantRefill()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.refill:
			n.fillPool(ctx)
		case <-check.C:
			n.repair(ctx)
		}
	}
}

// checkInterval is how long containers may be cut off after somebody else on the host has
// flushed all nftables rules or deleted the bridge.
const checkInterval = 10 * time.Second

func (n *Network) warn(msg string, err error) {
	if err != nil {
		n.log.Warn(msg, "err", err)
	}
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
		overlay: n.overlay.On, vni: n.cfg.VNI, vxlanPort: n.cfg.VXLANPort,
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
