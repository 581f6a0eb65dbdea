package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// prepared is a namespace that is ready for a container.
type prepared struct {
	netns   string // file name below RunDir
	link    string
	address netip.Prefix
	gateway netip.Addr
	mac     net.HardwareAddr
	bridge  int // what it was made for: it serves only while that is current
	mtu     int
}

// take hands out a namespace with an address, from the pool if there is one.
func (n *Network) take() (prepared, error) {
	n.mu.Lock()
	if n.degraded != nil {
		defer n.mu.Unlock()
		return prepared{}, n.degraded
	}
	var p prepared
	found := len(n.pool) > 0
	if found {
		p, n.pool = n.pool[0], slices.Clone(n.pool[1:])
		found = n.current(p)
	}
	n.mu.Unlock()
	n.wantRefill()
	if found {
		return p, nil
	}
	if p.netns != "" {
		n.warn("a namespace kept ready stays", n.discard(p))
	}
	return n.prepare(netip.Addr{}, nil)
}

// current reports whether the network is still what a namespace was made for. Caller holds mu.
func (n *Network) current(p prepared) bool {
	return p.bridge == n.bridge && p.mtu == n.mtu && p.gateway == gatewayOf(n.subnet) && n.degraded == nil
}

func (n *Network) wantRefill() {
	select {
	case n.refill <- struct{}{}:
	default: // asked already
	}
}

// prepare makes a namespace with a link. address and mac are chosen if not given.
func (n *Network) prepare(address netip.Addr, mac net.HardwareAddr) (prepared, error) {
	p, err := n.lease(address)
	if err != nil {
		return prepared{}, err
	}
	if p.mac = mac; mac == nil {
		p.mac = macOf(p.address.Addr())
	}
	for {
		id := randomID(16)
		p.netns, p.link = id, vethPrefix(n.cfg.Scope)+id[:maxLinkName-len(vethPrefix(n.cfg.Scope))]
		w := wire{link: p.link, bridge: p.bridge, mtu: p.mtu, address: p.address, gateway: p.gateway, mac: p.mac}
		err = n.makeNetns(p.netns, &w)
		if !errors.Is(err, unix.EEXIST) {
			break // else another link got the same name
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting--
	if err != nil {
		n.ipam.release(p.address.Addr())
		return prepared{}, err
	}
	return p, nil
}

// lease takes an address and counts the namespace as being made.
func (n *Network) lease(address netip.Addr) (p prepared, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.degraded != nil {
		return prepared{}, n.degraded
	}
	if address.IsValid() {
		err = n.ipam.reserve(address)
	} else if address, err = n.ipam.take(); err == nil {
		// Saved under the lock, so that files are as ordered as the addresses.
		n.warn("the next address is not saved", n.store.saveCursor(n.ipam))
	}
	if err != nil {
		return prepared{}, err
	}
	n.waiting++
	return prepared{
		address: netip.PrefixFrom(address, n.subnet.Bits()), gateway: gatewayOf(n.subnet),
		bridge: n.bridge, mtu: n.mtu,
	}, nil
}

// makeNetns makes a namespace, with a link if w isn't nil.
func (n *Network) makeNetns(name string, w *wire) error {
	err := makeNetns(n.netnsPath(name), func(ns *os.File) error {
		if err := furnish(); err != nil || w == nil {
			return err
		}
		return w.connect(n.nl, ns)
	})
	if err != nil {
		return api.Internal("make container network: %w", err)
	}
	return nil
}

// discard undoes prepare.
func (n *Network) discard(p prepared) error {
	err := n.dissolve(p.netns, p.link)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ipam.release(p.address.Addr())
	return err
}

// dissolve lets go of a namespace. The kernel ends it, with its link, as soon as no process
// is in it, a few milliseconds later and many at once; to delete the link here would cost
// some 20 ms each. Until then the link is down, so that nothing is heard of the container.
// link is "" for a namespace without one.
func (n *Network) dissolve(netns, link string) error {
	var err error
	if link != "" {
		var l netlink.Link
		if l, err = n.nl.LinkByName(link); err == nil {
			err = n.nl.LinkSetDown(l)
		}
		if notFound(err) {
			err = nil
		} else if err != nil {
			err = fmt.Errorf("set %s down: %w", link, err)
		}
	}
	return errors.Join(err, unpin(n.netnsPath(netns)))
}

// fillPool makes namespaces until the pool is full.
func (n *Network) fillPool(ctx context.Context) {
	for ctx.Err() == nil && n.poolWants() {
		p, err := n.prepare(netip.Addr{}, nil)
		if err != nil {
			n.log.Warn("no network namespace is kept ready", "err", err)
			return
		}
		n.keep(p)
	}
}

func (n *Network) poolWants() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.degraded == nil && len(n.pool) < n.cfg.Pool
}

// keep puts a namespace into the pool, or discards it if the network has changed since.
func (n *Network) keep(p prepared) {
	n.mu.Lock()
	current := n.current(p)
	if current {
		n.pool = append(n.pool, p)
	}
	n.mu.Unlock()
	if !current {
		n.warn("a namespace kept ready stays", n.discard(p))
	}
}

// dropPool empties the pool.
func (n *Network) dropPool() {
	n.mu.Lock()
	pool := n.pool
	n.pool = nil
	n.mu.Unlock()
	for _, p := range pool {
		n.warn("a namespace kept ready stays", n.discard(p))
	}
	n.wantRefill()
}

// randomID is a name of n bytes of chance.
func randomID(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
