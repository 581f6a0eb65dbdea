// Package config is the agent's one configuration file.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/shoal-engine/shoal/transfer/pace"
	"github.com/shoal-engine/shoal/transfer/plugin"

	"github.com/shoal-engine/shoal/node/image/registry"
)

// DefaultPath is where the agent looks unless told otherwise; the file may be absent.
const DefaultPath = "/etc/shoal/agent.toml"

// maxFile bounds what is read from a configuration file.
const maxFile = 1 << 20

// Config is everything about an agent that can be chosen.
type Config struct {
	// Data is where images, containers and the catalog are kept; it needs a real
	// file system with overlay support, and belongs to one agent at a time.
	Data string `toml:"data"`
	// Run holds sockets and pinned namespaces; it may vanish at a reboot.
	Run string `toml:"run"`
	// Name of the node in the cluster; empty means the host's name.
	Name string `toml:"name"`
	// Advertise is the address other nodes reach this one at; empty means the
	// address of the default route's link.
	Advertise string `toml:"advertise"`
	// Tags describe the node to placement rules: zone = "a".
	Tags map[string]string `toml:"tags"`
	// SocketGroup owns the sockets besides root: whoever is in it is root on every
	// node, as with Docker's group. Empty means root alone.
	SocketGroup string    `toml:"socket_group"`
	Ports       Ports     `toml:"ports"`
	Network     Network   `toml:"network"`
	DNS         DNS       `toml:"dns"`
	Transfer    Transfer  `toml:"transfer"`
	Transport   Transport `toml:"transport"`
	Registry    Registry  `toml:"registry"`
	Images      Images    `toml:"images"`
	Log         Log       `toml:"log"`
	Runtime     Runtime   `toml:"runtime"`
	// Distribution serves images to docker push, podman, skopeo and containerd.
	Distribution Distribution `toml:"distribution"`
}

// Ports the agent listens on once it is in a cluster, at Advertise. All of them
// authenticate: gossip with the cluster's key, the others with TLS and the node's ID.
type Ports struct {
	Gossip  uint16 `toml:"gossip"`  // UDP and TCP
	Control uint16 `toml:"control"` // TCP: Raft and forwarded calls
	Bulk    uint16 `toml:"bulk"`    // TCP: image layers, apart so that they never delay control
	// VXLAN is UDP and takes packets from members' addresses only.
	VXLAN uint16 `toml:"vxlan"`
}

// Network is the containers' network.
type Network struct {
	// Pool is cut into one /24 a node. Every node of a cluster uses the pool it
	// was made with.
	Pool string `toml:"pool"`
	// MTU of containers' links; 0 means the host's link less the overlay's 50 bytes.
	MTU int `toml:"mtu"`
}

// DNS is the name server that hosts and containers ask.
type DNS struct {
	// Listen are addresses for the host's own use, besides the bridge that
	// containers ask. One that is taken is left out with a warning.
	Listen []string `toml:"listen"`
	// Upstream answers all other names; nil means the host's /etc/resolv.conf,
	// an empty list nobody.
	Upstream []string `toml:"upstream"`
	// Domain of the cluster's names.
	Domain string `toml:"domain"`
}

// Registry says how image registries are reached.
type Registry struct {
	// Mirrors are asked before the registry of a domain, such as docker.io, in their
	// order, for pulls only. They are trusted to say what a tag means, and are shown
	// no credentials.
	Mirrors map[string][]string `toml:"mirrors"`
	// Insecure hosts, host or host:port, may be spoken to without TLS or with
	// certificates that nobody vouches for, as loopback always may: whoever is on the
	// way there can read passwords and say what a tag means.
	Insecure []string `toml:"insecure"`
}

// Distribution is the cluster as a registry.
type Distribution struct {
	// Listen is where it is served; empty is nowhere. Its port is part of the names
	// of what is pushed, so all nodes should have the same. An address that is taken
	// is left out with a warning.
	Listen string `toml:"listen"`
	// Cert and Key are PEM files of this side, ClientCA of the authority that clients'
	// certificates must come from. All three or none; needed off the loopback device.
	Cert     string `toml:"cert"`
	Key      string `toml:"key"`
	ClientCA string `toml:"client_ca"`
}

