package listing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func id(c string) string { return strings.Repeat(c, 64) }

// five containers, oldest first; three and four were made in the same second, and
// four, the newer, stands first.
func five() []container.Summary {
	one := container.Summary{
		ID: id("1"), Names: []string{"/web"}, Image: "nginx:1.25", ImageID: "sha256:" + id("a"), Created: 100,
		State: container.StateRunning, Status: "Up 3 hours (healthy)", Labels: map[string]string{"tier": "front", "x": ""},
		Ports: []container.PortSummary{
			{PrivatePort: 80, PublicPort: 8080, Type: "tcp", IP: netip.IPv4Unspecified()}, {PrivatePort: 53, Type: "udp"},
		},
		Mounts: []container.MountPoint{{Type: "volume", Name: "data", Destination: "/var/lib"}, {Type: "bind", Source: "/src", Destination: "/dst"}},
		NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{
			"front": {NetworkID: "feed0001"}, "odd": nil,
		}},
	}
	two := container.Summary{
		ID: id("2"), Names: []string{"/db", "/web/link"}, Image: "postgres", ImageID: "sha256:" + id("b"), Created: 200,
		State: container.StateExited, Status: "Exited (3) 2 minutes ago",
		Labels: map[string]string{"com.docker.swarm.task.id": "t"},
	}
	three := container.Summary{ID: "12" + id("3")[2:], Names: []string{"/three"}, Created: 300, State: container.StatePaused, Status: "Up 1 second (Paused)"}
	four := container.Summary{ID: id("4"), Names: []string{"/four"}, Created: 300, State: container.StateCreated, Status: "Created"}
	five := container.Summary{ID: id("5"), Names: []string{"/restarting"}, Created: 400, State: container.StateRestarting,
		Status: "Restarting (1) 1 second ago", Image: "sha256:" + id("a"), ImageID: "sha256:" + id("a")}
	five.HostConfig.Annotations = map[string]string{"a": "b"}
	return []container.Summary{one, two, four, three, five}
}

func shown(t *testing.T, o api.ListOptions) string {
	t.Helper()
	all := five()
	got, err := Containers(all, o)
	require.NoError(t, err)
	require.Equal(t, five(), all, "the input is left alone")
	names := ""
	for _, c := range got {
		names += " " + strings.TrimPrefix(c.Names[0], "/")
	}
	return strings.TrimSpace(names)
}

func TestContainersAsDockerShowsThem(t *testing.T) {
	const all = "restarting four three db web"
	assert.Equal(t, "restarting three web", shown(t, api.ListOptions{}), "what has a process, newest first")
	assert.Equal(t, all, shown(t, api.ListOptions{All: true}))
	assert.Equal(t, "restarting four", shown(t, api.ListOptions{Limit: 2}), "a limit implies all")
	for _, c := range []struct{ key, value, want string }{
		{"id", "2222", "db"}, {"id", "^12", "three"}, {"id", "zz", ""},
		{"name", "e", "restarting three db web"}, {"name", "^/web$", "web"}, {"name", "^web$", "web"}, {"name", "(", ""},
		{"name", "^web", "db web"},
		{"label", "tier", "web"}, {"label", "tier=front", "web"}, {"label", "tier=back", ""}, {"label", "x=", "web"},
		{"annotation", "a=b", "restarting"},
		{"status", "exited", "db"}, {"status", "paused", "three"}, {"status", "created", "four"},
		{"ancestor", "nginx:1.25", "web"}, {"ancestor", "docker.io/library/nginx:1.25", "web"}, {"ancestor", "nginx", ""},
		{"ancestor", "postgres", "db"}, {"ancestor", "postgres:latest", "db"}, {"ancestor", "aaaaaaaaaaaa", "restarting web"},
		{"ancestor", "sha256:aa", "restarting web"}, {"ancestor", "sha256:", ""},
		{"exited", "3", "db"}, {"exited", "0", ""}, {"exited", "1", ""},
		{"network", "front", "web"}, {"network", "feed", "web"}, {"network", "odd", "web"}, {"network", "back", ""},
		{"publish", "8080", "web"}, {"publish", "8000-9000/tcp", "web"}, {"publish", "80", ""}, {"publish", "8080/udp", ""},
		{"expose", "80", "web"}, {"expose", "53/udp", "web"}, {"expose", "53", ""},
		{"volume", "data", "web"}, {"volume", "/var/lib", "web"}, {"volume", "/dst", "web"}, {"volume", "/src", "web"}, {"volume", "", ""},
		{"health", "healthy", "web"}, {"health", "none", "restarting four three db"},
		{"is-task", "true", "db"}, {"is-task", "0", "restarting four three web"},
		{"before", "four", "three db web"}, {"before", "/web/link", "web"}, {"since", "db", "restarting four three"},
		{"since", "2222", "restarting four three"}, {"isolation", "default", all},
	} {
		got := shown(t, api.ListOptions{All: true, Filters: api.Filters{c.key: {c.value}}})
		assert.Equal(t, c.want, got, "%s=%s", c.key, c.value)
	}
	assert.Equal(t, "db", shown(t, api.ListOptions{Filters: api.Filters{"status": {"exited"}}}), "a status implies all")
	assert.Equal(t, "db", shown(t, api.ListOptions{All: true, Limit: 1, Filters: api.Filters{"exited": {"3"}}}),
		"the limit counts what is shown")
	assert.Equal(t, "db", shown(t, api.ListOptions{Filters: api.Filters{"before": {"four"}, "since": {"web"}, "name": {"db", "x"}}}))
}

