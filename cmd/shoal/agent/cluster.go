package agent

import (
	"context"
	"net/http"

	"golang.org/x/sync/errgroup"
)

type request struct{}

func (a *Agent) beforeCluster() http.Handler { return nil }

func (a *Agent) clusters(ctx context.Context, g *errgroup.Group) error {
	return a.serve(ctx, a.cfg.Socket(), a.front)
}
