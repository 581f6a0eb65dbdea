package dns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newServer(t testing.TB, cat catalog.Reader, upstream ...string) *Server {
	t.Helper()
	s, err := New(Config{Reader: cat, Self: "id1", Upstream: upstream, Logger: quiet()})
	require.NoError(t, err)
	return s
}

// sample is two nodes with containers in every state.
func sample() *discoverytest.Catalog {
	cat := discoverytest.New(discoverytest.Nodes(2)...)
	change := func(c catalog.Container, f func(*catalog.Container)) catalog.Container { f(&c); return c }
	tags := map[string]string{"app": "web", "com.example.Tier": "Gold 1", "empty": "", "long": strings.Repeat("x", 64)}
	cat.Put(
		change(discoverytest.Running("Web", "id1", "10.77.1.2", tags,
			catalog.Port{HostPort: 8080, ContainerPort: 80, Proto: "tcp"}), func(c *catalog.Container) {
			c.Summary.Ports = []container.PortSummary{{PrivatePort: 53, Type: "udp"}}
			c.Summary.NetworkSettings = &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{
				"shoal": {Aliases: []string{"www", "WWW", "bad name", "x.shoal", "1.1.77.10.in-addr.arpa"}}, "nil": nil,
			}}
		}),
		discoverytest.Running("web2", "id2", "10.77.2.2", map[string]string{"app": "WEB"}, catalog.Port{ContainerPort: 80}),
		change(discoverytest.Running("sick", "id2", "10.77.2.3", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80}),
			func(c *catalog.Container) { c.Healthy = false }),
		change(discoverytest.Running("lost", "id2", "10.77.2.4", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80}),
			func(c *catalog.Container) { c.Lost = true }),
		change(discoverytest.Running("exited", "id2", "10.77.2.5", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80}),
			func(c *catalog.Container) { c.State = container.StateExited }),
		change(discoverytest.Running("node1.node", "id2", "10.77.2.6", nil), func(*catalog.Container) {}),
		change(discoverytest.Running("six", "id2", "10.77.2.7", nil), func(c *catalog.Container) {
			c.Addresses = append(c.Addresses, netip.MustParseAddr("fd00::7"))
		}),
	)
	return cat
}

// ask puts one question through the handler and returns code and sorted records.
func ask(t testing.TB, s *Server, name string, qtype uint16) (string, []string) {
	t.Helper()
	q := new(mdns.Msg)
	q.SetQuestion(name, qtype)
	raw, err := q.Pack()
	require.NoError(t, err)
	var m mdns.Msg
	require.NoError(t, m.Unpack(s.Handle(t.Context(), raw, false)))
	require.Equal(t, q.Id, m.Id)
	require.True(t, m.Response)
	require.Equal(t, q.Question, m.Question)
	return mdns.RcodeToString[m.Rcode], render(&m)
}

