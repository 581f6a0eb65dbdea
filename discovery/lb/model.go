package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
)

// The tags that are read; see the package's comment.
const (
	tagHost   = "lb.host"
	tagPath   = "lb.path"
	tagPort   = "lb.port"
	tagWeight = "lb.weight"
	tagDrain  = "lb.drain"
)

// maxWeight is HAProxy's and the least of the usual balancers'.
const maxWeight = 256

// Model is what a template renders. Equal catalogs make equal models: everything
// is in a stable order, and nothing is in it that changes by itself.
type Model struct {
	// Routes are to be tried in this order: exact hosts before wildcards before
	// every host, and longer paths first.
	Routes   []Route
	Problems []Problem
}

// Route leads requests to servers.
type Route struct {
	Name    string // unique, made of host and path; safe as an identifier
	Host    string // lower case; "" is every host
	Suffix  string // for a wildcard host "*.example.org": ".example.org", else ""
	Path    string // begins with "/"
	Servers []Server
}

// Server is one container that serves a route.
type Server struct {
	Name      string // the container's
	ID        string
	Node      string         // the node's name
	Endpoint  netip.AddrPort // the container's own address and port, reached from every node
	Published netip.AddrPort // the node's address and port; see HasPublished
	Weight    int            // 0 if it drains
	Drain     bool
	Tags      map[string]string
}

// HasPublished says whether the port is published, so that Published can be used.
func (s Server) HasPublished() bool { return s.Published.IsValid() }

// Problem is a container's tag that couldn't be used.
type Problem struct{ Container, Text string }

// Build makes the model of a view.
func Build(v catalog.View) Model {
	b := builder{view: v, routes: map[[2]string]*Route{}}
	cs := v.Containers()
	for i := range cs {
		c := &cs[i]
		_, host := c.Tags[tagHost]
		_, path := c.Tags[tagPath]
		_, port := c.Tags[tagPort]
		if host || path || port {
			b.container(c)
		}
	}
	var m Model
	for _, r := range b.routes {
		slices.SortFunc(r.Servers, func(x, y Server) int {
			return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.ID, y.ID))
		})
		m.Routes = append(m.Routes, *r)
	}
	slices.SortFunc(m.Routes, narrower)
	nameRoutes(m.Routes)
	slices.SortFunc(b.problems, func(x, y Problem) int {
		return cmp.Or(strings.Compare(x.Container, y.Container), strings.Compare(x.Text, y.Text))
	})
	m.Problems = b.problems
	return m
}

