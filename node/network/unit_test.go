package network

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// An address is leased to one at a time, lies in the subnet, and rests after its release
// until every other free address has had its turn.
func TestIPAMLeases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subnet := netip.PrefixFrom(netip.MustParseAddr("10.77.3.0"), rapid.IntRange(26, 29).Draw(t, "bits"))
		size := 1<<(32-subnet.Bits()) - 3 // network, gateway, broadcast
		p := newIPAM(subnet)
		leased := map[netip.Addr]bool{}
		takenSince := map[netip.Addr]int{} // leases since an address was given back
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				a, err := p.take()
				if len(leased) == size {
					require.True(t, errdefs.IsUnavailable(err), err)
					return
				}
				require.NoError(t, err)
				require.False(t, leased[a], a)
				require.True(t, subnet.Contains(a), a)
				require.NotContains(t, []netip.Addr{subnet.Addr(), gatewayOf(subnet)}, a)
				require.True(t, subnet.Contains(a.Next()), "%s is the broadcast address", a)
				leased[a] = true
				delete(takenSince, a)
			},
			"release": func(t *rapid.T) {
				for a := range leased {
					p.release(a)
					delete(leased, a)
					return
				}
			},
			"reserve": func(t *rapid.T) {
				a := fromUint(p.base() + rapid.Uint32Range(0, uint32(size)+4).Draw(t, "offset"))
				err := p.reserve(a)
				switch {
				case !subnet.Contains(a):
					require.True(t, errdefs.IsInvalidArgument(err), err)
				case leased[a] || a == subnet.Addr() || a == gatewayOf(subnet) || !subnet.Contains(a.Next()):
					require.True(t, errdefs.IsConflict(err), err)
				default:
					require.NoError(t, err)
					leased[a] = true
				}
			},
		})
	})
}

func TestIPAMNextFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newIPAM(netip.MustParsePrefix("10.77.3.0/26"))
		held := rapid.IntRange(0, 40).Draw(t, "held")
		for range held {
			_, err := p.take()
			require.NoError(t, err)
		}
		a, err := p.take()
		require.NoError(t, err)
		p.release(a)
		for range 61 - held - 1 { // every other free address
			b, err := p.take()
			require.NoError(t, err)
			require.NotEqual(t, a, b)
		}
		b, err := p.take()
		require.NoError(t, err)
		require.Equal(t, a, b)
	})
}

func TestIPAMCursorSurvives(t *testing.T) {
	s := store{root: t.TempDir()}
	p := newIPAM(netip.MustParsePrefix("10.77.3.0/24"))
	for range 7 {
		_, err := p.take()
		require.NoError(t, err)
	}
	require.NoError(t, s.saveCursor(p))
	again := newIPAM(p.subnet)
	s.loadCursor(again)
	require.Equal(t, p.next, again.next)
	other := newIPAM(netip.MustParsePrefix("10.77.4.0/24"))
	s.loadCursor(other)
	require.Equal(t, other.first(), other.next)
}

func TestCheckSubnet(t *testing.T) {
	for text, ok := range map[string]bool{
		"10.77.3.0/24": true, "172.16.0.0/12": true, "10.0.0.0/29": true,
		"10.0.0.0/30": false, "0.0.0.0/0": false, "fd00::/64": false, "127.0.0.0/8": false, "224.0.0.0/8": false,
	} {
		require.Equal(t, ok, checkSubnet(netip.MustParsePrefix(text)) == nil, text)
	}
	require.Error(t, checkSubnet(netip.Prefix{}))
}

func TestMergePorts(t *testing.T) {
	lo := netip.MustParseAddr("127.0.0.1")
	at := netip.MustParseAddrPort
	key := func(addr netip.Addr, port uint16) portKey { return portKey{addr, "tcp", port} }
	forward := func(addr netip.Addr, port uint16, to string) Forward {
		return Forward{Publish: Publish{HostIP: addr, HostPort: port, Proto: "tcp"}, Target: at(to)}
	}
	type ports = map[portKey]netip.AddrPort
	none := netip.Addr{}
	for name, tt := range map[string]struct {
		local    ports
		forwards []Forward
		want     ports
	}{
		"nothing":                             {nil, nil, ports{}},
		"both":                                {ports{key(none, 1): at("10.0.0.1:1")}, []Forward{forward(none, 2, "10.0.0.2:2")}, ports{key(none, 1): at("10.0.0.1:1"), key(none, 2): at("10.0.0.2:2")}},
		"local wins":                          {ports{key(none, 1): at("10.0.0.1:1")}, []Forward{forward(none, 1, "10.0.0.2:2")}, ports{key(none, 1): at("10.0.0.1:1")}},
		"local of one address wins over all":  {ports{key(lo, 1): at("10.0.0.1:1")}, []Forward{forward(none, 1, "10.0.0.2:2")}, ports{key(lo, 1): at("10.0.0.1:1")}},
		"local of all wins over one":          {ports{key(none, 1): at("10.0.0.1:1")}, []Forward{forward(lo, 1, "10.0.0.2:2")}, ports{key(none, 1): at("10.0.0.1:1")}},
		"the first of two forwards":           {nil, []Forward{forward(none, 1, "10.0.0.2:2"), forward(none, 1, "10.0.0.3:3")}, ports{key(none, 1): at("10.0.0.2:2")}},
		"every address however it is written": {nil, []Forward{forward(netip.IPv4Unspecified(), 1, "10.0.0.2:2")}, ports{key(none, 1): at("10.0.0.2:2")}},
		"protocols are apart": {ports{{none, "udp", 1}: at("10.0.0.1:1")}, []Forward{forward(none, 1, "10.0.0.2:2")},
			ports{{none, "udp", 1}: at("10.0.0.1:1"), key(none, 1): at("10.0.0.2:2")}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tt.want, mergePorts(tt.local, tt.forwards)) })
	}
}