func render(m *mdns.Msg) []string {
	var out []string
	for section, rrs := range map[string][]mdns.RR{"": m.Answer, "ns ": m.Ns, "extra ": m.Extra} {
		for _, rr := range rrs {
			if rr.Header().Rrtype == mdns.TypeOPT {
				continue
			}
			out = append(out, section+strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	slices.Sort(out)
	return out
}

func TestNames(t *testing.T) {
	cat := sample()
	s := newServer(t, cat)
	web, err := cat.View().Container("Web")
	require.NoError(t, err)
	soa := fmt.Sprintf("ns shoal. 0 IN SOA node1.node.shoal. hostmaster.shoal. %d 60 60 60 0", cat.View().Index())
	const a = mdns.TypeA
	for _, c := range []struct {
		name  string
		qtype uint16
		code  string
		want  []string
	}{
		{"web.", a, "NOERROR", []string{"web. 0 IN A 10.77.1.2"}},
		{"web.shoal.", a, "NOERROR", []string{"web.shoal. 0 IN A 10.77.1.2"}},
		{"WEB.Shoal.", a, "NOERROR", []string{"WEB.Shoal. 0 IN A 10.77.1.2"}},
		{"www.", a, "NOERROR", []string{"www. 0 IN A 10.77.1.2"}},
		{web.ID[:12] + ".", a, "NOERROR", []string{web.ID[:12] + ". 0 IN A 10.77.1.2"}},
		{web.ID[:11] + ".", a, "NXDOMAIN", nil},
		{"web.", mdns.TypeAAAA, "NOERROR", []string{soa}},
		{"web.", mdns.TypeMX, "NOERROR", []string{soa}},
		{"six.", mdns.TypeAAAA, "NOERROR", []string{"six. 0 IN AAAA fd00::7"}},
		{"six.", a, "NOERROR", []string{"six. 0 IN A 10.77.2.7"}},
		{"sick.", a, "NOERROR", []string{"sick. 0 IN A 10.77.2.3"}},
		{"lost.", a, "NXDOMAIN", nil},
		{"lost.shoal.", a, "NXDOMAIN", []string{soa}},
		{"exited.shoal.", a, "NXDOMAIN", []string{soa}},
		{"nobody.shoal.", mdns.TypeAAAA, "NXDOMAIN", []string{soa}},
		{"x.shoal.", a, "NXDOMAIN", []string{soa}},
		{"x.shoal.shoal.", a, "NOERROR", []string{"x.shoal.shoal. 0 IN A 10.77.1.2"}},
		{"node2.node.shoal.", a, "NOERROR", []string{"node2.node.shoal. 0 IN A 192.0.2.2"}},
		{"node1.node.shoal.", a, "NOERROR", []string{"node1.node.shoal. 0 IN A 192.0.2.1"}},
		{"node1.node.", a, "NOERROR", []string{"node1.node. 0 IN A 10.77.2.6"}},
		{"node9.node.shoal.", a, "NXDOMAIN", []string{soa}},
		{"node.shoal.", a, "NOERROR", []string{soa}},
		{"tag.shoal.", a, "NOERROR", []string{soa}},
		{"shoal.", a, "NOERROR", []string{soa}},
		{"shoal.", mdns.TypeSOA, "NOERROR", []string{soa[3:]}},
		{"app.web.tag.shoal.", a, "NOERROR", []string{"app.web.tag.shoal. 0 IN A 10.77.1.2", "app.web.tag.shoal. 0 IN A 10.77.2.2"}},
		{"com.example.tier.gold-1.tag.shoal.", a, "NOERROR", []string{"com.example.tier.gold-1.tag.shoal. 0 IN A 10.77.1.2"}},
		{"empty.tag.shoal.", a, "NOERROR", []string{"empty.tag.shoal. 0 IN A 10.77.1.2"}},
		{"app.web.tag.", a, "NXDOMAIN", nil},
		{"web.", mdns.TypeSRV, "NOERROR", []string{
			"extra node1.node.shoal. 0 IN A 192.0.2.1", "extra web.shoal. 0 IN A 10.77.1.2",
			"web. 0 IN SRV 0 1 53 web.shoal.", "web. 0 IN SRV 0 1 8080 node1.node.shoal.",
		}},
		{"_80._tcp.web.shoal.", mdns.TypeSRV, "NOERROR", []string{
			"_80._tcp.web.shoal. 0 IN SRV 0 1 8080 node1.node.shoal.", "extra node1.node.shoal. 0 IN A 192.0.2.1",
		}},
		{"_53._udp.web.", mdns.TypeSRV, "NOERROR", []string{
			"_53._udp.web. 0 IN SRV 0 1 53 web.shoal.", "extra web.shoal. 0 IN A 10.77.1.2",
		}},
		{"_80._tcp.app.web.tag.shoal.", mdns.TypeSRV, "NOERROR", []string{
			"_80._tcp.app.web.tag.shoal. 0 IN SRV 0 1 80 web2.shoal.",
			"_80._tcp.app.web.tag.shoal. 0 IN SRV 0 1 8080 node1.node.shoal.",
			"extra node1.node.shoal. 0 IN A 192.0.2.1", "extra web2.shoal. 0 IN A 10.77.2.2",
		}},
		{"_80._tcp.web.", a, "NOERROR", []string{soa}},
		{"_81._tcp.web.", mdns.TypeSRV, "NXDOMAIN", []string{soa}},
		{"_80._udp.web.shoal.", mdns.TypeSRV, "NXDOMAIN", []string{soa}},
		{"_http._tcp.web.", mdns.TypeSRV, "NXDOMAIN", []string{soa}},
		{"_80._tcp.sick.shoal.", mdns.TypeSRV, "NXDOMAIN", []string{soa}},
		{"2.1.77.10.in-addr.arpa.", mdns.TypePTR, "NOERROR", []string{"2.1.77.10.in-addr.arpa. 0 IN PTR web.shoal."}},
		{"1.2.0.192.in-addr.arpa.", mdns.TypePTR, "NOERROR", []string{"1.2.0.192.in-addr.arpa. 0 IN PTR node1.node.shoal."}},
		{"1.1.77.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN", []string{soa}},
		{"4.2.77.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN", []string{soa}},
		{"8.8.8.8.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN", nil},
		{"example.org.", a, "NXDOMAIN", nil},
	} {
		code, got := ask(t, s, c.name, c.qtype)
		require.Equal(t, c.code, code, "%s %s", c.name, mdns.TypeToString[c.qtype])
		require.Equal(t, c.want, got, "%s %s", c.name, mdns.TypeToString[c.qtype])
	}
}

// A name that appears is there for the next question, and one that stops goes
// with the index.
func TestNamesFollowTheCatalog(t *testing.T) {
	cat := discoverytest.New(discoverytest.Nodes(1)...)
	s := newServer(t, cat)
	code, _ := ask(t, s, "db.", mdns.TypeA)
	require.Equal(t, "NXDOMAIN", code)
	db := discoverytest.Running("db", "id1", "10.77.1.2", nil)
	cat.Put(db)
	code, _ = ask(t, s, "db.", mdns.TypeA)
	require.Equal(t, "NOERROR", code, "without Serve, on the first question")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, nil, nil) }()
	db.Lost = true
	cat.Put(db)
	require.Eventually(t, func() bool {
		code, _ = ask(t, s, "db.", mdns.TypeA)
		return code == "NXDOMAIN"
	}, time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func TestProtocol(t *testing.T) {
	s := newServer(t, sample(), "192.0.2.53")
	question := func(change func(*mdns.Msg)) []byte {
		m := new(mdns.Msg)
		m.SetQuestion("web.", mdns.TypeA)
		change(m)
		raw, err := m.Pack()
		require.NoError(t, err)
		return raw
	}
	edns := func(m *mdns.Msg) { m.SetEdns0(4096, false) }
	for name, c := range map[string]struct {
		raw  []byte
		code int // -1: no answer
	}{
		"usual":       {question(func(*mdns.Msg) {}), mdns.RcodeSuccess},
		"edns":        {question(edns), mdns.RcodeSuccess},
		"edns 1":      {question(func(m *mdns.Msg) { edns(m); m.IsEdns0().SetVersion(1) }), mdns.RcodeBadVers},
		"answer":      {question(func(m *mdns.Msg) { m.Response = true }), -1},
		"update":      {question(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }), mdns.RcodeNotImplemented},
		"no question": {question(func(m *mdns.Msg) { m.Question = nil }), mdns.RcodeFormatError},
		"two":         {question(func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), mdns.RcodeFormatError},
		"chaos":       {question(func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }), mdns.RcodeRefused},
		"axfr":        {question(func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }), mdns.RcodeRefused},
		"short":       {[]byte{1, 2, 3}, -1},
		"cut":         {question(func(*mdns.Msg) {})[:15], mdns.RcodeFormatError},
	} {
		t.Run(name, func(t *testing.T) {
			out := s.Handle(t.Context(), c.raw, false)
			if c.code < 0 {
				require.Empty(t, out)
				return
			}
			var m mdns.Msg
			require.NoError(t, m.Unpack(out))
			require.Equal(t, mdns.RcodeToString[c.code], mdns.RcodeToString[m.Rcode])
			require.Equal(t, c.raw[:2], out[:2])
			require.True(t, m.Response)
			if c.code == mdns.RcodeSuccess {
				require.True(t, m.Authoritative)
				require.True(t, m.RecursionAvailable)
				require.True(t, m.RecursionDesired)
				require.Equal(t, bytes.HasPrefix([]byte(name), []byte("edns")), m.IsEdns0() != nil)
			}
		})
	}
}

