package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"

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
	if len(n.pool) > 0 {
		p := n.pool[0]
		n.pool = append([]prepared(nil), n.pool[1:]...)
		n.mu.Unlock()
		n.wantRefill()
		return p, nil
	}
	n.mu.Unlock()
	n.wantRefill()
	return n.prepare(netip.Addr{}, nil)
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
	err := errors.Join(deleteLink(n.nl, p.link), unpin(n.netnsPath(p.netns)))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ipam.release(p.address.Addr())
	return err
}

// fillPool keeps the pool full until ctx ends.
func (n *Network) fillPool(ctx context.Context) {
	defer n.dropPool()
	n.wantRefill()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.refill:
		}
		for ctx.Err() == nil && n.poolWants() {
			p, err := n.prepare(netip.Addr{}, nil)
			if err != nil {
				n.log.Warn("no network namespace is kept ready", "err", err)
				break
			}
			n.keep(p)
		}
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
	current := p.bridge == n.bridge && p.mtu == n.mtu && p.gateway == gatewayOf(n.subnet) && n.degraded == nil
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