func TestContainersRefuseWhatMakesNoSense(t *testing.T) {
	for _, c := range []struct{ key, value, text string }{
		{"bogus", "x", "invalid filter 'bogus'"}, {"status", "x", "invalid filter 'status=x'"},
		{"health", "x", "invalid filter 'health=x'"}, {"exited", "x", "invalid filter 'exited=x'"},
		{"is-task", "x", "invalid filter 'is-task=[x]'"}, {"publish", "x", "invalid filter 'publish=x'"},
		{"expose", "9-8", "invalid filter 'expose=9-8'"}, {"before", "nosuch", "No such container: nosuch"},
	} {
		_, err := Containers(five(), api.ListOptions{Filters: api.Filters{c.key: {c.value}}})
		require.Error(t, err, c.key)
		assert.Contains(t, err.Error(), c.text)
		assert.True(t, errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err), "%v", err)
	}
}

func TestAnyListingIsPartOfAllInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := five()
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		whole, err := Containers(all, api.ListOptions{All: true})
		if err != nil || len(whole) != len(all) {
			t.Fatal(err, len(whole))
		}
		if !slices.IsSortedFunc(whole, func(a, b container.Summary) int { return int(b.Created - a.Created) }) {
			t.Fatal("not newest first")
		}
		o := api.ListOptions{All: rapid.Bool().Draw(t, "all"), Limit: rapid.IntRange(0, 6).Draw(t, "limit")}
		part, err := Containers(all, o)
		if err != nil {
			t.Fatal(err)
		}
		if o.Limit > 0 && len(part) != min(o.Limit, len(all)) {
			t.Fatalf("limit %d shows %d", o.Limit, len(part))
		}
		at := 0
		for _, c := range part {
			for at < len(whole) && whole[at].ID != c.ID {
				at++
			}
			if at == len(whole) {
				t.Fatal("a part out of order")
			}
		}
	})
}

func TestStatusReadsAsDockers(t *testing.T) {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		state             container.ContainerState
		started, finished time.Time
		code              int
		health            container.HealthStatus
		want              string
	}{
		{"created", time.Time{}, time.Time{}, 127, "", "Created"},
		{"running", ago(3 * time.Second), time.Time{}, 0, "none", "Up 3 seconds"},
		{"running", ago(time.Hour), time.Time{}, 0, "healthy", "Up About an hour (healthy)"},
		{"running", ago(0), time.Time{}, 0, "starting", "Up Less than a second (health: starting)"},
		{"paused", ago(5 * time.Minute), time.Time{}, 0, "healthy", "Up 5 minutes (Paused)"},
		{"restarting", ago(time.Hour), ago(2 * time.Second), 1, "", "Restarting (1) 2 seconds ago"},
		{"exited", ago(time.Hour), ago(2 * time.Minute), 137, "", "Exited (137) 2 minutes ago"},
		{"exited", ago(time.Hour), time.Time{}, 0, "", ""},
		{"removing", ago(1), ago(1), 0, "", "Removal In Progress"},
		{"dead", ago(1), ago(1), 0, "", "Dead"},
	} {
		got := Status(c.state, c.started, c.finished, c.code, c.health, now)
		assert.Equal(t, c.want, got)
		if code, ok := exitCode(got); ok {
			assert.Equal(t, c.code, code, "what is written can be read")
		}
	}
}