// Applying a difference leads from any map to any other.
func TestDiffPorts(t *testing.T) {
	gen := rapid.MapOf(rapid.Custom(func(t *rapid.T) portKey {
		return portKey{proto: "tcp", port: rapid.Uint16Range(1, 8).Draw(t, "port")}
	}), rapid.Custom(func(t *rapid.T) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), rapid.Uint16Range(1, 3).Draw(t, "to"))
	}))
	rapid.Check(t, func(t *rapid.T) {
		have, want := gen.Draw(t, "have"), gen.Draw(t, "want")
		for _, c := range diffPorts(have, want) {
			if c.to.IsValid() {
				require.NotContains(t, have, c.key, "the kernel refuses to add a key that is there")
				have[c.key] = c.to
			} else {
				require.Contains(t, have, c.key)
				delete(have, c.key)
			}
		}
		require.Equal(t, want, have)
	})
}

func TestElement(t *testing.T) {
	set, e := element(portKey{proto: "udp", port: 0x1234}, netip.MustParseAddrPort("10.77.3.2:258"))
	require.Equal(t, mapAny, set)
	require.Equal(t, []byte{17, 0, 0, 0, 0x12, 0x34, 0, 0}, e.Key)
	require.Equal(t, []byte{10, 77, 3, 2, 1, 2, 0, 0}, e.Val)
	set, e = element(portKey{netip.MustParseAddr("1.2.3.4"), "tcp", 80}, netip.AddrPort{})
	require.Equal(t, mapBound, set)
	require.Equal(t, []byte{1, 2, 3, 4, 6, 0, 0, 0, 0, 80, 0, 0}, e.Key)
	require.Nil(t, e.Val)
}

func TestRules(t *testing.T) {
	slice := netip.MustParsePrefix("10.77.3.0/24")
	f := frame{bridge: "br", vxlan: "vx", slice: slice, subnets: []netip.Prefix{slice}, cluster: netip.MustParsePrefix("10.77.0.0/16"), vni: 7, vxlanPort: 4789}
	text := func(f frame) string {
		var b strings.Builder
		for _, c := range f.chains() {
			b.WriteString(c.name + "\n")
			for _, r := range c.rules {
				require.NotEmpty(t, r.exprs)
				b.WriteString("  " + strings.ReplaceAll(r.text, "meta nfproto ipv4 ", "") + "\n")
			}
		}
		return b.String()
	}
	require.Equal(t, `guard
  iifname br ip daddr 127.0.0.0/8 drop
  iifname vx ip daddr 127.0.0.0/8 drop
published_ports
  ip daddr 10.77.3.1/32 meta l4proto 17 th dport 53 return
  ip daddr 10.77.3.1/32 meta l4proto 6 th dport 53 return
  dnat ip to ip daddr . meta l4proto . th dport map @published_bound
  dnat ip to meta l4proto . th dport map @published
prerouting
  ip daddr 127.0.0.0/8 return
  fib daddr type local jump published_ports
output
  fib daddr type local jump published_ports
postrouting
  oifname br ip saddr 127.0.0.0/8 masquerade
  oifname br ip saddr 10.77.3.0/24 ct status dnat masquerade
  oifname vx ip saddr != 10.77.3.0/24 masquerade
  ip saddr 10.77.3.0/24 oifname != br oifname != vx masquerade
forward
  oifname br iifname != br iifname != vx ct state & (established | related) == 0 ct status & dnat == 0 drop
  iifname br oifname != br oifname != vx ip daddr 10.77.0.0/16 ct status & dnat == 0 reject with icmpx host-unreachable
input
`, text(f))
	f.overlay = true
	require.Contains(t, text(f), `input
  meta l4proto 17 th dport 4789 @th,96,24 7 ip saddr @peers accept
  meta l4proto 17 th dport 4789 @th,96,24 7 drop
`)
}

