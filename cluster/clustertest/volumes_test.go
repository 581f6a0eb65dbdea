package clustertest_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// with makes a container that has a volume.
func with(t *testing.T, e api.Engine, name, bind string, env ...string) (string, error) {
	c, err := e.CreateContainer(t.Context(), api.CreateOptions{Name: name, Config: &container.Config{
		Image: "busybox:latest", Cmd: []string{"sleep", "10000"}, Env: env,
	}, HostConfig: &container.HostConfig{Binds: []string{bind}}})
	return c.ID, err
}

// nodeOf is where a container is.
func nodeOf(t *testing.T, n *clustertest.Node, ref string) string {
	t.Helper()
	c, err := n.Reader().View().Container(ref)
	require.NoError(t, err)
	return c.NodeID
}

// where lists volumes as name@node.
func where(t *testing.T, e api.Engine) []string {
	t.Helper()
	all, err := e.ListVolumes(t.Context(), nil)
	require.NoError(t, err)
	var out []string
	for _, v := range all.Volumes {
		out = append(out, fmt.Sprintf("%s@%s", v.Name, v.Status["node"]))
	}
	return out
}

func TestVolumesHaveOnePlace(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		_, err := nodes[1].Engine().CreateVolume(t.Context(), volume.CreateRequest{Name: "here"})
		require.NoError(t, err)
		_, err = nodes[0].Engine().CreateVolume(t.Context(), volume.CreateRequest{
			Name: "there", Labels: map[string]string{"shoal.constraint": "node==node-c"},
		})
		require.NoError(t, err)
		for _, n := range nodes {
			require.Equal(t, []string{"here@node-b", "there@node-c"}, where(t, n.Engine()), "every node shows them at once")
			v, err := n.Engine().CreateVolume(t.Context(), volume.CreateRequest{Name: "here"})
			require.NoError(t, err)
			require.Equal(t, "node-b", v.Status["node"], "it is there already")
		}
		for i := range 3 {
			name := fmt.Sprint("on-b", i)
			_, err := with(t, nodes[i].Engine(), name, "here:/data")
			require.NoError(t, err)
			require.Equal(t, "b", nodeOf(t, nodes[i], name))
		}
		_, err = with(t, nodes[0].Engine(), "torn", "here:/data", "constraint:node==node-a")
		require.ErrorContains(t, err, "volume here is there")
		err = nodes[2].Engine().RemoveVolume(t.Context(), "here", false)
		require.ErrorIs(t, err, errdefs.ErrConflict)
		require.NoError(t, nodes[1].Engine().RemoveVolume(t.Context(), "there", false), "from any node")
		require.Equal(t, []string{"here@node-b"}, where(t, nodes[0].Engine()))
	})
}

// TestOneVolumeOfAName has nodes make containers with the same new volume at once: all
// end up where the volume is.
func TestOneVolumeOfAName(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		for _, n := range nodes {
			load(t, n.Engine())
		}
		for round := range 50 {
			name := fmt.Sprint("vol", round)
			var tasks sync.WaitGroup
			errs := make([]error, len(nodes))
			for i, n := range nodes {
				tasks.Go(func() { _, errs[i] = with(t, n.Engine(), fmt.Sprintf("c%d-%d", round, i), name+":/data") })
			}
			tasks.Wait()
			on := map[string]bool{}
			for i, err := range errs {
				require.NoError(t, err)
				on[nodeOf(t, nodes[i], fmt.Sprintf("c%d-%d", round, i))] = true
			}
			require.Len(t, on, 1)
		}
		require.Len(t, where(t, nodes[0].Engine()), 50)
	})
}

func TestVolumesOfDeadNode(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		_, err := nodes[2].Engine().CreateVolume(t.Context(), volume.CreateRequest{Name: "data"})
		require.NoError(t, err)
		l.Stop("c")
		nodes[0].Until(t.Context(), t, "c is down", func(v catalog.View) bool { c, _ := v.Node("c"); return c.Down })
		e := nodes[0].Engine()
		require.Equal(t, []string{"data@node-c"}, where(t, e))
		v, err := e.InspectVolume(t.Context(), "data")
		require.NoError(t, err)
		require.Equal(t, "node-c", v.Status["node"])
		require.ErrorIs(t, e.RemoveVolume(t.Context(), "data", true), errdefs.ErrUnavailable)
		_, err = with(t, e, "x1", "data:/data")
		require.Error(t, err, "never a second volume of the name")
		require.Equal(t, []string{"data@node-c"}, where(t, e))
	})
}

func TestVolumesOfOneNameCameTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		for _, n := range nodes[1:] {
			_, err := n.Host.CreateVolume(t.Context(), volume.CreateRequest{Name: "data"})
			require.NoError(t, err)
			<-time.After(time.Second)
		}
		require.Equal(t, []string{"data@node-b", "data@node-c"}, where(t, nodes[0].Engine()))
		err := nodes[0].Engine().RemoveVolume(t.Context(), "data", true)
		require.ErrorIs(t, err, errdefs.ErrConflict)
		require.ErrorContains(t, err, "several nodes have a volume of that name (node-b, node-c)")
		for i, want := range []string{"b", "b", "c"} { // one's own, else the older
			name := fmt.Sprint("c", i, "x")
			_, err := with(t, nodes[i].Engine(), name, "data:/data")
			require.NoError(t, err)
			require.Equal(t, want, nodeOf(t, nodes[i], name))
		}
	})
}

func TestAbandonedVolumeClaimExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		_, err := nodes[1].Store().Propose(t.Context(), catalog.ClaimVolume{Name: "data", NodeID: "c"})
		require.NoError(t, err)
		require.Empty(t, where(t, nodes[0].Engine()), "a claim is no volume yet")
		<-time.After(20 * time.Minute)
		_, err = nodes[0].Engine().CreateVolume(t.Context(), volume.CreateRequest{Name: "data"})
		require.NoError(t, err)
		require.Equal(t, []string{"data@node-a"}, where(t, nodes[0].Engine()))
		// Nor does a container that could not be made leave one.
		_, err = with(t, nodes[0].Engine(), "x1", "more:/data", "constraint:node==nowhere")
		require.Error(t, err)
		require.Empty(t, slices.DeleteFunc(nodes[0].Reader().View().Volumes(), func(v catalog.Volume) bool { return v.Name == "data" }))
	})
}

// TestUsageCountsEveryCopy holds an image on two nodes, on one of which a container
// uses it.
func TestUsageCountsEveryCopy(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		one, err := nodes[0].Host.DiskUsage(t.Context(), api.DiskUsageOptions{})
		require.NoError(t, err)
		size := one.ImageUsage.TotalSize
		require.Positive(t, size)
		run(t, nodes[0].Engine(), "x1", "constraint:node==node-b")
		u, err := nodes[2].Engine().DiskUsage(t.Context(), api.DiskUsageOptions{})
		require.NoError(t, err)
		require.Len(t, u.ImageUsage.Items, 1)
		i := u.ImageUsage.Items[0]
		require.Equal(t, []string{"busybox:latest"}, i.RepoTags)
		require.EqualValues(t, 1, i.Containers)
		require.Equal(t, 2*size, u.ImageUsage.TotalSize)
		require.Equal(t, 2*size, i.Size)
		require.Equal(t, size, u.ImageUsage.Reclaimable, "the copy that no container of its node uses")
		require.EqualValues(t, 1, u.ImageUsage.ActiveCount)
		require.EqualValues(t, 1, u.ContainerUsage.ActiveCount)

		report, err := nodes[2].Engine().PruneImages(t.Context(), api.Filters{"dangling": {"false"}})
		require.NoError(t, err)
		require.Empty(t, report.Deleted, "the image itself stays")
		require.EqualValues(t, size, report.Reclaimed)
		require.Len(t, nodes[2].Reader().View().Images(), 1, "it is gone for whoever pruned")
		require.NoError(t, nodes[0].Engine().RemoveContainer(t.Context(), "x1", api.RemoveOptions{Force: true}))
		report, err = nodes[2].Engine().PruneImages(t.Context(), api.Filters{"dangling": {"false"}})
		require.NoError(t, err)
		require.Contains(t, report.Deleted, api.ImageDeletion{Untagged: "busybox:latest"})
		all, err := nodes[0].Engine().ListImages(t.Context(), api.ImageListOptions{})
		require.NoError(t, err)
		require.Equal(t, []image.Summary{}, all)
	})
}