func TestResolvePrefersIDsToNamesToPrefixes(t *testing.T) {
	a, b := "ab"+id("1")[2:], "ab"+id("2")[2:]
	candidates := func(yield func(string, string) bool) {
		_ = yield(a, "/one") && yield(b, a[:12]) && yield(id("c"), "ab1") && yield(id("d"), "")
	}
	for ref, want := range map[string]string{
		a: a, "one": a, "/one": a, a[:12]: b, "ab1": id("c"), a[:20]: a, "ab2": b, "d": id("d"),
	} {
		got, err := Resolve(ref, candidates)
		assert.NoError(t, err, ref)
		assert.Equal(t, want, got, ref)
	}
	for ref, text := range map[string]string{
		"ab": "multiple IDs found with provided prefix: ab", "nosuch": "No such container: nosuch", "": "invalid name or ID supplied",
		"on": "No such container: on",
	} {
		_, err := Resolve(ref, candidates)
		assert.ErrorContains(t, err, text)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"web": true, "/web": true, "a.b_c-1": true, "w": false, "": false, "-a": false, "a b": false, "ä": false, "a/b": false, "web\n": false} {
		err := ValidateName(name)
		assert.Equal(t, ok, err == nil, "%q", name)
		assert.Equal(t, !ok, errdefs.IsInvalidArgument(err), "%q", name)
	}
	r := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for i := range 500 {
		name := RandomName(r, i%2 == 0)
		require.NoError(t, ValidateName(name))
		seen[name] = true
	}
	assert.Greater(t, len(seen), 400, "names repeat too soon")
	for _, list := range [][]string{adjectives, surnames} {
		assert.Len(t, slices.Compact(slices.Sorted(slices.Values(list))), len(list), "a word is there twice")
	}
}

func TestImagesAsDockerShowsThem(t *testing.T) {
	all := []image.Summary{
		{ID: "sha256:" + id("a"), RepoTags: []string{"busybox:latest", "host:5000/x/busybox:2"}, Created: 100, Labels: map[string]string{"a": "b"}},
		{ID: "sha256:" + id("b"), RepoTags: []string{"nginx:1"}, RepoDigests: []string{"nginx@sha256:" + id("f")}, Created: 200},
		{ID: "sha256:" + id("c"), Created: 300},
	}
	for _, c := range []struct{ key, value, want string }{
		{"", "", "c[] b[nginx:1] a[busybox:latest host:5000/x/busybox:2]"},
		{"dangling", "true", "c[]"}, {"dangling", "0", "b[nginx:1] a[busybox:latest host:5000/x/busybox:2]"},
		{"reference", "busybox", "a[busybox:latest]"}, {"reference", "*x:latest", "a[busybox:latest]"},
		{"reference", "host:5000/*/*", "a[host:5000/x/busybox:2]"}, {"reference", "nginx:1", "b[nginx:1]"},
		{"label", "a=b", "a[busybox:latest host:5000/x/busybox:2]"},
		{"before", "nginx:1", "a[busybox:latest host:5000/x/busybox:2]"}, {"since", "nginx:1", "c[]"}, {"since", "bbbb", "c[]"},
		{"until", "150", "a[busybox:latest host:5000/x/busybox:2]"},
	} {
		o := api.ImageListOptions{}
		if c.key != "" {
			o.Filters = api.Filters{c.key: {c.value}}
		}
		got, err := Images(all, o, now)
		require.NoError(t, err)
		var said []string
		for _, s := range got {
			said = append(said, fmt.Sprintf("%c%v", s.ID[7], s.RepoTags))
		}
		assert.Equal(t, c.want, strings.Join(said, " "), "%s=%s", c.key, c.value)
	}
	assert.Len(t, all[0].RepoTags, 2, "the input is left alone")
	for _, f := range []api.Filters{{"bogus": {"x"}}, {"dangling": {"x"}}, {"before": {"nosuch"}}, {"reference": {"["}}, {"until": {"x"}}} {
		_, err := Images(all, api.ImageListOptions{Filters: f}, now)
		assert.Error(t, err, "%v", f)
	}
}

func TestPrunes(t *testing.T) {
	got, err := PrunableContainers(five(), nil, now)
	require.NoError(t, err)
	assert.Len(t, got, 2, "db and four")
	got, err = PrunableContainers(five(), api.Filters{"label!": {"com.docker.swarm.task.id"}, "until": {"350"}}, now)
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.Equal(t, id("4"), got[0].ID)
	_, err = PrunableContainers(nil, api.Filters{"until": {"1", "2"}}, now)
	assert.True(t, errdefs.IsInvalidArgument(err))
	_, err = PrunableContainers(nil, api.Filters{"name": {"x"}}, now)
	assert.True(t, errdefs.IsInvalidArgument(err))

	images := []image.Summary{{ID: "a"}, {ID: "b", RepoTags: []string{"x:1"}}}
	for dangling, want := range map[string]int{"true": 1, "false": 2} {
		got, err := PrunableImages(images, api.Filters{"dangling": {dangling}}, now)
		require.NoError(t, err)
		assert.Len(t, got, want)
	}
}

