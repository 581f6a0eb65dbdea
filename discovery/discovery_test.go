package discovery_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// brief is what tests compare endpoints by.
func brief(es []discovery.Endpoint) []string {
	var out []string
	for _, e := range es {
		s := fmt.Sprintf("%s@%s %s:%d/%s", e.Name, e.Node, e.Address, e.Port, e.Proto)
		if e.Published.IsValid() {
			s += " as " + e.Published.String()
		}
		out = append(out, s)
	}
	return out
}

func TestFind(t *testing.T) {
	cat := discoverytest.New(discoverytest.Nodes(2)...)
	web := discoverytest.Running("web", "id1", "10.77.1.2", map[string]string{"app": "web", "tier": "gold"},
		catalog.Port{HostPort: 8080, ContainerPort: 80}, catalog.Port{HostPort: 8000, ContainerPort: 80, Proto: "tcp"},
		catalog.Port{HostIP: addr("127.0.0.1"), HostPort: 9000, ContainerPort: 9000, Proto: "tcp"})
	web.Summary.Ports = []container.PortSummary{
		{PrivatePort: 80, PublicPort: 8080, Type: "tcp"}, {PrivatePort: 53, Type: "udp"},
	}
	db := discoverytest.Running("db", "id2", "10.77.2.2", map[string]string{"app": "db"},
		catalog.Port{HostIP: addr("192.0.2.2"), HostPort: 5432, ContainerPort: 5432, Proto: "tcp"})
	plain := discoverytest.Running("plain", "id2", "10.77.2.3", nil)
	lost := discoverytest.Running("lost", "id2", "10.77.2.4", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80})
	lost.Lost = true
	sick := discoverytest.Running("sick", "id2", "10.77.2.5", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80})
	sick.Healthy = false
	dead := discoverytest.Running("dead", "id2", "10.77.2.6", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80})
	dead.State = container.StateExited
	paused := discoverytest.Running("paused", "id2", "10.77.2.7", map[string]string{"app": "web"}, catalog.Port{ContainerPort: 80})
	paused.State = container.StatePaused
	cat.Put(web, db, plain, lost, sick, dead, paused)

	for name, c := range map[string]struct {
		query discovery.Query
		want  []string
	}{
		"every port": {discovery.Query{Name: "web"}, []string{
			"web@node1 10.77.1.2:53/udp", "web@node1 10.77.1.2:80/tcp as 192.0.2.1:8000", "web@node1 10.77.1.2:9000/tcp",
		}},
		"one port":         {discovery.Query{Name: "web", Port: 80}, []string{"web@node1 10.77.1.2:80/tcp as 192.0.2.1:8000"}},
		"by protocol":      {discovery.Query{Name: "web", Proto: "udp"}, []string{"web@node1 10.77.1.2:53/udp"}},
		"undeclared":       {discovery.Query{Name: "plain", Port: 99, Proto: "udp"}, []string{"plain@node2 10.77.2.3:99/udp"}},
		"none declared":    {discovery.Query{Name: "plain"}, nil},
		"host address":     {discovery.Query{Name: "db"}, []string{"db@node2 10.77.2.2:5432/tcp as 192.0.2.2:5432"}},
		"full ID":          {discovery.Query{Name: db.ID, Port: 5432}, []string{"db@node2 10.77.2.2:5432/tcp as 192.0.2.2:5432"}},
		"short ID":         {discovery.Query{Name: db.ID[:12], Port: 5432}, []string{"db@node2 10.77.2.2:5432/tcp as 192.0.2.2:5432"}},
		"prefix":           {discovery.Query{Name: db.ID[:4], Port: 5432}, nil},
		"tag":              {discovery.Query{Tags: []string{"app=web"}, Port: 80}, []string{"web@node1 10.77.1.2:80/tcp as 192.0.2.1:8000"}},
		"key alone":        {discovery.Query{Tags: []string{"app"}, Port: 7}, []string{"db@node2 10.77.2.2:7/tcp", "web@node1 10.77.1.2:7/tcp"}},
		"all tags":         {discovery.Query{Tags: []string{"app=web", "tier=tin"}, Port: 80}, nil},
		"name and tag":     {discovery.Query{Name: "web", Tags: []string{"app=db"}, Port: 80}, nil},
		"lost":             {discovery.Query{Name: "lost", Port: 80}, nil},
		"sick":             {discovery.Query{Name: "sick", Port: 80}, nil},
		"dead":             {discovery.Query{Name: "dead", Port: 80}, nil},
		"paused":           {discovery.Query{Name: "paused", Port: 80}, nil},
		"nobody of a name": {discovery.Query{Name: "nobody", Port: 80}, nil},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, brief(discovery.Find(cat.View(), c.query))) })
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]discovery.Query{
		"": {}, "80": {Port: 80}, "53/udp": {Port: 53, Proto: "udp"}, "65535/tcp": {Port: 65535, Proto: "tcp"},
	} {
		port, proto, err := discovery.ParsePort(in)
		require.NoError(t, err)
		require.Equal(t, want, discovery.Query{Port: port, Proto: proto}, in)
	}
	for _, bad := range []string{"0", "65536", "-1", "http", "80/", "80/icmp", "/tcp", "80/tcp/udp"} {
		_, _, err := discovery.ParsePort(bad)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, bad)
	}
}

func TestResolveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(1)...)
		start := time.Now()
		steps := []func(){
			func() { cat.Touch() },
			func() { cat.Put(catalog.Container{ID: "x", Name: "db", NodeID: "id1"}) },
			func() {
				c := discoverytest.Running("db", "id1", "10.77.1.2", nil)
				c.Healthy = false
				cat.Remove("db")
				cat.Put(c)
			},
			func() { cat.Put(discoverytest.Running("db", "id1", "10.77.1.2", nil)) },
		}
		go func() {
			for _, step := range steps {
				<-time.After(10 * time.Second)
				step()
			}
		}()
		es, err := discovery.Resolve(t.Context(), cat, discovery.Query{Name: "db", Port: 5432})
		require.NoError(t, err)
		require.Equal(t, []string{"db@node1 10.77.1.2:5432/tcp"}, brief(es))
		require.Equal(t, 40*time.Second, time.Since(start))
	})
}

func TestResolveSaysWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(1)...)
		state := func(name string, f func(*catalog.Container)) {
			c := discoverytest.Running(name, "id1", "10.77.1.2", map[string]string{"app": "x"})
			f(&c)
			cat.Put(c)
		}
		state("lost", func(c *catalog.Container) { c.Lost = true })
		state("exited", func(c *catalog.Container) { c.State = container.StateExited })
		state("claimed", func(c *catalog.Container) { c.State = "" })
		state("sick", func(c *catalog.Container) { c.Healthy = false })
		state("nowhere", func(c *catalog.Container) { c.Addresses = nil })
		state("mute", func(c *catalog.Container) { c.Tags = nil })
		for want, q := range map[string]discovery.Query{
			"nothing serves 80/tcp of db: no such container":                                              {Name: "db", Port: 80},
			"nothing serves 80/udp of lost: container lost is on a node that can't be reached":            {Name: "lost", Port: 80, Proto: "udp"},
			"nothing serves 80/tcp of exited: container exited is exited":                                 {Name: "exited", Port: 80},
			"nothing serves 80/tcp of claimed: container claimed is being created":                        {Name: "claimed", Port: 80},
			"nothing serves 80/tcp of sick: container sick isn't healthy":                                 {Name: "sick", Port: 80},
			"nothing serves 80/tcp of nowhere: container nowhere has no address":                          {Name: "nowhere", Port: 80},
			"nothing serves any port of mute: container mute declares no such port":                       {Name: "mute"},
			"nothing serves any udp port with app=y: no container matches":                                {Tags: []string{"app=y"}, Proto: "udp"},
			"nothing serves any port with app=x: none of 5 containers is ready":                           {Tags: []string{"app=x"}},
			"nothing serves 80/tcp of lost with app=x: container lost is on a node that can't be reached": {Name: "lost", Tags: []string{"app=x"}, Port: 80},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := discovery.Resolve(ctx, cat, q)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.EqualError(t, err, want+": context deadline exceeded")
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(2)...)
		a := discoverytest.Running("a", "id1", "10.77.1.2", map[string]string{"app": "x"}, catalog.Port{ContainerPort: 80})
		cat.Put(a)
		s, err := discovery.Watch(t.Context(), cat, discovery.Query{Tags: []string{"app=x"}})
		require.NoError(t, err)
		next := func(kind string, names ...string) {
			t.Helper()
			c, err := s.Recv()
			require.NoError(t, err)
			require.Equal(t, kind, c.Type)
			require.Equal(t, cat.View().Index(), c.Index)
			var got []string
			for _, e := range c.Endpoints {
				got = append(got, e.Name)
			}
			require.Equal(t, names, got)
		}
		next(discovery.Snapshot, "a")
		b := discoverytest.Running("b", "id2", "10.77.2.2", map[string]string{"app": "x"}, catalog.Port{ContainerPort: 80})
		other := discoverytest.Running("other", "id2", "10.77.2.3", nil, catalog.Port{ContainerPort: 80})
		go func() {
			<-time.After(time.Hour)
			cat.Put(other)
			<-time.After(time.Hour)
			cat.Put(b)
		}()
		next(discovery.Added, "b")
		a.Started = a.Started.Add(time.Second)
		b.Lost = true
		cat.Put(a, b)
		next(discovery.Removed, "b")
		next(discovery.Changed, "a")
		go func() {
			<-time.After(time.Hour)
			require.NoError(t, s.Close())
		}()
		_, err = s.Recv()
		require.ErrorIs(t, err, io.EOF)

		empty, err := discovery.Watch(t.Context(), cat, discovery.Query{Name: "nobody"})
		require.NoError(t, err)
		c, err := empty.Recv()
		require.NoError(t, err)
		require.Equal(t, discovery.Change{Index: c.Index, Type: discovery.Snapshot, Endpoints: []discovery.Endpoint{}}, c)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		timed, err := discovery.Watch(ctx, cat, discovery.Query{Name: "nobody"})
		require.NoError(t, err)
		_, err = timed.Recv()
		require.NoError(t, err)
		_, err = timed.Recv()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Whatever happens between two readings, the sum of the changes is the state.
