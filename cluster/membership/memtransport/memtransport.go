// Package memtransport carries gossip between nodes of one process, for tests.
//
// Unlike memberlist's own mock it buffers, so that nobody waits for a node that has
// stopped: packets to it are lost and streams fail, as on a network. All waiting is on
// channels and timers, so it works in bubbles of testing/synctest.
package memtransport

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const port = 7946

var (
	errRefused = errors.New("connection refused")
	errTimeout = errors.New("i/o timeout")
)

// Network joins transports.
type Network struct {
	reachable func(from, to string) bool

	mu    sync.Mutex
	addrs map[string]string     // ID -> its address, for good
	ends  map[string]*Transport // by address; those that run
}

// NewNetwork makes a network. reachable says whether packets pass from one node, by ID,
// to another; nil lets all pass. It is called with a lock held and must not call back.
func NewNetwork(reachable func(from, to string) bool) *Network {
	if reachable == nil {
		reachable = func(string, string) bool { return true }
	}
	return &Network{reachable: reachable, addrs: map[string]string{}, ends: map[string]*Transport{}}
}

// Transport makes a node's transport. One that was shut down is followed by a new one
// at the same address.
func (n *Network) Transport(id string) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, ok := n.addrs[id]
	if !ok {
		i := len(n.addrs) + 1
		addr = net.JoinHostPort(fmt.Sprintf("10.9.%d.%d", i>>8, i&0xff), strconv.Itoa(port))
		n.addrs[id] = addr
	}
	t := &Transport{
		n: n, id: id, addr: addr,
		packets: make(chan *memberlist.Packet, 1024),
		streams: make(chan net.Conn, 64),
	}
	n.ends[addr] = t
	return t
}

// Transport is one node's end; it implements memberlist.Transport.
type Transport struct {
	n        *Network
	id, addr string
	packets  chan *memberlist.Packet
	streams  chan net.Conn
}

var _ memberlist.Transport = (*Transport)(nil)

// Addr is where the others reach the node, "ip:port".
func (t *Transport) Addr() string { return t.addr }

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a, err := net.ResolveTCPAddr("tcp", t.addr)
	if err != nil {
		return nil, 0, err
	}
	return a.IP.To4(), a.Port, nil
}

// WriteTo implements memberlist.Transport: what can't be delivered is lost.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	from, err := net.ResolveUDPAddr("udp", t.addr)
	if err != nil {
		return now, err
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: from, Timestamp: now}
	if to, passes := t.peer(addr); passes && to != nil {
		select {
		case to.packets <- p:
		default:
		}
	}
	return now, nil
}

// peer is who runs at an address, and whether packets pass there and back.
func (t *Transport) peer(addr string) (to *Transport, passes bool) {
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	if t.n.ends[t.addr] != t {
		return nil, false
	}
	for id, a := range t.n.addrs {
		if a == addr {
			return t.n.ends[addr], t.n.reachable(t.id, id) && t.n.reachable(id, t.id)
		}
	}
	return nil, true
}

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, passes := t.peer(addr)
	if !passes {
		wait := time.NewTimer(timeout)
		defer wait.Stop()
		<-wait.C
		return nil, fmt.Errorf("dial %s: %w", addr, errTimeout)
	}
	if to == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, errRefused)
	}
	near, far := net.Pipe()
	select {
	case to.streams <- far:
		return near, nil
	default:
		return nil, fmt.Errorf("dial %s: %w", addr, errRefused)
	}
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport.
func (t *Transport) Shutdown() error {
	t.n.mu.Lock()
	if t.n.ends[t.addr] == t {
		delete(t.n.ends, t.addr)
	}
	t.n.mu.Unlock()
	for {
		select {
		case c := <-t.streams:
			c.Close()
		default:
			return nil
		}
	}
}