func TestNetworksAsDockerShowsThem(t *testing.T) {
	all := []network.Inspect{
		{Network: network.Network{Name: "bridge", ID: "aa", Driver: "bridge", Scope: "local"}},
		{Network: network.Network{Name: "mine", ID: "bb", Driver: "overlay", Scope: "swarm", Labels: map[string]string{"x": "y"}}},
	}
	for _, c := range []struct{ key, value, want string }{
		{"name", "in", "mine"}, {"id", "a", "bridge"}, {"driver", "overlay", "mine"}, {"scope", "local", "bridge"},
		{"type", "custom", "mine"}, {"type", "builtin", "bridge"}, {"label", "x=y", "mine"}, {"dangling", "true", "mine"}, {"dangling", "false", "bridge"},
	} {
		got, err := Networks(all, api.Filters{c.key: {c.value}})
		require.NoError(t, err)
		require.Len(t, got, 1, "%s=%s", c.key, c.value)
		assert.Equal(t, c.want, got[0].Name)
	}
	for _, f := range []api.Filters{{"bogus": {"x"}}, {"type": {"x"}}} {
		_, err := Networks(all, f)
		assert.True(t, errdefs.IsInvalidArgument(err))
	}
}

func TestEventMatches(t *testing.T) {
	start := events.Message{Type: "container", Action: "start", Scope: "local", Actor: events.Actor{
		ID: id("1"), Attributes: map[string]string{"name": "web", "image": "nginx:1", "tier": "front"},
	}}
	exec := start
	exec.Action = "exec_create: sh -c ls"
	pull := events.Message{Type: "image", Action: "pull", Actor: events.Actor{ID: "nginx:1", Attributes: map[string]string{"name": "nginx"}}}
	for _, c := range []struct {
		m    events.Message
		f    api.Filters
		want bool
	}{
		{start, nil, true}, {start, api.Filters{"event": {"start", "die"}}, true}, {start, api.Filters{"event": {"sta"}}, false},
		{exec, api.Filters{"event": {"exec_create"}}, true}, {exec, api.Filters{"event": {"exec_start"}}, false},
		{exec, api.Filters{"event": {"exec_create: sh -c ls"}}, true},
		{start, api.Filters{"type": {"container"}}, true}, {start, api.Filters{"type": {"image"}}, false},
		{start, api.Filters{"container": {"web"}}, true}, {start, api.Filters{"container": {"/web"}}, true},
		{start, api.Filters{"container": {id("1")[:9]}}, true}, {start, api.Filters{"container": {"db"}}, false},
		{pull, api.Filters{"container": {"nginx"}}, false},
		{start, api.Filters{"label": {"tier=front"}}, true}, {start, api.Filters{"label": {"tier=back"}}, false},
		{start, api.Filters{"image": {"nginx:1"}}, true}, {start, api.Filters{"image": {"nginx"}}, true}, {start, api.Filters{"image": {"x"}}, false},
		{pull, api.Filters{"image": {"nginx"}}, true}, {start, api.Filters{"scope": {"swarm"}}, false}, {start, api.Filters{"bogus": {"x"}}, true},
		{start, api.Filters{"event": {"start"}, "type": {"image"}}, false},
	} {
		assert.Equal(t, c.want, EventMatches(c.f, c.m), "%v of %s", c.f, c.m.Action)
	}
}

func TestTimes(t *testing.T) {
	for s, want := range map[string]time.Time{
		"": {}, "0": {}, "100": time.Unix(100, 0), "100.5": time.Unix(100, 500_000_000), "100.000000001": time.Unix(100, 1),
		"10m": now.Add(-10 * time.Minute), "2030-01-02T03:04:05Z": now, "2030-01-02T03:04:05.000000007Z": now.Add(7),
		"2030-01-02T03:04:05": now, "2030-01-02": time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC),
	} {
		got, err := Time(s, now)
		assert.NoError(t, err, s)
		assert.True(t, want.Equal(got), "%s: %v", s, got)
	}
	for _, s := range []string{"x", "1.x", "99999999999999999999", "2030-13-01"} {
		_, err := Time(s, now)
		assert.True(t, errdefs.IsInvalidArgument(err), s)
	}
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"", "1.5", "-3.2", "10m", "2030-01-02T03:04:05Z", "1.9999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := Time(s, now); err != nil && !got.IsZero() {
			t.Fatal("an error and a time")
		}
	})
}

func FuzzContainersFilter(f *testing.F) {
	for _, s := range []string{`{"name":["a(b"]}`, `{"status":{"running":true}}`, `{"publish":["8000-9000/tcp"]}`, `{"ancestor":["sha256:"]}`, `{"before":["/"]}`, `null`, `{"id":null}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		filters, err := api.ParseFilters(s)
		if err != nil {
			return
		}
		got, err := Containers(five(), api.ListOptions{All: true, Filters: filters})
		if err != nil && (got != nil || api.Status(err) == 500) {
			t.Fatalf("%d containers and %v", len(got), err)
		}
		_, _ = Images(nil, api.ImageListOptions{Filters: filters}, now)
		for _, m := range []events.Message{{}, {Type: "container", Actor: events.Actor{ID: "x"}}} {
			EventMatches(filters, m)
		}
	})
}
