package lb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

type tags = map[string]string

func model(cs ...catalog.Container) Model {
	cat := discoverytest.New(discoverytest.Nodes(2)...)
	cat.Put(cs...)
	return Build(cat.View())
}

func on80(name string, t tags) catalog.Container {
	return discoverytest.Running(name, "id1", "10.77.1.2", t, catalog.Port{HostPort: 8080, ContainerPort: 80, Proto: "tcp"})
}

// brief is what tests compare routes by: "host path: server@address*weight".
func brief(m Model) []string {
	var out []string
	for _, r := range m.Routes {
		s := r.Host + " " + r.Path + ":"
		for _, v := range r.Servers {
			s += fmt.Sprintf(" %s@%s*%d", v.Name, v.Endpoint, v.Weight)
		}
		out = append(out, s)
	}
	return out
}

func TestBuild(t *testing.T) {
	state := func(c catalog.Container, f func(*catalog.Container)) catalog.Container { f(&c); return c }
	for name, c := range map[string]struct {
		in       []catalog.Container
		want     []string
		problems []string
	}{
		"nobody asks":  {in: []catalog.Container{on80("a", tags{"app": "x", "lb.weight": "3"})}},
		"host":         {in: []catalog.Container{on80("a", tags{"lb.host": "A.example"})}, want: []string{"a.example /: a@10.77.1.2:80*1"}},
		"path alone":   {in: []catalog.Container{on80("a", tags{"lb.path": "/api/"})}, want: []string{" /api: a@10.77.1.2:80*1"}},
		"port alone":   {in: []catalog.Container{on80("a", tags{"lb.port": "81"})}, want: []string{" /: a@10.77.1.2:81*1"}},
		"star":         {in: []catalog.Container{on80("a", tags{"lb.host": "*"})}, want: []string{" /: a@10.77.1.2:80*1"}},
		"weight":       {in: []catalog.Container{on80("a", tags{"lb.path": "/", "lb.weight": "7"})}, want: []string{" /: a@10.77.1.2:80*7"}},
		"drain":        {in: []catalog.Container{on80("a", tags{"lb.path": "/", "lb.weight": "7", "lb.drain": "true"})}, want: []string{" /: a@10.77.1.2:80*0"}},
		"servers sort": {in: []catalog.Container{on80("b", tags{"lb.host": "x"}), on80("a", tags{"lb.host": "x"})}, want: []string{"x /: a@10.77.1.2:80*1 b@10.77.1.2:80*1"}},
		"hosts, narrow first": {
			in: []catalog.Container{on80("a", tags{"lb.host": "*.x, *, b.x,a.x ,*.a.x, a.x"}), on80("b", tags{"lb.host": "a.x", "lb.path": "/long"})},
			want: []string{
				"a.x /long: b@10.77.1.2:80*1", "a.x /: a@10.77.1.2:80*1", "b.x /: a@10.77.1.2:80*1",
				"*.a.x /: a@10.77.1.2:80*1", "*.x /: a@10.77.1.2:80*1", " /: a@10.77.1.2:80*1",
			},
		},
		"away, route stays": {
			in: []catalog.Container{
				state(on80("a", tags{"lb.host": "x"}), func(c *catalog.Container) { c.Lost = true }),
				state(on80("b", tags{"lb.host": "x"}), func(c *catalog.Container) { c.Healthy = false }),
				state(on80("c", tags{"lb.host": "x"}), func(c *catalog.Container) { c.State = container.StateExited }),
				state(on80("d", tags{"lb.host": "x"}), func(c *catalog.Container) { c.State, c.Ports, c.Addresses = "", nil, nil }),
			},
			want: []string{"x /:"},
		},
		"no port": {
			in:   []catalog.Container{discoverytest.Running("a", "id1", "10.77.1.2", tags{"lb.host": "x"})},
			want: []string{"x /:"}, problems: []string{"a: lb.port is needed: it declares 0 TCP ports"},
		},
		"hostile": {
			in: []catalog.Container{
				on80("a", tags{"lb.host": "x\n    server evil 192.0.2.66:80"}), on80("b", tags{"lb.path": "/a b"}), on80("c", tags{"lb.path": "api"}),
				on80("d", tags{"lb.host": "-i"}), on80("e", tags{"lb.host": "x", "lb.weight": "1 backup"}), on80("f", tags{"lb.port": "80 check"}),
				on80("g h", tags{"lb.host": "x"}), on80("i", tags{"lb.host": "a..b"}), on80("j", tags{"lb.host": "*.*.x"}), on80("k", tags{"lb.host": "x }"}),
			},
			want: []string{"x /: e@10.77.1.2:80*1", " /:"},
			problems: []string{
				`a: lb.host "x\n    server evil 192.0.2.66:80" is not a host name`, `b: lb.path "/a b" is not a path`,
				`c: lb.path "api" is not a path`, `d: lb.host "-i" is not a host name`, `e: lb.weight "1 backup" is not a number from 0 to 256`,
				`f: lb.port "80 check" is not a port`, "g h: its name or its node's is not a plain one",
				`i: lb.host "a..b" is not a host name`, `j: lb.host "*.*.x" is not a host name`, `k: lb.host "x }" is not a host name`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := model(c.in...)
			require.Equal(t, c.want, brief(m))
			var problems []string
			for _, p := range m.Problems {
				problems = append(problems, p.Container+": "+p.Text)
			}
			require.Equal(t, c.problems, problems)
		})
	}
}