// crowd is a catalog in which n containers share a tag.
func crowd(n int) *discoverytest.Catalog {
	cat := discoverytest.New(discoverytest.Nodes(2)...)
	var cs []catalog.Container
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)})
		cs = append(cs, discoverytest.Running(fmt.Sprintf("c%d", i), "id1", a.String(), map[string]string{"app": "x"},
			catalog.Port{ContainerPort: 80}))
	}
	cat.Put(cs...)
	return cat
}

func TestTruncationAndTCP(t *testing.T) {
	s := newServer(t, crowd(300))
	udp, tcp := listen(t, s)
	for _, c := range []struct {
		size uint16 // 0: no EDNS
		most int
	}{{0, 512}, {100, 512}, {1232, 1232}, {65000, 1232}} {
		m := new(mdns.Msg)
		m.SetQuestion("app.x.tag.shoal.", mdns.TypeA)
		if c.size > 0 {
			m.SetEdns0(c.size, false)
		}
		raw, err := m.Pack()
		require.NoError(t, err)
		out := s.Handle(t.Context(), raw, false)
		require.LessOrEqual(t, len(out), c.most)
		var a mdns.Msg
		require.NoError(t, a.Unpack(out))
		require.True(t, a.Truncated)
		require.NotEmpty(t, a.Answer)
	}
	m := new(mdns.Msg)
	m.SetQuestion("app.x.tag.shoal.", mdns.TypeA)
	a, _, err := (&mdns.Client{}).Exchange(m, udp)
	require.NoError(t, err)
	require.True(t, a.Truncated)
	a, _, err = (&mdns.Client{Net: "tcp"}).Exchange(m, tcp)
	require.NoError(t, err)
	require.False(t, a.Truncated)
	require.Len(t, a.Answer, 300)
}

