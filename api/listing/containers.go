package listing

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// containerFilters are the keys Docker accepts for a listing of containers.
var containerFilters = []string{
	"ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation",
	"label", "name", "network", "publish", "since", "status", "volume",
}

// Containers is what "docker ps" shows of all: newest first; only running,
// paused and restarting ones unless o.All, a limit, or a filter by status,
// before or since asks for more.
//
// Summaries tell their age in whole seconds only, so all shall come newest first
// where the caller knows better: containers of one second keep their order.
//
// An ancestor is compared with the reference and the ID in the summary; a caller
// who knows the images adds the ID of what a reference means now to the filter.
//
// Errors are InvalidArgument for a filter that makes no sense and NotFound for a
// before or since that names no container. all itself is left untouched.
func Containers(all []container.Summary, o api.ListOptions) ([]container.Summary, error) {
	if err := o.Filters.Only(containerFilters...); err != nil {
		return nil, err
	}
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b container.Summary) int { return int(b.Created - a.Created) })

	m, err := newMatcher(sorted, o)
	if err != nil {
		return nil, err
	}
	found := []container.Summary{}
	for i, c := range sorted {
		if o.Limit > 0 && len(found) == o.Limit {
			break
		}
		if m.admits(i, c) {
			found = append(found, c)
		}
	}
	return found, nil
}

// matcher is a filter made ready for many containers.
type matcher struct {
	filters     api.Filters
	names, ids  []*regexp.Regexp
	exited      []int
	first, last int // bounds of the positions that since and before admit
	any         bool
}

func newMatcher(sorted []container.Summary, o api.ListOptions) (*matcher, error) {
	f := o.Filters
	m := &matcher{
		filters: f,
		last:    len(sorted),
		any:     o.All || o.Limit > 0 || f.Has("status") || f.Has("before") || f.Has("since"),
		names:   patterns(f["name"]),
		ids:     patterns(f["id"]),
	}
	if err := checkValues(f); err != nil {
		return nil, err
	}
	for _, v := range f["exited"] {
		code, err := strconv.Atoi(v)
		if err != nil {
			return nil, api.InvalidArgument("invalid filter 'exited=%s'", v)
		}
		m.exited = append(m.exited, code)
	}
	for _, v := range f["before"] {
		i, err := position(sorted, v)
		if err != nil {
			return nil, err
		}
		m.first = max(m.first, i+1)
	}
	for _, v := range f["since"] {
		i, err := position(sorted, v)
		if err != nil {
			return nil, err
		}
		m.last = min(m.last, i)
	}
	return m, nil
}

// checkValues fails for values that a key doesn't know.
func checkValues(f api.Filters) error {
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return api.InvalidArgument("invalid filter 'status=%s': %w", v, err)
		}
	}
	for _, v := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return api.InvalidArgument("invalid filter 'health=%s': %w", v, err)
		}
	}
	if _, err := boolFilter(f, "is-task"); err != nil {
		return err
	}
	for _, key := range []string{"publish", "expose"} {
		for _, v := range f[key] {
			if _, err := parsePorts(v); err != nil {
				return api.InvalidArgument("invalid filter '%s=%s': %w", key, v, err)
			}
		}
	}
	return nil
}

func (m *matcher) admits(i int, c container.Summary) bool {
	if i < m.first || i >= m.last || !m.any && !Running(c.State) {
		return false
	}
	f := m.filters
	return matchNames(f["name"], m.names, c.Names) &&
		matchPattern(f["id"], m.ids, c.ID) &&
		f.MatchLabels("label", c.Labels) &&
		f.MatchLabels("annotation", c.HostConfig.Annotations) &&
		f.Match("status", string(c.State)) &&
		f.Match("health", healthOf(c)) &&
		m.matchExited(c) &&
		m.matchTask(c) &&
		f.MatchFunc("isolation", func(v string) bool { return v == "" || v == "default" }) &&
		f.MatchFunc("ancestor", func(v string) bool { return descends(c, v) }) &&
		f.MatchFunc("volume", func(v string) bool { return mounts(c, v) }) &&
		f.MatchFunc("network", func(v string) bool { return connects(c, v) }) &&
		f.MatchFunc("publish", func(v string) bool { return hasPort(c, v, true) }) &&
		f.MatchFunc("expose", func(v string) bool { return hasPort(c, v, false) })
}