func TestServerHasBothAddresses(t *testing.T) {
	s := model(on80("a", tags{"lb.host": "x", "note": "a\nb", "ok": "yes"})).Routes[0].Servers[0]
	require.Equal(t, netip.MustParseAddrPort("10.77.1.2:80"), s.Endpoint)
	require.Equal(t, netip.MustParseAddrPort("192.0.2.1:8080"), s.Published)
	require.True(t, s.HasPublished())
	require.Equal(t, "node1", s.Node)
	require.Equal(t, tags{"lb.host": "x", "ok": "yes"}, s.Tags)
}

func TestRouteNamesAreUnique(t *testing.T) {
	m := model(on80("a", tags{"lb.path": "/a/b"}), on80("b", tags{"lb.path": "/a_b"}), on80("c", tags{"lb.path": "/a@b"}),
		on80("d", tags{"lb.host": "any"}), on80("e", tags{"lb.host": "*"}))
	names := map[string]bool{}
	for _, r := range m.Routes {
		require.False(t, names[r.Name], r.Name)
		names[r.Name] = true
	}
	require.Len(t, names, 5)
}

// Whatever tags say, no line of the file begins but those the template writes,
// and every word in them is one that the model vouches for.
func FuzzTagsInHAProxy(f *testing.F) {
	f.Add("a.example", "/api", "80", "1", "web")
	f.Add("x\n    server evil 192.0.2.66:80", "/\r\nbackend x", "80\n", "1 backup", "a\nb")
	f.Add("*.x,y", "/%0a{{.}}", "0", "-1", `"'`)
	t, err := ParseTemplate("haproxy", HAProxy, nil)
	if err != nil {
		f.Fatal(err)
	}
	empty, err := t.Render(Model{})
	if err != nil {
		f.Fatal(err)
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(empty)) {
		known[strings.TrimSuffix(line, "\n")] = true
	}
	f.Fuzz(func(tt *testing.T, host, path, port, weight, name string) {
		c := on80(name, tags{"lb.host": host, "lb.path": path, "lb.port": port, "lb.weight": weight, "x": host})
		text, err := t.Render(model(c))
		if err != nil {
			tt.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSuffix(line, "\n")
			fields := strings.Fields(line)
			if known[line] || len(fields) == 0 {
				continue
			}
			want := map[string][]int{"use_backend": {2, 9, 15}, "backend": {2}, "server": {5}}[fields[0]]
			ok := false
			for _, n := range want {
				ok = ok || n == len(fields)
			}
			if !ok || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) }) || strings.ContainsAny(line, "\"'\\#$") {
				tt.Fatalf("line %q from %q", line, []string{host, path, port, weight, name})
			}
		}
	})
}
