package clustertest_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// BenchmarkRun measures what the cluster adds to docker run: create, start and remove a
// container over three nodes whose engines cost next to nothing, with logs on disk.
//
//	go test -run xxx -bench Run ./cluster/clustertest
func BenchmarkRun(b *testing.B) {
	l := clustertest.New(b, b.TempDir())
	b.Cleanup(l.Close)
	nodes := l.Form(b.Context(), "a", "b", "c")
	for _, n := range nodes {
		s, err := n.Engine().LoadImages(b.Context(), bytes.NewReader(apitest.Busybox(b)), api.LoadOptions{})
		require.NoError(b, err)
		for _, err := range api.All(s) {
			require.NoError(b, err)
		}
	}
	names := 0
	for _, n := range nodes[:2] {
		b.Run("node-"+n.ID, func(b *testing.B) {
			e := n.Engine()
			for b.Loop() {
				names++
				c, err := e.CreateContainer(b.Context(), api.CreateOptions{
					Name: fmt.Sprint("bench", names), Config: &container.Config{Image: "busybox", Cmd: []string{"sleep", "1000"}},
				})
				require.NoError(b, err)
				require.NoError(b, e.StartContainer(b.Context(), c.ID, api.StartOptions{}))
				require.NoError(b, e.RemoveContainer(b.Context(), c.ID, api.RemoveOptions{Force: true}))
			}
		})
	}
}
