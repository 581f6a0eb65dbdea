package clustertest_test

import (
	"testing"

	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// TestRouterKeepsTheContract holds a cluster of three nodes to the suite that every
// engine must pass, asking another node each time.
func TestRouterKeepsTheContract(t *testing.T) {
	l := clustertest.New(t, t.TempDir())
	t.Cleanup(l.Close)
	nodes := l.Form(t.Context(), "a", "b", "c")
	turn := 0
	apitest.Run(t, func(*testing.T) apitest.Target {
		turn++
		return apitest.Target{Engine: nodes[turn%len(nodes)].Engine()}
	})
}
