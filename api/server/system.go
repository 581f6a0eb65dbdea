package server

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/system"

	"github.com/shoal-engine/shoal/api"
)

func systemRoutes() []route {
	return []route{
		{method: "GET", path: "/_ping", id: "SystemPing", doc: "Is anybody there, and which version is spoken",
			status: 200, answer: textType, handle: ping},
		{method: "HEAD", path: "/_ping", id: "SystemPingHead", doc: "The same without body",
			status: 200, answer: textType, handle: ping},
		{method: "GET", path: "/version", id: "SystemVersion", doc: "Versions of the engine and its parts",
			status: 200, answer: system.VersionResponse{}, handle: showVersion},
		{method: "GET", path: "/info", id: "SystemInfo", doc: "What the engine is and has",
			status: 200, answer: system.Info{}, handle: info},
		{method: "GET", path: "/events", id: "SystemEvents", doc: "Follow what happens",
			query: []param{{"since", "string", "Unix time"}, {"until", "string", "Unix time"},
				{"filters", "string", "JSON of keys and values"}},
			status: 200, answer: jsonLines, handle: followEvents},
	}
}

// ping says which version the server speaks, whatever the engine behind it may
// speak itself.
func ping(c *call) error {
	p, err := c.engine.Ping(c.r.Context())
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Docker-Experimental", map[bool]string{true: "true", false: "false"}[p.Experimental])
	for key, v := range map[string]string{
		"Ostype": p.OSType, "Builder-Version": orElse(p.BuilderVersion, "1"), "Swarm": orElse(p.Swarm, "inactive"),
	} {
		if v != "" {
			h.Set(key, v)
		}
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	return writeBytes(c.w, "text/plain; charset=utf-8", []byte("OK"))
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func showVersion(c *call) error {
	v, err := c.engine.Version(c.r.Context())
	if err != nil {
		return err
	}
	v.APIVersion, v.MinAPIVersion = newest.String(), oldest.String()
	v.Version, v.Os, v.Arch = orElse(v.Version, c.program), orElse(v.Os, "linux"), orElse(v.Arch, runtime.GOARCH)
	v.GoVersion = orElse(v.GoVersion, runtime.Version())
	engine := func(p system.ComponentVersion) bool { return p.Name == "Engine" }
	if !slices.ContainsFunc(v.Components, engine) {
		v.Components = slices.Insert(slices.Clone(v.Components), 0, system.ComponentVersion{
			Name: "Engine", Version: v.Version, Details: map[string]string{
				"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch,
				"GoVersion": v.GoVersion, "GitCommit": v.GitCommit, "KernelVersion": v.KernelVersion,
				"BuildTime": v.BuildTime, "Experimental": map[bool]string{true: "true", false: "false"}[v.Experimental],
			},
		})
	}
	return c.json(http.StatusOK, v)
}

func info(c *call) error {
	i, err := c.engine.Info(c.r.Context())
	if err != nil {
		return err
	}
	i.Warnings = orEmpty(i.Warnings)
	return c.json(http.StatusOK, i)
}

func followEvents(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	o := api.EventsOptions{Filters: f}
	if o.Since, err = c.time("since"); err != nil {
		return err
	}
	if o.Until, err = c.time("until"); err != nil {
		return err
	}
	if !o.Since.IsZero() && !o.Until.IsZero() && o.Until.Before(o.Since) {
		return api.InvalidArgument("`since` time (%s) cannot be after `until` time (%s)",
			c.query.Get("since"), c.query.Get("until"))
	}
	s, err := c.engine.Events(c.r.Context(), o)
	if err != nil {
		return err
	}
	defer s.Close()
	return c.sendEvents(s)
}

func (c *call) sendEvents(s api.Stream[events.Message]) error {
	kind, prefix := c.eventType()
	w := flushing(c.w)
	w.begin(kind)
	for {
		m, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := writeLine(w, prefix, c.oldEvent(m)); err != nil {
			return err
		}
	}
}

// eventType picks the notation of a stream of events, and what goes before each.
func (c *call) eventType() (kind, prefix string) {
	accept := strings.Join(c.r.Header.Values("Accept"), ",")
	switch {
	case c.version.below(52):
		return "application/json", ""
	case strings.Contains(accept, "application/json-seq"):
		return "application/json-seq", "\x1e"
	case strings.Contains(accept, "application/x-ndjson"):
		return "application/x-ndjson", ""
	case strings.Contains(accept, "application/json") && !strings.Contains(accept, "application/jsonl"):
		return "application/json", ""
	}
	return "application/jsonl", ""
}