func (m *matcher) matchExited(c container.Summary) bool {
	if len(m.exited) == 0 {
		return true
	}
	code, ok := exitCode(c.Status)
	return ok && !Running(c.State) && slices.Contains(m.exited, code)
}

func (m *matcher) matchTask(c container.Summary) bool {
	want, _ := boolFilter(m.filters, "is-task") // checked by checkValues
	if want == nil {
		return true
	}
	_, task := c.Labels["com.docker.swarm.task.id"]
	return task == *want
}

// Running says whether a container in this state has a process.
func Running(s container.ContainerState) bool {
	return s == container.StateRunning || s == container.StatePaused || s == container.StateRestarting
}

// patterns compiles what can be compiled; what can't still matches as text.
func patterns(values []string) []*regexp.Regexp {
	var ps []*regexp.Regexp
	for _, v := range values {
		if p, err := regexp.Compile(v); err == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

func matchPattern(values []string, ps []*regexp.Regexp, s string) bool {
	return len(values) == 0 || slices.Contains(values, s) ||
		slices.ContainsFunc(ps, func(p *regexp.Regexp) bool { return p.MatchString(s) })
}

// matchNames tries every name with and without its slash, so that "^/db$" and
// "^db$" mean the same.
func matchNames(values []string, ps []*regexp.Regexp, names []string) bool {
	return len(values) == 0 || slices.ContainsFunc(names, func(n string) bool {
		return matchPattern(values, ps, n) || matchPattern(values, ps, strings.TrimPrefix(n, "/"))
	})
}

// position finds the container that a before or since names.
func position(sorted []container.Summary, ref string) (int, error) {
	id, err := Resolve(ref, func(yield func(id, name string) bool) {
		for _, c := range sorted {
			for _, n := range c.Names {
				if !yield(c.ID, n) {
					return
				}
			}
			if len(c.Names) == 0 && !yield(c.ID, "") {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return slices.IndexFunc(sorted, func(c container.Summary) bool { return c.ID == id }), nil
}

func healthOf(c container.Summary) string {
	if c.Health != nil && c.Health.Status != "" {
		return string(c.Health.Status)
	}
	switch { // summaries of engines before API 1.52 say it in the status alone
	case strings.HasSuffix(c.Status, "(healthy)"):
		return string(container.Healthy)
	case strings.HasSuffix(c.Status, "(unhealthy)"):
		return string(container.Unhealthy)
	case strings.HasSuffix(c.Status, "(health: starting)"):
		return string(container.Starting)
	}
	return string(container.NoHealthcheck)
}

// exitCode reads the code out of "Exited (3) 2 minutes ago".
func exitCode(status string) (int, bool) {
	rest, ok := strings.CutPrefix(status, "Exited (")
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, ")")
	code, err := strconv.Atoi(digits)
	return code, ok && err == nil
}

func descends(c container.Summary, ancestor string) bool {
	return matchesID(c.ImageID, ancestor) || c.Image == ancestor || SameReference(c.Image, ancestor)
}

func mounts(c container.Summary, v string) bool {
	return slices.ContainsFunc(c.Mounts, func(p container.MountPoint) bool {
		return p.Destination == v || p.Name == v && v != "" || p.Name == "" && p.Source == v && v != ""
	})
}

func connects(c container.Summary, v string) bool {
	if c.NetworkSettings == nil {
		return false
	}
	for name, e := range c.NetworkSettings.Networks {
		if name == v || e != nil && v != "" && strings.HasPrefix(e.NetworkID, v) {
			return true
		}
	}
	return false
}
