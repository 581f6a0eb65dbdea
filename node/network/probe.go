package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Finding is what Probe found out about one ability of the host.
type Finding struct {
	Name     string // what it is
	OK       bool
	Detail   string // why not, and what that means; "" if OK
	Optional bool   // the default network does without
}

// Probe tries out what container networking needs, in a network namespace of its own that
// is gone afterwards. The host's configuration is only read.
func Probe() []Finding {
	var fs []Finding
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fs = probeInside()
		return nil
	})
	namespaces := finding("network namespaces", "only --network host works", err)
	return append([]Finding{namespaces}, fs...)
}

// probeInside tries everything on a thread whose namespace is for trying.
func probeInside() []Finding {
	nl, err := openHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return []Finding{finding("netlink", "only --network host works", err)}
	}
	defer nl.Close()
	link := func(l netlink.Link) error {
		if err := nl.LinkAdd(l); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return errors.New("the kernel doesn't know this kind of link")
			}
			return err
		}
		return nil
	}
	named := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	veth := netlink.NewVeth(named("probe1"))
	veth.PeerName = "probe2"
	const noBridge = "only --network host and none work"
	fs := []Finding{
		finding("bridge", noBridge, link(&netlink.Bridge{LinkAttrs: named("probe0")})),
		finding("veth", noBridge, link(veth)),
		finding("vxlan", "containers reach other nodes' only through published ports",
			link(&netlink.Vxlan{LinkAttrs: named("probe3"), VxlanId: 1, Port: 4789})),
		finding("nftables", noBridge, probeRules()),
		finding("kernel parameters", noBridge, sysctl("ipv4/ip_forward", "1")),
	}
	fs[2].Optional = true
	return fs
}

// probeRules makes the rules that a host with an overlay and a published port has.
func probeRules() error {
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	t := table{name: "shoal-probe"}
	err := t.apply(desired{
		frame: frame{bridge: "probe0", vxlan: "probe3", slice: subnet, subnets: []netip.Prefix{subnet}, cluster: subnet, overlay: true, vni: 1, vxlanPort: 4789},
		ports: map[portKey]netip.AddrPort{{proto: "tcp", port: 80}: netip.AddrPortFrom(gatewayOf(subnet), 80)},
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the kernel lacks nat, fib, masquerade or reject for nftables: %w", err)
	}
	return err
}

func finding(name, without string, err error) Finding {
	switch {
	case err == nil:
		return Finding{Name: name, OK: true}
	case errors.Is(err, os.ErrPermission):
		return Finding{Name: name, Detail: fmt.Sprintf("%v: needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN; without, %s", err, without)}
	default:
		return Finding{Name: name, Detail: fmt.Sprintf("%v; without, %s", err, without)}
	}
}
