package clustertest_test

import (
	"testing"
	"time"

	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// TestRouterKeepsTheContract holds clusters of three nodes to the suite that every
// engine must pass, asking another node each time. In real time, a busy machine could
// take longer to agree on a change than a call waits for that.
func TestRouterKeepsTheContract(t *testing.T) {
	var nodes []*clustertest.Node
	turn := 0
	around := func(t *testing.T, test func(t *testing.T)) {
		inBubble(t, func(t *testing.T, l *clustertest.Lab) {
			for _, id := range []string{"a", "b", "c"} {
				l.Shape(id, 1<<30, time.Millisecond) // what comes later has a later time
			}
			nodes = l.Form(t.Context(), "a", "b", "c")
			test(t)
		})
	}
	apitest.RunIn(t, around, func(*testing.T) apitest.Target {
		turn++
		return apitest.Target{Engine: nodes[turn%len(nodes)].Engine()}
	})
}