func TestCheckRoutes(t *testing.T) {
	own := netip.MustParsePrefix("10.77.1.0/24")
	route := func(host, subnet string) Route {
		return Route{Host: netip.MustParseAddr(host), Subnet: netip.MustParsePrefix(subnet)}
	}
	require.NoError(t, checkRoutes(own, []Route{route("192.0.2.1", "10.77.2.0/24"), route("192.0.2.2", "10.77.3.0/24")}))
	require.True(t, errdefs.IsConflict(checkRoutes(own, []Route{route("192.0.2.1", "10.77.1.0/25")})))
	require.True(t, errdefs.IsConflict(checkRoutes(own, []Route{route("192.0.2.1", "10.77.2.0/24"), route("192.0.2.2", "10.77.2.0/24")})))
	require.True(t, errdefs.IsInvalidArgument(checkRoutes(own, []Route{route("2001:db8::1", "10.77.2.0/24")})))
	require.True(t, errdefs.IsInvalidArgument(checkRoutes(own, []Route{route("192.0.2.1", "10.77.2.0/31")})))
}

func TestNewRefuses(t *testing.T) {
	good := Config{Root: t.TempDir(), RunDir: t.TempDir(), Scope: Scope("/var/lib/shoal")}
	_, err := New(good)
	require.NoError(t, err)
	for name, spoil := range map[string]func(*Config){
		"scope too long":     func(c *Config) { c.Scope = "123456789" },
		"scope with a slash": func(c *Config) { c.Scope = "a/b" },
		"no root":            func(c *Config) { c.Root = "" },
		"IPv6 subnet":        func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"outside the cluster": func(c *Config) {
			c.Subnet, c.ClusterSubnet = netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.2.0.0/16")
		},
		"VNI too big":       func(c *Config) { c.VNI = 1 << 24 },
		"no such namespace": func(c *Config) { c.Netns = filepath.Join(t.TempDir(), "none") },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			spoil(&c)
			_, err := New(c)
			require.Error(t, err)
		})
	}
}

// All names fit into the kernel's 15 bytes.
func TestLinkNames(t *testing.T) {
	scope := Scope("/var/lib/shoal")
	require.Regexp(t, scopeSyntax, scope)
	require.NotEqual(t, scope, Scope("/var/lib/other"))
	require.LessOrEqual(t, len(bridgeName(scope)), maxLinkName)
	require.LessOrEqual(t, len(vxlanName(scope)), maxLinkName)
	require.LessOrEqual(t, len(vethPrefix(scope)), maxLinkName-5, "five digits of chance")
}

func TestBoundTo(t *testing.T) {
	b, err := os.ReadFile("testdata/proc_net_tcp")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.77.3.1"), netip.IPv4Unspecified()}, boundTo(string(b), 53))
	require.Empty(t, boundTo(string(b), 54))
	require.Equal(t, []netip.Addr{netip.IPv6Unspecified()}, boundTo("0: 00000000000000000000000000000000:0035 0:0 07", 53))
}

func FuzzDecodeRecord(f *testing.F) {
	good := record{Version: recordVersion, ContainerID: "a", Mode: modeBridge, Netns: "n", Link: "vtest-1", MAC: "02:42:0a:4d:03:02",
		Address: netip.MustParsePrefix("10.77.3.2/24"), Gateway: netip.MustParseAddr("10.77.3.1")}
	good.setPublishes([]Publish{tcp(8080, 80)})
	b, err := json.Marshal(good)
	require.NoError(f, err)
	_, err = decodeRecord(b)
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"version":1,"container":"a","mode":"none","netns":"n"}`))
	f.Add([]byte(`{"version":1,"container":"../a","mode":"none","netns":"/etc"}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(strings.Replace(string(b), "10.77.3.1", "fd00::1", 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		// What is accepted names no file elsewhere, can become rules, and comes back the same.
		for _, name := range []string{r.ContainerID, r.Netns} {
			require.Equal(t, filepath.Join("/x", name), "/x/"+name)
		}
		if r.Mode == modeBridge {
			for _, p := range r.publishes() {
				_, e := element(keyOf(p), target(r.Address, p))
				require.Len(t, e.Val, 8)
			}
		}
		again, err := json.Marshal(r)
		require.NoError(t, err)
		back, err := decodeRecord(again)
		require.NoError(t, err)
		require.Equal(t, r, back)
	})
}

func FuzzBoundTo(f *testing.F) {
	b, err := os.ReadFile("testdata/proc_net_tcp")
	require.NoError(f, err)
	f.Add(string(b), uint16(53))
	f.Fuzz(func(t *testing.T, table string, port uint16) {
		for _, a := range boundTo(table, port) {
			require.True(t, a.IsValid())
		}
	})
}