// narrower orders routes so that the first that matches is the right one.
func narrower(x, y Route) int {
	class := func(r Route) int {
		switch {
		case r.Host == "":
			return 2
		case r.Suffix != "":
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(class(x), class(y)),
		// A longer suffix is a narrower wildcard; among exact hosts the order is free.
		cmp.Compare(len(y.Suffix), len(x.Suffix)),
		strings.Compare(x.Host, y.Host),
		cmp.Compare(len(y.Path), len(x.Path)),
		strings.Compare(x.Path, y.Path),
	)
}

// nameRoutes gives every route an identifier. Different routes may read alike once
// their signs are gone; these get numbers, in their stable order.
func nameRoutes(routes []Route) {
	taken := map[string]bool{}
	for i := range routes {
		base := identifier(cmp.Or(routes[i].Host, "any") + routes[i].Path)
		name := base
		for n := 2; taken[name]; n++ {
			name = base + "_" + strconv.Itoa(n)
		}
		taken[name] = true
		routes[i].Name = name
	}
}

func identifier(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
	return strings.Trim(s, "_")
}

type builder struct {
	view     catalog.View
	routes   map[[2]string]*Route // by host and path
	problems []Problem
}

func (b *builder) problem(c *catalog.Container, format string, a ...any) {
	b.problems = append(b.problems, Problem{Container: printable(c.Name), Text: fmt.Sprintf(format, a...)})
}

func (b *builder) container(c *catalog.Container) {
	path := cmp.Or(c.Tags[tagPath], "/")
	if !validPath(path) {
		b.problem(c, "%s %q is not a path", tagPath, path)
		return
	}
	if path != "/" {
		path = strings.TrimRight(path, "/")
	}
	server, ready := b.server(c)
	seen := map[string]bool{}
	for host := range strings.SplitSeq(c.Tags[tagHost], ",") {
		host = strings.ToLower(strings.TrimSpace(host))
		if host == "*" {
			host = ""
		}
		if !validHost(host) {
			b.problem(c, "%s %q is not a host name", tagHost, host)
			continue
		}
		if seen[host] {
			continue
		}
		seen[host] = true
		key := [2]string{host, path}
		r := b.routes[key]
		if r == nil {
			r = &Route{Host: host, Path: path}
			if strings.HasPrefix(host, "*.") {
				r.Suffix = host[1:]
			}
			b.routes[key] = r
		}
		if ready {
			r.Servers = append(r.Servers, server)
		}
	}
}

// server reads what one container serves; ok is false if it doesn't serve now, or
// can't be made out.
func (b *builder) server(c *catalog.Container) (s Server, ok bool) {
	if !discovery.Ready(c) {
		return Server{}, false
	}
	n, _ := b.view.Node(c.NodeID)
	if !isName(c.Name) || !isName(n.Name) {
		b.problem(c, "its name or its node's is not a plain one")
		return Server{}, false
	}
	ports := discovery.Ports(c, n.Host)
	port, err := choosePort(ports, c.Tags[tagPort])
	if err != nil {
		b.problem(c, "%s", err)
		return Server{}, false
	}
	s = Server{
		Name: c.Name, ID: c.ID, Node: n.Name,
		Endpoint: netip.AddrPortFrom(c.Addresses[0], port.Number), Published: port.Published,
		Weight: 1, Drain: c.Tags[tagDrain] == "true", Tags: tame(c.Tags),
	}
	if w := c.Tags[tagWeight]; w != "" {
		weight, err := strconv.ParseUint(w, 10, 16)
		if err != nil || weight > maxWeight {
			b.problem(c, "%s %q is not a number from 0 to %d", tagWeight, w, maxWeight)
			weight = 1
		}
		s.Weight = int(weight)
	}
	if s.Drain {
		s.Weight = 0
	}
	return s, true
}

// choosePort finds the port that a tag asks for, or the only one there is.
func choosePort(ports []discovery.Port, tag string) (discovery.Port, error) {
	if tag != "" {
		number, err := strconv.ParseUint(tag, 10, 16)
		if err != nil || number == 0 {
			return discovery.Port{}, fmt.Errorf("%s %q is not a port", tagPort, tag)
		}
		for _, p := range ports {
			if p.Number == uint16(number) && p.Proto == "tcp" {
				return p, nil
			}
		}
		return discovery.Port{Number: uint16(number), Proto: "tcp"}, nil
	}
	ports = slices.DeleteFunc(slices.Clone(ports), func(p discovery.Port) bool { return p.Proto != "tcp" })
	if len(ports) != 1 {
		return discovery.Port{}, fmt.Errorf("%s is needed: it declares %d TCP ports", tagPort, len(ports))
	}
	return ports[0], nil
}

// tame leaves out the tags that could begin a line of their own.
func tame(tags map[string]string) map[string]string {
	out := make(map[string]string, len(tags))
	for k, v := range tags {
		if printable(k) == k && printable(v) == v {
			out[k] = v
		}
	}
	return out
}

// printable drops what could end a line or isn't text.
func printable(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "")
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return -1
		}
		return r
	}, s)
}

// isWord says whether s is safe unquoted in the languages of the usual balancers.
func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._:/@%+-", r))
	})
}

// isName is stricter: what every balancer takes for the name of a server.
func isName(s string) bool { return isWord(s) && !strings.ContainsAny(s, ":/@%+") }

func validPath(p string) bool { return len(p) <= 1024 && strings.HasPrefix(p, "/") && isWord(p) }

// validHost takes "" for every host.
func validHost(h string) bool {
	if h == "" {
		return true
	}
	if len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(h, "*."), ".") {
		if label == "" || label[0] == '-' || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return !(r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z')
		}) {
			return false
		}
	}
	return true
}
