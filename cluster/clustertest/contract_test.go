package clustertest_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// TestRouterKeepsTheContract holds a router over three nodes to the suite that every
// engine must pass.
func TestRouterKeepsTheContract(t *testing.T) {
	state := catalog.NewState()
	hosts := clustertest.NewHosts()
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		require.NoError(t, hosts.Close())
	})
	reader := catalog.WithLiveness(state, func(string) bool { return true }, nil)
	routers := make([]*cluster.Router, 3)
	for i := range routers {
		id := fmt.Sprint("n", i+1)
		_, err := state.Propose(ctx, catalog.PutNode{Node: catalog.Node{ID: id, Name: id, CPUs: 2, Memory: 8 << 30}})
		require.NoError(t, err)
		p := cluster.NewPublisher(id, hosts.Host(id, uint64(i)), state, slog.New(slog.DiscardHandler))
		tasks.Go(func() { _ = p.Run(ctx) })
		routers[i] = cluster.NewRouter(cluster.RouterConfig{
			Self: id, Store: state, Reader: reader,
			Peer: func(_ context.Context, id string) (api.Engine, error) { return hosts.Host(id, 0), nil },
		})
	}
	turn := 0
	apitest.Run(t, func(*testing.T) apitest.Target {
		turn++
		return apitest.Target{Engine: routers[turn%3]}
	})
}
