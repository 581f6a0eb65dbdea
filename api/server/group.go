package server

import (
	"context"
	"fmt"
	"net/http"
	"sync"
)

// group counts the requests of a handler, hijacked ones included, which
// http.Server's Shutdown doesn't wait for.
type group struct {
	handler http.Handler
	mu      sync.Mutex
	running int
	idle    chan struct{} // closed when running falls to zero; nil unless awaited
}

func newGroup(h http.Handler) *group { return &group{handler: h} }

func (g *group) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.add(1)
	defer g.add(-1)
	g.handler.ServeHTTP(w, r)
}

func (g *group) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running += n
	if g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// wait returns once no request runs; it may be called once, after no new request
// can come.
func (g *group) wait(ctx context.Context) error {
	g.mu.Lock()
	if g.running == 0 {
		g.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	g.idle = idle
	n := g.running
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %d requests: %w", n, ctx.Err())
	}
}
