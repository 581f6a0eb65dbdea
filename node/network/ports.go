package network

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	mobynet "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// The range host ports are chosen from, Docker's own.
const (
	firstChosenPort = 49153
	lastChosenPort  = 65535
)

// forwardOwner owns the claims of ports that lead to other hosts; no container has the name.
const forwardOwner = ""

// claims are the host's ports in use by containers, here or elsewhere. Each is held by a
// bound socket, so that no other program takes it and other agents see it. Not safe for
// concurrent use.
type claims struct {
	host host
	// resolver is the gateway's address: what listens there on port 53 serves containers
	// and is in nobody's way, see frame.publishedPorts.
	resolver netip.Addr
	held     map[portKey]claim
	next     uint16 // where the search for a free port starts
}

type claim struct {
	owner  string   // a container's ID or forwardOwner
	socket *os.File // nil where the port could not be bound when an agent took over
}

func newClaims(h host) *claims {
	return &claims{host: h, held: map[portKey]claim{}, next: firstChosenPort}
}

// checkPublish says what is wrong with a publish, if anything.
func checkPublish(p Publish) error {
	if protoNumber(p.Proto) == 0 {
		return api.InvalidArgument("invalid proto: %s", p.Proto)
	}
	if p.ContainerPort == 0 {
		return api.InvalidArgument("invalid containerPort: 0")
	}
	if p.HostIP.IsValid() && !p.HostIP.Is4() {
		return api.InvalidArgument("invalid host address %s: ports are published on IPv4 addresses only", p.HostIP)
	}
	return nil
}

// claim takes all ports for a container and returns them with the ports chosen, or takes
// none. A port held by a forward goes to the container: displaced has those.
func (c *claims) claim(owner string, ps []Publish) (taken []Publish, displaced []portKey, err error) {
	defer func() {
		if err != nil {
			c.release(owner)
		}
	}()
	for _, p := range ps {
		if p.HostPort == 0 {
			p, err = c.choose(owner, p)
			if err != nil {
				return nil, displaced, err
			}
			taken = append(taken, p)
			continue
		}
		k := keyOf(p)
		for o, other := range c.held {
			if !k.overlaps(o) {
				continue
			}
			if other.owner != forwardOwner {
				return nil, displaced, api.Internal("Bind for %s failed: port is already allocated", k)
			}
			c.drop(o)
			displaced = append(displaced, o)
		}
		if err := c.hold(owner, k); err != nil {
			return nil, displaced, err
		}
		taken = append(taken, p)
	}
	return taken, displaced, nil
}

// choose finds a free port of the range.
func (c *claims) choose(owner string, p Publish) (Publish, error) {
	for range lastChosenPort - firstChosenPort + 1 {
		p.HostPort = c.next
		if c.next == lastChosenPort {
			c.next = firstChosenPort
		} else {
			c.next++
		}
		k := keyOf(p)
		if c.overlapped(k) {
			continue
		}
		err := c.hold(owner, k)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
			return Publish{}, err // e.g. an address this host doesn't have
		}
	}
	return Publish{}, api.Internal("Bind for %s failed: all ports are allocated", p.HostIP)
}

func (c *claims) overlapped(k portKey) bool {
	for o := range c.held {
		if k.overlaps(o) {
			return true
		}
	}
	return false
}

// hold claims a port that no other claim overlaps.
func (c *claims) hold(owner string, k portKey) error {
	var socket *os.File
	err := c.host.do(func() (err error) {
		socket, err = bind(k)
		if errors.Is(err, unix.EADDRINUSE) && !k.addr.IsValid() && k.port == 53 && c.onlyResolver(k.proto) {
			return nil // nothing can hold the port then
		}
		return err
	})
	if err != nil {
		return api.Internal("failed to bind host port for %s: %w", k, err)
	}
	c.held[k] = claim{owner: owner, socket: socket}
	return nil
}

// adopt claims a port of an agent before this one, whether or not it can be bound: the
// container has it.
func (c *claims) adopt(owner string, k portKey) error {
	err := c.hold(owner, k)
	if err != nil {
		c.held[k] = claim{owner: owner}
	}
	return err
}

// release gives back all ports of an owner.
func (c *claims) release(owner string) {
	for k, cl := range c.held {
		if cl.owner == owner {
			c.drop(k)
		}
	}
}

// drop gives back one port.
func (c *claims) drop(k portKey) {
	if cl, ok := c.held[k]; ok && cl.socket != nil {
		cl.socket.Close()
	}
	delete(c.held, k)
}

// close lets go of all sockets.
func (c *claims) close() {
	for k := range c.held {
		c.drop(k)
	}
}

// bind holds a port without listening on it: connections that reach the socket rather than
// a container are refused.
func bind(k portKey) (*os.File, error) {
	typ := unix.SOCK_STREAM
	switch k.proto {
	case mobynet.UDP:
		typ = unix.SOCK_DGRAM
	case mobynet.SCTP:
		return nil, nil // its sockets need a kernel module that is seldom there; the maps don't
	}
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "port "+k.String())
	addr := unix.SockaddrInet4{Port: int(k.port)}
	if k.addr.IsValid() {
		addr.Addr = k.addr.As4()
	}
	if typ == unix.SOCK_STREAM {
		// Closed connections of a program of before may linger on the port; a listener may
		// not. Afterwards the port is ours alone.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &addr)
	}
	if err == nil && typ == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// onlyResolver reports whether all sockets on port 53 listen on the resolver's address. It
// is called on a thread in the host's namespace.
func (c *claims) onlyResolver(proto mobynet.IPProtocol) bool {
	for _, suffix := range []string{"", "6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + string(proto) + suffix)
		if err != nil {
			continue // a kernel without IPv6
		}
		for _, local := range boundTo(string(b), 53) {
			if local != c.resolver {
				return false
			}
		}
	}
	return true
}

// boundTo reads a table of sockets in /proc/net: the local addresses of those that wait on
// a port. IPv6 addresses come out as the unspecified one: none is the resolver's.
func boundTo(table string, port uint16) []netip.Addr {
	const listening, unconnected = "0A", "07" // TCP's states; UDP's sockets are in the latter
	var addrs []netip.Addr
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != listening && f[3] != unconnected {
			continue
		}
		a, p, ok := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(p, 16, 16); !ok || err != nil || uint16(n) != port {
			continue
		}
		b, err := hex.DecodeString(a)
		if err != nil || len(b) != 4 {
			addrs = append(addrs, netip.IPv6Unspecified())
			continue
		}
		// The kernel prints the four bytes as one number of its own byte order.
		addrs = append(addrs, fromUint(binary.NativeEndian.Uint32(b)))
	}
	return addrs
}

// target is where a publish leads.
func target(a netip.Prefix, p Publish) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), p.ContainerPort)
}
