package server

import (
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// route is a row of the table that requests are answered from and documents are
// generated from.
type route struct {
	method string
	// path has at most one {name}; in {name...} slashes belong to the name, as
	// they do in images'.
	path    string
	id, doc string
	min     version // the oldest API version that has it; zero for all
	query   []param
	body    any // a value of the JSON body's type, or a mediaType
	status  int // of success
	answer  any // a value of the JSON answer's type, a mediaType, or nil
	handle  func(*call) error
}

// param is a query parameter.
type param struct{ name, kind, doc string }

// mediaType stands for bodies that aren't one JSON value.
type mediaType string

const (
	tarType   mediaType = "application/x-tar"
	rawType   mediaType = "application/vnd.docker.raw-stream"
	multiType mediaType = "application/vnd.docker.multiplexed-stream"
	jsonLines mediaType = "application/json"
	textType  mediaType = "text/plain"
)

// call is a request on its way through a handler.
type call struct {
	w       *recorder
	r       *http.Request
	query   url.Values
	engine  api.Engine
	program string // the program's version
	version version
	arg     string // what stood for {name}
	log     *slog.Logger
}

// table is every route there is.
func table() []route {
	var all []route
	for _, part := range [][]route{
		systemRoutes(), containerRoutes(), processRoutes(), execRoutes(), imageRoutes(), archiveRoutes(), networkRoutes(),
		volumeRoutes(), usageRoutes(),
	} {
		all = append(all, part...)
	}
	return all
}

// mux finds routes.
type mux struct {
	static   map[string]route // by method and path
	patterns []pattern
}

// pattern is a path of one {name}, cut at it.
type pattern struct {
	route
	before, after string
	greedy        bool
}

func newMux(routes []route) *mux {
	m := &mux{static: map[string]route{}}
	for _, r := range routes {
		before, rest, ok := strings.Cut(r.path, "{")
		if !ok {
			m.static[r.method+" "+r.path] = r
			continue
		}
		name, after, _ := strings.Cut(rest, "}")
		m.patterns = append(m.patterns, pattern{r, before, after, strings.HasSuffix(name, "...")})
	}
	return m
}

// find looks for the route of a path without version. Fixed paths win over
// patterns, and patterns that go on after the name over those that end with it.
func (m *mux) find(method, path string) (route, string, bool) {
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	if r, ok := m.static[method+" "+path]; ok {
		return r, "", true
	}
	var found *pattern
	var arg string
	for i, p := range m.patterns {
		if p.method != method || !strings.HasPrefix(path, p.before) || !strings.HasSuffix(path, p.after) ||
			len(path) <= len(p.before)+len(p.after) {
			continue
		}
		name := path[len(p.before) : len(path)-len(p.after)]
		if !p.greedy && strings.Contains(name, "/") {
			continue
		}
		if found == nil || len(p.after) > len(found.after) {
			found, arg = &m.patterns[i], name
		}
	}
	if found == nil {
		return route{}, "", false
	}
	return found.route, arg, true
}