// validate says what is wrong.
func (d Distribution) validate(bad func(setting, format string, a ...any)) {
	files := map[string]string{"cert": d.Cert, "key": d.Key, "client_ca": d.ClientCA}
	set := 0
	for name, path := range files {
		if path != "" {
			set++
			if !filepath.IsAbs(path) {
				bad("distribution."+name, "%q is not an absolute path", path)
			}
		}
	}
	if set != 0 && set != len(files) {
		bad("distribution", "cert, key and client_ca go together: set all three or none")
	}
	if d.Listen == "" {
		return
	}
	addr, err := netip.ParseAddrPort(d.Listen)
	switch {
	case err != nil || addr.Port() == 0:
		bad("distribution.listen", "%q is not address:port, such as 127.0.0.1:5000", d.Listen)
	case !addr.Addr().IsLoopback() && set == 0:
		bad("distribution.listen", "%q can be reached from other hosts: set cert, key and client_ca, so that only clients with a certificate are served, or listen on 127.0.0.1", d.Listen)
	}
}

// Transfer bounds what image layers take of the links: "100mbit" or "12.5MB" a second,
// with other nodes and registries together; empty is no limit. Control traffic isn't
// counted and never waits.
type Transfer struct {
	Upload   string `toml:"upload"`
	Download string `toml:"download"`
}

// Limits are the settings as what keeps to them.
func (t Transfer) Limits() (pace.Limits, error) {
	up, err := pace.Parse(t.Upload)
	if err != nil {
		return pace.Limits{}, fmt.Errorf("setting transfer.upload: %w", err)
	}
	down, err := pace.Parse(t.Download)
	if err != nil {
		return pace.Limits{}, fmt.Errorf("setting transfer.download: %w", err)
	}
	return pace.Limits{Up: pace.New(up), Down: pace.New(down)}, nil
}

// Transport is what carries blobs besides the cluster's nodes and registries.
type Transport struct {
	// Plugins are names of executables shoal-transport-NAME, asked in this order
	// after the nodes and before registries.
	Plugins []string `toml:"plugins"`
	// PluginDir is where they lie. They, and all directories on the way, must be
	// writable by root alone.
	PluginDir string `toml:"plugin_dir"`
	// Offer gives plugins that want them the blobs of every image that is loaded,
	// imported or pulled here.
	Offer bool `toml:"offer"`
	// Settings are passed on, by plugin: what they mean is the plugin's business.
	Settings map[string]map[string]string `toml:"settings"`
}

// Images says how containers wait for their images.
type Images struct {
	// StartEarly starts containers while their images are still coming from other
	// nodes: what they read is fetched first, on the word of one node that holds the
	// image whole; see docs/start-early.md.
	StartEarly bool `toml:"start_early"`
}

// Runtime tunes how containers are started.
type Runtime struct {
	// FavorDynMods remounts the host's cgroup v2 hierarchy so that moving a process
	// into a group doesn't wait for the kernel: containers start some 10 ms sooner,
	// forks and exits get slower. It lasts until the host reboots.
	FavorDynMods bool `toml:"favordynmods"`
}

// Log says what is logged to standard error, and how.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text, json
}

// Default is a configuration that works on a plain host.
func Default() Config {
	return Config{
		Data:      "/var/lib/shoal",
		Run:       "/run/shoal",
		Ports:     Ports{Gossip: 7946, Control: 7947, Bulk: 7948, VXLAN: 4789},
		Network:   Network{Pool: "10.77.0.0/16"},
		DNS:       DNS{Listen: []string{"127.0.0.1:53"}, Domain: "shoal"},
		Transport: Transport{Plugins: []string{}, PluginDir: "/usr/libexec/shoal"},
		Log:       Log{Level: "info", Format: "text"},

		Distribution: Distribution{Listen: "127.0.0.1:5000"},
	}
}

