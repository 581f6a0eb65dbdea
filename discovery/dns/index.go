package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
)

// index holds every name of one view of the catalog. It never changes.
type index struct {
	version uint64
	names   map[string]*entry // by lower-case name with the final dot
	subnets []netip.Prefix    // whose reverse names are ours
}

// entry is what a name stands for.
type entry struct {
	v4, v6  []netip.Addr
	targets []target
	ptr     string // the name that an address leads back to
}

// target is one place where a port is served.
type target struct {
	port  uint16 // of the container
	proto string
	host  string // name with the final dot
	addr  netip.Addr
	at    uint16 // port on host
}

// builder fills an index.
type builder struct {
	*index
	domain string // with the final dot
	nodes  map[string]*catalog.Node
}

func build(v catalog.View, domain string) *index {
	cs, nodes := v.Containers(), v.Nodes()
	b := builder{
		&index{version: v.Index(), names: make(map[string]*entry, 8*len(cs))},
		domain, make(map[string]*catalog.Node, len(nodes)),
	}
	for i := range nodes {
		b.nodes[nodes[i].ID] = &nodes[i]
	}
	for _, name := range []string{"", "node", "tag"} {
		b.entry(name, "") // these exist, so that what is below them may
	}
	for i := range cs {
		if discovery.Up(&cs[i]) {
			b.container(&cs[i])
		}
	}
	for i := range nodes {
		b.node(&nodes[i])
	}
	return b.index
}

func (b *builder) container(c *catalog.Container) {
	var targets []target
	n, known := b.nodes[c.NodeID]
	ready := known && discovery.Ready(c)
	if ready {
		targets = b.targets(c, n)
	}
	for name := range names(c) {
		e := b.entry(name, "")
		e.add(c.Addresses, targets)
		if b.free(name) {
			b.names[name+"."] = e
		}
	}
	if name, ok := hostname(c.Name); ok {
		for _, a := range c.Addresses {
			b.reverse(a, name+"."+b.domain)
		}
	}
	if ready {
		b.tags(c, targets)
	}
}

// names are those a container answers to, in lower case, each once.
func names(c *catalog.Container) map[string]struct{} {
	all := []string{c.Name, c.ID[:min(12, len(c.ID))]}
	if s := c.Summary.NetworkSettings; s != nil {
		for _, e := range s.Networks {
			if e != nil {
				all = slices.Concat(all, e.Aliases, e.DNSNames)
			}
		}
	}
	set := make(map[string]struct{}, len(all))
	for _, name := range all {
		if name, ok := hostname(name); ok {
			set[name] = struct{}{}
		}
	}
	return set
}

// free says whether a container may have the name also without the domain: not
// if that would be a name below the domain, or a reverse name.
func (b *builder) free(name string) bool {
	return !mdns.IsSubDomain(b.domain, name+".") && !mdns.IsSubDomain("arpa.", name+".")
}

func (b *builder) tags(c *catalog.Container, targets []target) {
	seen := map[string]bool{} // two tags of one container may read alike
	for k, v := range c.Tags {
		if name, ok := tagName(k, v); ok && !seen[name] {
			seen[name] = true
			b.entry(name, "tag").add(c.Addresses, targets)
		}
	}
}

func (b *builder) node(n *catalog.Node) {
	if n.Subnet.IsValid() {
		b.subnets = append(b.subnets, n.Subnet)
	}
	name, ok := hostname(n.Name)
	if !ok || !n.Host.IsValid() {
		return
	}
	// A node's name is its own, even if a container was called the same.
	full := name + ".node." + b.domain
	b.names[full] = &entry{}
	b.names[full].add([]netip.Addr{n.Host}, nil)
	b.reverse(n.Host, full)
}

// targets are where the container's ports are served.
func (b *builder) targets(c *catalog.Container, n *catalog.Node) []target {
	var ts []target
	node, nodeOK := hostname(n.Name)
	self, selfOK := hostname(c.Name)
	for _, p := range discovery.Ports(c, n.Host) {
		t := target{port: p.Number, proto: p.Proto}
		switch {
		case p.Published.IsValid() && p.Published.Addr() == n.Host && nodeOK:
			t.host, t.addr, t.at = node+".node."+b.domain, n.Host, p.Published.Port()
		case selfOK:
			t.host, t.addr, t.at = self+"."+b.domain, c.Addresses[0], p.Number
		default:
			continue
		}
		ts = append(ts, t)
	}
	return ts
}

// entry finds or makes the entry of NAME.UNDER.DOMAIN; either part may be empty.
func (b *builder) entry(name, under string) *entry {
	full := b.domain
	if under != "" {
		full = under + "." + full
	}
	if name != "" {
		full = name + "." + full
	}
	e := b.names[full]
	if e == nil {
		e = &entry{}
		b.names[full] = e
	}
	return e
}

func (b *builder) reverse(a netip.Addr, name string) {
	if arpa, err := mdns.ReverseAddr(a.String()); err == nil {
		b.names[arpa] = &entry{ptr: name}
	}
}

func (e *entry) add(addrs []netip.Addr, targets []target) {
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.Is4() {
			e.v4 = append(e.v4, a)
		} else if a.Is6() {
			e.v6 = append(e.v6, a)
		}
	}
	e.targets = append(e.targets, targets...)
}

// service finds the targets of _PORT._PROTO.REST; known says that REST is a name
// of ours.
func (x *index) service(name string) (ts []target, known bool) {
	port, rest, _ := strings.Cut(name, ".")
	proto, rest, _ := strings.Cut(rest, ".")
	port, isPort := strings.CutPrefix(port, "_")
	proto, isProto := strings.CutPrefix(proto, "_")
	e := x.names[rest]
	if !isPort || !isProto || e == nil {
		return nil, false
	}
	if number, err := strconv.ParseUint(port, 10, 16); err == nil {
		for _, t := range e.targets {
			if t.port == uint16(number) && t.proto == proto {
				ts = append(ts, t)
			}
		}
	}
	return ts, true
}

// owns says whether a reverse name is of an address of the container network.
func (x *index) owns(name string) bool {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	if !ok {
		return false
	}
	parts := strings.Split(digits, ".")
	slices.Reverse(parts)
	a, err := netip.ParseAddr(strings.Join(parts, "."))
	return err == nil && slices.ContainsFunc(x.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// maxName leaves room for "._65535._tcp" and a domain within the 253 bytes of a name.
const maxName = 180

// hostname lowers a container's, alias' or node's name, if it can be a DNS name.
func hostname(s string) (string, bool) {
	s = strings.ToLower(s)
	return s, fitsName(s) && !strings.ContainsFunc(s, func(r rune) bool { return r != '.' && !plain(r) })
}

// tagName is the name of a tag below tag.DOMAIN; see the package's comment.
func tagName(key, value string) (string, bool) {
	s := key
	if value != "" {
		s += "." + value
	}
	if len(s) > maxName {
		return "", false
	}
	s = strings.Map(func(r rune) rune {
		if r == '.' || plain(r) {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '.' }), ".")
	return s, fitsName(s)
}

func plain(r rune) bool {
	return r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z'
}

// fitsName says whether s has only labels of 1 to 63 bytes.
func fitsName(s string) bool {
	if len(s) > maxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}