// Every container of a tag comes first about equally often, however it is asked.
func TestAnswersAreShuffled(t *testing.T) {
	s := newServer(t, crowd(4))
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeANY, mdns.TypeSRV} {
		first := map[string]int{}
		for range 800 {
			m := new(mdns.Msg)
			m.SetQuestion("app.x.tag.shoal.", qtype)
			raw, err := m.Pack()
			require.NoError(t, err)
			var a mdns.Msg
			require.NoError(t, a.Unpack(s.Handle(t.Context(), raw, false)))
			require.GreaterOrEqual(t, len(a.Answer), 4)
			first[a.Answer[0].String()]++
		}
		for rr, n := range first {
			if qtype != mdns.TypeANY {
				require.InDelta(t, 200, n, 80, rr)
			}
		}
	}
}

// listen serves on loopback until the test ends and returns the UDP and TCP addresses.
func listen(t testing.TB, s *Server) (udp, tcp string) {
	t.Helper()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	l, err := net.Listen("tcp4", p.LocalAddr().String())
	if err != nil {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.PacketConn{p}, []net.Listener{l}) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return p.LocalAddr().String(), l.Addr().String()
}

func TestDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("needs dig")
	}
	udp, tcp := listen(t, newServer(t, sample()))
	dig := func(addr string, args ...string) string {
		host, port, err := net.SplitHostPort(addr)
		require.NoError(t, err)
		out, err := exec.CommandContext(t.Context(), "dig",
			append([]string{"@" + host, "-p", port, "+time=5", "+tries=2", "+noall"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		for i := range lines {
			lines[i] = strings.Join(strings.Fields(lines[i]), " ")
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	require.Equal(t, "web.shoal. 0 IN A 10.77.1.2", dig(udp, "+answer", "web.shoal"))
	require.Equal(t, "app.web.tag.shoal. 0 IN A 10.77.1.2\napp.web.tag.shoal. 0 IN A 10.77.2.2",
		dig(udp, "+answer", "+noedns", "app.web.tag.shoal"))
	require.Equal(t, "_80._tcp.web. 0 IN SRV 0 1 8080 node1.node.shoal.\nnode1.node.shoal. 0 IN A 192.0.2.1",
		dig(udp, "+answer", "+additional", "-t", "SRV", "_80._tcp.web"))
	require.Equal(t, "2.1.77.10.in-addr.arpa. 0 IN PTR web.shoal.", dig(udp, "+answer", "-x", "10.77.1.2"))
	require.Contains(t, dig(udp, "+comments", "nobody.shoal"), "status: NXDOMAIN")
	require.Contains(t, dig(tcp, "+tcp", "+comments", "+answer", "web"), "web. 0 IN A 10.77.1.2")
	require.Contains(t, dig(udp, "+comments", "-t", "AAAA", "web"), "status: NOERROR")
}
