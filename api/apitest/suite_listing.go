package apitest

import (
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func listingTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"Rows": testRows, "Filters": testFilters, "LimitAndOrder": testOrder, "Top": testTop,
	}
}

// list lists the test's own containers.
func (s *suite) list(o api.ListOptions) []container.Summary {
	s.Helper()
	f := api.Filters{"label": {s.label}}
	for k, v := range o.Filters {
		f[k] = append(f[k], v...)
	}
	o.Filters = f
	all, err := s.Engine.ListContainers(s.ctx, o)
	require.NoError(s, err)
	return all
}

func testRows(s *suite) {
	o := s.options("sleep", "1000")
	o.Name = s.name("row")
	id := s.create(o)
	assert.Empty(s, s.list(api.ListOptions{}), "created containers are shown with all only")
	all := s.list(api.ListOptions{All: true})
	require.Len(s, all, 1)
	assert.Equal(s, container.StateCreated, all[0].State)
	assert.Equal(s, "Created", all[0].Status)

	s.start(id)
	all = s.list(api.ListOptions{})
	require.Len(s, all, 1)
	row := all[0]
	assert.Equal(s, id, row.ID)
	assert.Equal(s, []string{"/" + o.Name}, row.Names)
	assert.Equal(s, s.Image, row.Image)
	assert.Contains(s, row.ImageID, "sha256:")
	assert.Equal(s, "sleep 1000", row.Command)
	assert.Equal(s, container.StateRunning, row.State)
	assert.Regexp(s, `^Up `, row.Status)
	assert.Equal(s, "yes", row.Labels[s.label])
	assert.WithinDuration(s, time.Now(), time.Unix(row.Created, 0), limit)
	require.NotNil(s, row.NetworkSettings)
	assert.Contains(s, row.NetworkSettings.Networks, "none")

	require.NoError(s, s.Engine.KillContainer(s.ctx, id, "KILL"))
	s.recv(s.wait(id, container.WaitConditionNotRunning))
	all = s.list(api.ListOptions{All: true})
	require.Len(s, all, 1)
	assert.Equal(s, container.StateExited, all[0].State)
	assert.Regexp(s, `^Exited \(137\) .* ago$`, all[0].Status)
}

func testFilters(s *suite) {
	named := s.options("sh", "-c", "exit 3")
	named.Name = s.name("filtered")
	exited := s.create(named)
	wait := s.wait(exited, container.WaitConditionNextExit)
	s.start(exited)
	s.recv(wait)
	running := s.running()
	for name, c := range map[string]struct {
		f    api.Filters
		want []string
	}{
		"status":         {api.Filters{"status": {"exited"}}, []string{exited}},
		"two statuses":   {api.Filters{"status": {"exited", "running"}}, []string{running, exited}},
		"exit code":      {api.Filters{"exited": {"3"}}, []string{exited}},
		"other code":     {api.Filters{"exited": {"4"}}, nil},
		"id":             {api.Filters{"id": {running[:16]}}, []string{running}},
		"name":           {api.Filters{"name": {"filtered-"}}, []string{exited}},
		"name, anchored": {api.Filters{"name": {"^/" + named.Name + "$"}}, []string{exited}},
		"bare, anchored": {api.Filters{"name": {"^" + named.Name + "$"}}, []string{exited}},
		"label and more": {api.Filters{"label": {s.label + "=yes"}, "status": {"running"}}, []string{running}},
		"other label":    {api.Filters{"label": {s.label + "=no"}}, nil},
		"ancestor":       {api.Filters{"ancestor": {s.Image}}, []string{running, exited}},
		"no ancestor":    {api.Filters{"ancestor": {"no-such-image"}}, nil},
		"before":         {api.Filters{"before": {running}}, []string{exited}},
		"since":          {api.Filters{"since": {exited}}, []string{running}},
		"network":        {api.Filters{"network": {"none"}}, []string{running, exited}},
	} {
		var got []string
		for _, row := range s.list(api.ListOptions{All: true, Filters: c.f}) {
			got = append(got, row.ID)
		}
		assert.Equal(s, c.want, got, name)
	}
	_, err := s.Engine.ListContainers(s.ctx, api.ListOptions{Filters: api.Filters{"bogus": {"x"}}})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
	assert.ErrorContains(s, err, "invalid filter 'bogus'")
}

func testOrder(s *suite) {
	var want []string
	for range 3 {
		want = append([]string{s.create(s.options("true"))}, want...)
	}
	var got []string
	for _, row := range s.list(api.ListOptions{All: true}) {
		got = append(got, row.ID)
	}
	assert.Equal(s, want, got, "newest first")
	limited := s.list(api.ListOptions{Limit: 2})
	require.Len(s, limited, 2, "a limit implies all")
	assert.Equal(s, want[0], limited[0].ID)
}

func testTop(s *suite) {
	id := s.running()
	for _, args := range [][]string{nil, {"-o", "pid,args"}} {
		top, err := s.Engine.TopContainer(s.ctx, id, args)
		require.NoError(s, err)
		assert.Contains(s, top.Titles, "PID")
		require.NotEmpty(s, top.Processes)
		for _, p := range top.Processes {
			assert.Len(s, p, len(top.Titles))
		}
		assert.Contains(s, strings.Join(top.Processes[0], " "), "sleep 1000")
	}
}

func eventTests() map[string]func(*suite) {
	return map[string]func(*suite){"OfALife": testEventsOfALife, "Replay": testReplay}
}

// events follows what happens from now on.
func (s *suite) events(f api.Filters) api.Stream[events.Message] {
	s.Helper()
	stream, err := s.Engine.Events(s.ctx, api.EventsOptions{Filters: f})
	require.NoError(s, err)
	s.Cleanup(func() { _ = stream.Close() })
	return stream
}

func testEventsOfALife(s *suite) {
	watch := s.events(api.Filters{
		"type": {"container"}, "label": {s.label}, "event": {"create", "start", "die", "destroy"},
	})
	o := s.options("sh", "-c", "exit 3")
	o.Name = s.name("life")
	id := s.create(o)
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	s.recv(wait)
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, id, api.RemoveOptions{}))
	last := int64(0)
	for _, want := range []events.Action{"create", "start", "die", "destroy"} {
		m, err := watch.Recv()
		require.NoError(s, err)
		assert.Equal(s, want, m.Action)
		assert.Equal(s, events.ContainerEventType, m.Type)
		assert.Equal(s, id, m.Actor.ID)
		assert.Equal(s, o.Name, m.Actor.Attributes["name"])
		assert.Equal(s, s.Image, m.Actor.Attributes["image"])
		assert.GreaterOrEqual(s, m.TimeNano, last)
		assert.Equal(s, m.TimeNano/1e9, m.Time)
		last = m.TimeNano
		if want == "die" {
			assert.Equal(s, "3", m.Actor.Attributes["exitCode"])
		}
	}
}

func testReplay(s *suite) {
	since := time.Now().Add(-time.Second)
	id := s.finished("true")
	stream, err := s.Engine.Events(s.ctx, api.EventsOptions{
		Since: since, Until: time.Now(), Filters: api.Filters{"container": {id}, "event": {"start", "die"}},
	})
	require.NoError(s, err)
	var got []events.Action
	for m, err := range api.All(stream) {
		require.NoError(s, err)
		got = append(got, m.Action)
	}
	assert.Equal(s, []events.Action{"start", "die"}, got, "and the stream ended by itself")
}
