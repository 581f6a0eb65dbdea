package node

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The files a container gets from its engine, by where it finds them.
var networkFiles = []string{"resolv.conf", "hostname", "hosts"}

// writeFiles makes /etc/hosts, /etc/hostname and /etc/resolv.conf. They are
// rewritten in place, since a container that still has them mounted sees the
// same file.
func (n *Node) writeFiles(r record, p place) error {
	dir := n.containerDir(r.ID)
	for name, text := range map[string]string{
		"hosts":       n.hostsFile(r, p),
		"hostname":    r.Config.Hostname + "\n",
		"resolv.conf": resolvConf(r, p, readFirst("/etc/resolv.conf")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the container's %s: %w", name, err)
		}
	}
	return nil
}

// fileMounts mounts the files over what the image has. A container that shares
// another's network shares that one's files, too.
func (n *Node) fileMounts(r record, p place, taken map[string]bool) []specs.Mount {
	dir := n.containerDir(r.ID)
	if p.shares != nil {
		dir = p.shares.dir
	}
	var ms []specs.Mount
	for _, name := range networkFiles {
		if target := "/etc/" + name; !taken[target] {
			ms = append(ms, specs.Mount{
				Destination: target, Type: "bind", Source: filepath.Join(dir, name),
				Options: []string{"rbind", "rprivate"},
			})
		}
	}
	return ms
}

const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

func (n *Node) hostsFile(r record, p place) string {
	var b strings.Builder
	if r.HostConfig.NetworkMode.IsHost() {
		b.Write(readFirst("/etc/hosts"))
	} else {
		b.WriteString(localHosts)
	}
	for _, e := range r.HostConfig.ExtraHosts {
		name, address, _ := strings.Cut(e, ":")
		if address == "host-gateway" {
			address = n.network.Info().Gateway.String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(address, "[]"), name)
	}
	for _, link := range r.HostConfig.Links {
		ref, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = ref
		}
		if c, err := n.index.find(ref); err == nil {
			if e, ok := n.network.Endpoint(c.id); ok {
				fmt.Fprintf(&b, "%s\t%s\n", e.Address.Addr(), strings.TrimPrefix(alias, "/"))
			}
		}
	}
	if a := p.endpoint.Address; a.IsValid() {
		names := r.Config.Hostname
		if r.Config.Domainname != "" {
			names = names + "." + r.Config.Domainname + " " + names
		}
		fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), names)
	}
	return b.String()
}

// resolvConf composes name resolution: what the user says, else the network's
// own servers, else the host's; of the host's only those that a container with a
// network of its own can reach.
func resolvConf(r record, p place, hosts []byte) string {
	host := parseResolv(hosts)
	c := resolv{servers: host.servers, search: host.search, options: host.options}
	if len(p.endpoint.DNS) > 0 {
		c.servers = p.endpoint.DNS
	} else if r.HostConfig.NetworkMode.IsPrivate() {
		c.servers = nil
		for _, s := range host.servers {
			if !s.IsLoopback() {
				c.servers = append(c.servers, s)
			}
		}
	}
	if len(r.HostConfig.DNS) > 0 {
		c.servers = r.HostConfig.DNS
	}
	if len(r.HostConfig.DNSSearch) > 0 {
		c.search = r.HostConfig.DNSSearch
		if len(c.search) == 1 && c.search[0] == "." {
			c.search = nil
		}
	}
	if len(r.HostConfig.DNSOptions) > 0 {
		c.options = r.HostConfig.DNSOptions
	}
	return c.String()
}

// resolv is a resolv.conf.
type resolv struct {
	servers         []netip.Addr
	search, options []string
}

func parseResolv(b []byte) resolv {
	var r resolv
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a)
			}
		case "search", "domain":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

func (r resolv) String() string {
	var b strings.Builder
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.search, " "))
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.String()
}