func TestWatchSumsToTheState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cat := discoverytest.New(discoverytest.Nodes(2)...)
		q := discovery.Query{Tags: []string{"app=x"}}
		s, err := discovery.Watch(context.Background(), cat, q)
		require.NoError(t, err)
		defer s.Close()
		sum := map[string]discovery.Endpoint{}
		id := func(e discovery.Endpoint) string { return fmt.Sprint(e.ID, e.Address, e.Port, e.Proto) }
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				c := discoverytest.Running(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"), "id1",
					rapid.SampledFrom([]string{"10.77.1.2", "10.77.1.3"}).Draw(t, "address"),
					map[string]string{"app": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")},
					catalog.Port{ContainerPort: uint16(rapid.IntRange(80, 82).Draw(t, "port"))})
				c.Healthy, c.Lost = rapid.Bool().Draw(t, "healthy"), rapid.Bool().Draw(t, "lost")
				c.Started = time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "started")), 0)
				cat.Put(c)
			}
			cat.Put(discoverytest.Running("mark", "id1", "10.77.1.9", map[string]string{"app": "x"},
				catalog.Port{ContainerPort: uint16(cat.View().Index())}))
			for index := uint64(0); index < cat.View().Index(); {
				c, err := s.Recv()
				require.NoError(t, err)
				index = c.Index
				for _, e := range c.Endpoints {
					_, known := sum[id(e)]
					switch c.Type {
					case discovery.Removed:
						require.True(t, known)
						delete(sum, id(e))
					case discovery.Changed:
						require.True(t, known)
						sum[id(e)] = e
					default:
						require.False(t, known)
						sum[id(e)] = e
					}
				}
				if c.Type != discovery.Added && c.Type != discovery.Snapshot {
					index = 0 // the mark's addition is still to come
				}
			}
			want := map[string]discovery.Endpoint{}
			for _, e := range discovery.Find(cat.View(), q) {
				want[id(e)] = e
			}
			require.Equal(t, want, sum)
		}
	})
}