// Load reads the file over the defaults. A missing file is an error unless path is
// DefaultPath. Unknown keys are errors, so that a typing mistake is found at once.
func Load(path string) (Config, error) {
	c := Default()
	raw, err := readBounded(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
	case err != nil:
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	default:
		if c, err = Parse(raw); err != nil {
			return Config{}, fmt.Errorf("configuration %s: %w", path, err)
		}
	}
	if err := c.fill(); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

func readBounded(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Size() > maxFile {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	raw, err := os.ReadFile(path)
	return string(raw), err
}

// Parse reads a configuration over the defaults.
func Parse(text string) (Config, error) {
	c := Default()
	meta, err := toml.Decode(text, &c)
	if err != nil {
		return Config{}, err
	}
	if keys := meta.Undecoded(); len(keys) > 0 {
		names := make([]string, len(keys))
		for i, k := range keys {
			names[i] = k.String()
		}
		return Config{}, fmt.Errorf("unknown setting %s", strings.Join(names, ", "))
	}
	return c, nil
}

// fill finds out what was left to the host.
func (c *Config) fill() error {
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w", err)
		}
		c.Name, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	if c.Advertise == "" {
		// Connecting a UDP socket sends nothing; it asks the routing table.
		conn, err := net.Dial("udp4", "192.0.2.1:9")
		if err != nil {
			c.Advertise = "127.0.0.1"
			return nil
		}
		defer conn.Close()
		c.Advertise = conn.LocalAddr().(*net.UDPAddr).IP.String()
	}
	return nil
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) //nolint:gochecknoglobals // a constant in all but name

// Validate says what is wrong, and with which setting.
func (c Config) Validate() error {
	var errs []error
	bad := func(setting, format string, a ...any) {
		errs = append(errs, fmt.Errorf("setting %s: %s", setting, fmt.Sprintf(format, a...)))
	}
	for setting, dir := range map[string]string{"data": c.Data, "run": c.Run} {
		if !filepath.IsAbs(dir) {
			bad(setting, "%q is not an absolute path", dir)
		}
	}
	if len(c.Run) > 90 {
		bad("run", "%q is too long for the names of unix sockets (90 bytes)", c.Run)
	}
	if !nodeName.MatchString(c.Name) {
		bad("name", "%q: want lower-case letters, digits and hyphens, as in a host's name", c.Name)
	}
	if a, err := netip.ParseAddr(c.Advertise); err != nil || a.IsUnspecified() || !a.Is4() {
		bad("advertise", "%q is not an IPv4 address others can reach", c.Advertise)
	}
	if p, err := netip.ParsePrefix(c.Network.Pool); err != nil || !p.Addr().Is4() || p.Bits() > 22 || p.Bits() < 8 {
		bad("network.pool", "%q is not an IPv4 prefix of 8 to 22 bits, such as 10.77.0.0/16", c.Network.Pool)
	}
	if c.Network.MTU != 0 && (c.Network.MTU < 576 || c.Network.MTU > 65000) {
		bad("network.mtu", "%d is not between 576 and 65000", c.Network.MTU)
	}
	seen := map[uint16]string{}
	for name, port := range map[string]uint16{"gossip": c.Ports.Gossip, "control": c.Ports.Control, "bulk": c.Ports.Bulk} {
		if port == 0 {
			bad("ports."+name, "0 is not a port")
		} else if other, taken := seen[port]; taken {
			bad("ports."+name, "%d is also ports.%s", port, other)
		}
		seen[port] = name
	}
	for _, a := range append(append([]string{}, c.DNS.Listen...), c.DNS.Upstream...) {
		if _, err := netip.ParseAddrPort(a); err != nil {
			bad("dns", "%q is not address:port", a)
		}
	}
	for domain, mirrors := range c.Registry.Mirrors {
		if err := registry.CheckHost(domain); err != nil {
			bad("registry.mirrors", "%s", err)
		}
		for _, m := range mirrors {
			if err := registry.CheckMirror(m); err != nil {
				bad("registry.mirrors", "%s", err)
			}
		}
	}
	for _, h := range c.Registry.Insecure {
		if err := registry.CheckHost(h); err != nil {
			bad("registry.insecure", "%s", err)
		}
	}
	c.Distribution.validate(bad)
	if _, err := c.Transfer.Limits(); err != nil {
		errs = append(errs, err)
	}
	c.Transport.validate(bad)
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		bad("log.level", "%q is not debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format", "%q is not text or json", c.Log.Format)
	}
	return errors.Join(errs...)
}

func (t Transport) validate(bad func(setting, format string, a ...any)) {
	for i, name := range t.Plugins {
		if err := plugin.CheckName(name); err != nil {
			bad("transport.plugins", "%v", err)
		}
		if slices.Contains(t.Plugins[:i], name) {
			bad("transport.plugins", "%q is there twice", name)
		}
	}
	if !filepath.IsAbs(t.PluginDir) {
		bad("transport.plugin_dir", "%q is not an absolute path", t.PluginDir)
	}
	for name := range t.Settings {
		if !slices.Contains(t.Plugins, name) {
			bad("transport.settings."+name, "transport.plugins has no %q", name)
		}
	}
}

// Socket is where the cluster is served, NodeSocket where this node alone is.
func (c Config) Socket() string { return filepath.Join(c.Run, "shoal.sock") }

// NodeSocket is where this node alone is served.
func (c Config) NodeSocket() string { return filepath.Join(c.Run, "node.sock") }
