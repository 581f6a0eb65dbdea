package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// underlay is the network between the nodes. It exists in the lab's namespaces only.
var underlay = netip.MustParsePrefix("10.88.0.0/16") //nolint:gochecknoglobals // a constant in all but name

// Address is what node n has on the underlay.
func Address(n int) netip.Addr {
	a := underlay.Addr().As4()
	a[2], a[3] = byte(n/250), byte(n%250+1)
	return netip.AddrFrom4(a)
}

// pinNamespace makes a network namespace that lives as long as its file is mounted,
// and calls each of prepare in it.
func pinNamespace(path string, prepare ...func() error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create the namespace's file: %w", err)
	}
	f.Close()
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with its goroutine, and no other
		// code ever runs in the new namespace by accident.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		for _, p := range prepare {
			if err := p(); err != nil {
				done <- err
				return
			}
		}
		err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		if err != nil {
			err = fmt.Errorf("pin the network namespace at %s: %w", path, err)
		}
		done <- err
	}()
	return <-done
}

// unpinNamespace undoes pinNamespace; a namespace that isn't there is no error.
func unpinNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// pinned says whether there is a namespace at path.
func pinned(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}

// inside gives a netlink handle in the namespace pinned at path.
func inside(path string) (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, 0, fmt.Errorf("open the namespace %s: %w", path, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, 0, fmt.Errorf("netlink in %s: %w", path, err)
	}
	return h, ns, nil
}

// makeSwitch makes the namespace that the nodes' links end in, with its bridge.
func makeSwitch(path string) error {
	if err := pinNamespace(path, justSwitch); err != nil {
		return err
	}
	h, ns, err := inside(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	_, err = switchBridge(h, 0)
	return err
}

// justSwitch keeps frames that cross this namespace's bridges from the packet filter,
// where the module that brings them there is loaded: no switch does that.
func justSwitch() error {
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make the switch plain: %w", err)
		}
	}
	return nil
}

// switchBridge finds or makes the bridge of a group of the partition; group 0 is
// where everybody is while the network is whole.
func switchBridge(h *netlink.Handle, group int) (netlink.Link, error) {
	name := fmt.Sprintf("sw%d", group)
	if l, err := h.LinkByName(name); err == nil {
		return l, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("make the switch: %w", err)
	}
	if err := h.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bring the switch up: %w", err)
	}
	return h.LinkByName(name)
}

// plug connects a node's namespace with the switch: eth0 there, portN here.
func plug(switchPath, nodePath string, n int) error {
	sw, swNS, err := inside(switchPath)
	if err != nil {
		return err
	}
	defer swNS.Close()
	defer sw.Close()
	node, nodeNS, err := inside(nodePath)
	if err != nil {
		return err
	}
	defer nodeNS.Close()
	defer node.Close()

	br, err := switchBridge(sw, 0)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portName(n)
	attrs.MasterIndex = br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(nodeNS)}
	if err := sw.LinkAdd(veth); err != nil {
		return fmt.Errorf("link node %d: %w", n, err)
	}
	if err := sw.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring node %d's port up: %w", n, err)
	}
	for _, name := range []string{"lo", "eth0"} {
		l, err := node.LinkByName(name)
		if err != nil {
			return fmt.Errorf("node %d: find %s: %w", n, name, err)
		}
		if name == "eth0" {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: Address(n).AsSlice(), Mask: net.CIDRMask(underlay.Bits(), 32)}}
			if err := node.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("node %d: address: %w", n, err)
			}
		}
		if err := node.LinkSetUp(l); err != nil {
			return fmt.Errorf("node %d: bring %s up: %w", n, name, err)
		}
	}
	return nil
}

func portName(n int) string { return fmt.Sprintf("port%d", n) }

// shape limits both directions of a node's link to bits a second; 0 lifts the limit.
func shape(switchPath, nodePath string, n int, bits uint64) error {
	for _, end := range []struct{ path, link string }{{switchPath, portName(n)}, {nodePath, "eth0"}} {
		h, ns, err := inside(end.path)
		if err != nil {
			return err
		}
		err = shapeLink(h, end.link, bits)
		h.Close()
		ns.Close()
		if err != nil {
			return fmt.Errorf("shape node %d: %w", n, err)
		}
	}
	return nil
}

func shapeLink(h *netlink.Handle, name string, bits uint64) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if bits == 0 {
		err := h.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		return err
	}
	rate := bits / 8
	// The bucket must hold what the kernel hands out in one timer tick, and a
	// full segmentation-offload packet, or the link never reaches its rate.
	bucket := uint32(max(rate/250, 80<<10))
	return h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, bucket),
		Limit:      bucket + uint32(rate/20), // 50 ms of queue, as of a decent switch
	})
}

// group puts a node's port on the bridge of a partition's group.
func group(switchPath string, n, g int) error {
	h, ns, err := inside(switchPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	br, err := switchBridge(h, g)
	if err != nil {
		return err
	}
	port, err := h.LinkByName(portName(n))
	if err != nil {
		return fmt.Errorf("find node %d's port: %w", n, err)
	}
	return h.LinkSetMasterByIndex(port, br.Attrs().Index)
}
