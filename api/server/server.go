// Package server speaks Docker's API over HTTP for any engine.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// Config of a server.
type Config struct {
	Engine  api.Engine
	Logger  *slog.Logger // nil discards
	Version string       // of the program, for the Server header and /version
	Extra   http.Handler // serves /shoal/; nil means there is nothing there
}

// New makes a handler of requests; it starts nothing.
func New(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	routes := table()
	h := &handler{Config: c, mux: newMux(routes)}
	h.document, h.page = document(routes, c.Version), docsPage(routes, c.Version)
	return h
}

type handler struct {
	Config
	mux      *mux
	document []byte // the OpenAPI document
	page     []byte // the same for people
}

// ServeHTTP answers a request. Handlers return errors; they become answers here
// and nowhere else.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.Extra != nil && strings.HasPrefix(r.URL.Path, "/shoal/") {
		h.Extra.ServeHTTP(w, r)
		return
	}
	rec := &recorder{ResponseWriter: w}
	h.setHeaders(rec.Header())
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // a sentinel by definition
				panic(p)
			}
			h.Logger.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p)
			h.fail(rec, r, api.Internal("internal error"))
		}
	}()
	if err := h.serve(rec, r); err != nil {
		h.fail(rec, r, err)
	}
}

func (h *handler) setHeaders(to http.Header) {
	to.Set("Api-Version", newest.String())
	to.Set("Ostype", "linux")
	to.Set("Docker-Experimental", "false")
	to.Set("Server", "Shoal/"+strings.ReplaceAll(orDev(h.Version), " ", "-")+" (linux)")
}

func orDev(v string) string {
	if v == "" {
		return "dev"
	}
	return v
}

func (h *handler) serve(w *recorder, r *http.Request) error {
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/openapi.json":
		return writeBytes(w, "application/json", h.document)
	case r.Method == http.MethodGet && r.URL.Path == "/docs":
		return writeBytes(w, "text/html; charset=utf-8", h.page)
	}
	v, path, err := splitVersion(r.URL.Path)
	if err != nil {
		return err
	}
	route, arg, ok := h.mux.find(r.Method, path)
	if !ok || v.before(route.min) {
		return api.NotFound("page not found")
	}
	return route.handle(&call{
		w: w, r: r, query: r.URL.Query(), engine: h.Engine, program: orDev(h.Version), version: v, arg: arg,
		log: h.Logger.With("method", r.Method, "route", route.path),
	})
}

// fail answers with an error. Where the answer has begun already, nothing is left
// but to cut the connection, so that the client doesn't take half for the whole.
func (h *handler) fail(w *recorder, r *http.Request, err error) {
	status := api.Status(err)
	level := slog.LevelDebug
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		level = slog.LevelError
	}
	h.Logger.Log(r.Context(), level, "request failed",
		"method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	if w.hijacked {
		return
	}
	if w.wrote {
		panic(http.ErrAbortHandler)
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	w.Header().Del("Content-Length")
	_ = writeJSON(w, status, struct { // the client is gone if this fails
		Message string `json:"message"`
	}{err.Error()})
}

// recorder remembers how far an answer came.
type recorder struct {
	http.ResponseWriter
	wrote, hijacked bool
}

func (r *recorder) WriteHeader(status int) {
	r.wrote = r.wrote || status >= http.StatusOK
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap leads http.ResponseController to what is below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Server runs a handler on listeners.
type Server struct {
	handler http.Handler
	log     *slog.Logger
}

// grace is what requests in flight get at shutdown after their contexts ended.
const grace = 5 * time.Second

// NewServer makes a server of c; it starts nothing.
func NewServer(c Config) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{handler: New(c), log: c.Logger}
}

// Run serves l until ctx ends, closes it, and returns once no request is left:
// streams and hijacked connections end with ctx, since every request's context
// descends from it. It returns nil after a shutdown. Several listeners may be
// served by several calls.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	requests := newGroup(s.handler)
	srv := &http.Server{
		Handler:           requests,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConn,
		ReadHeaderTimeout: 30 * time.Second,
		// Longer than the clients' own, so that it is they who close an idle
		// connection and no request dies on one that was just closed.
		IdleTimeout: 3 * time.Minute,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lingerListener{l}) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(late); err != nil {
		s.log.Warn("requests outlived the grace of the shutdown", "error", err)
		_ = srv.Close() // what it could say, Shutdown said
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return requests.wait(late)
}
