package clustertest_test

import (
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

func tags(t *testing.T, e api.Engine) []string {
	t.Helper()
	is, err := e.ListImages(t.Context(), api.ImageListOptions{})
	require.NoError(t, err)
	var out []string
	for _, i := range is {
		out = append(out, i.RepoTags...)
	}
	return out
}

func TestImagesAreEverywhere(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		_, err := create(t.Context(), nodes[1].Engine(), "x1")
		require.EqualError(t, err, "No such image: busybox:latest")
		_, err = nodes[1].Engine().PullImage(t.Context(), api.PullOptions{Ref: "busybox"})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorContains(t, err, "pull access denied for busybox")

		load(t, nodes[0].Engine())
		for _, n := range nodes {
			require.Equal(t, []string{"busybox:latest"}, tags(t, n.Engine()))
			i, err := n.Engine().InspectImage(t.Context(), "busybox", api.ImageInspectOptions{})
			require.NoError(t, err)
			require.Equal(t, []string{"busybox:latest"}, i.RepoTags)
		}
		require.NoError(t, nodes[2].Engine().TagImage(t.Context(), "busybox", "app:1"))
		id := run(t, nodes[2].Engine(), "x1", "constraint:node==node-b") // which has it by no name
		nodes[0].Until(t.Context(), t, "b holds it now", func(v catalog.View) bool {
			r, _ := v.Ref("app:1")
			return len(v.Holders(r.Digest)) == 2
		})
		for _, n := range nodes {
			require.Equal(t, []string{"app:1", "busybox:latest"}, tags(t, n.Engine()))
			archive, err := n.Engine().SaveImages(t.Context(), []string{"app:1", "busybox"}, api.Platform{})
			require.NoError(t, err)
			size, err := io.Copy(io.Discard, archive)
			require.NoError(t, err)
			require.NoError(t, archive.Close())
			require.NotZero(t, size)
		}
		_, err = nodes[0].Engine().RemoveImage(t.Context(), "app:1", api.ImageRemoveOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{"busybox:latest"}, tags(t, nodes[2].Engine()))
		_, err = nodes[0].Engine().RemoveImage(t.Context(), "busybox", api.ImageRemoveOptions{})
		require.ErrorIs(t, err, errdefs.ErrConflict, "a container on another node stands on it")
		require.ErrorContains(t, err, "running container "+id[:12])
		require.NoError(t, nodes[0].Engine().RemoveContainer(t.Context(), id, api.RemoveOptions{Force: true}))
		_, err = nodes[2].Engine().RemoveImage(t.Context(), "busybox", api.ImageRemoveOptions{})
		require.NoError(t, err)
		for _, n := range nodes {
			require.Empty(t, tags(t, n.Engine()))
			held, err := n.Host.ListImages(t.Context(), api.ImageListOptions{All: true})
			require.NoError(t, err)
			require.Empty(t, held, "it is gone from every node")
		}
	})
}

// TestPushAndPullOfTheCluster: a node that holds the image pushes it; what a pull
// brings the name means everywhere.
func TestPushAndPullOfTheCluster(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		require.NoError(t, nodes[1].Engine().TagImage(t.Context(), "busybox", "app:1"))
		require.NoError(t, nodes[1].Engine().TagImage(t.Context(), "busybox", "app:2"))
		old, err := nodes[1].Engine().InspectImage(t.Context(), "app:1", api.ImageInspectOptions{})
		require.NoError(t, err)
		for ref, tags := range map[string]int{"app:1": 1, "app": 2} {
			s, err := nodes[2].Engine().PushImage(t.Context(), api.PushOptions{Ref: ref})
			require.NoError(t, err)
			results := 0
			for p, err := range api.All(s) {
				require.NoError(t, err)
				if p.Aux != nil {
					results++
				}
			}
			require.Equal(t, tags, results, ref)
		}
		_, err = nodes[0].Host.InspectDistribution(t.Context(), "app:1", registry.AuthConfig{})
		require.NoError(t, err, "the holder pushed")
		_, err = nodes[2].Host.InspectDistribution(t.Context(), "app:1", registry.AuthConfig{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = nodes[2].Engine().PushImage(t.Context(), api.PushOptions{Ref: "none:1"})
		require.EqualError(t, err, "An image does not exist locally with the tag: none")

		// The registry that c reaches knows a newer one.
		newer := apitest.Archive(t, "app:1", ocispec.ImageConfig{Cmd: []string{"/new"}})
		before, _ := nodes[2].Reader().View().Ref("app:1")
		require.NoError(t, nodes[2].Host.Serve("app:1", newer))
		drain := func(n *clustertest.Node) {
			s, err := n.Engine().PullImage(t.Context(), api.PullOptions{Ref: "app:1"})
			require.NoError(t, err)
			for _, err := range api.All(s) {
				require.NoError(t, err)
			}
		}
		drain(nodes[2])
		for _, n := range nodes {
			// Who pulled sees it at once, the others a moment later.
			n.Until(t.Context(), t, "app:1 is another image", func(v catalog.View) bool {
				now, ok := v.Ref("app:1")
				return ok && now.Digest != before.Digest && len(v.Holders(now.Digest)) > 0
			})
			now, err := n.Engine().InspectImage(t.Context(), "app:1", api.ImageInspectOptions{})
			require.NoError(t, err)
			require.NotEqual(t, old.ID, now.ID)
		}
		drain(nodes[1]) // reaches no registry that knows it
		now, err := nodes[0].Engine().InspectImage(t.Context(), "app:1", api.ImageInspectOptions{})
		require.NoError(t, err)
		require.NotEqual(t, old.ID, now.ID)
	})
}

func TestImageOnDeadNode(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[2].Engine())
		l.Stop("c")
		nodes[0].Until(t.Context(), t, "c is down", func(v catalog.View) bool { c, _ := v.Node("c"); return c.Down })
		_, err := nodes[0].Engine().InspectImage(t.Context(), "busybox", api.ImageInspectOptions{})
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "node-c")
		require.Equal(t, []string{"busybox:latest"}, tags(t, nodes[0].Engine()))
	})
}

func TestFailedCreateReleasesItsClaim(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[2].Engine())
		l.Stop("c")
		nodes[0].Until(t.Context(), t, "c is down", func(v catalog.View) bool { c, _ := v.Node("c"); return c.Down })
		_, err := create(t.Context(), nodes[0].Engine(), "x1")
		require.Error(t, err)
		require.Empty(t, nodes[0].Reader().View().Containers(), "the claim is released")
		load(t, nodes[0].Engine())
		run(t, nodes[0].Engine(), "x1")
	})
}

func TestPorts(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		create := func(n *clustertest.Node, name, host string) (string, error) {
			p := network.MustParsePort("80/tcp")
			c, err := n.Engine().CreateContainer(t.Context(), api.CreateOptions{Name: name,
				Config:     &container.Config{Image: "busybox", Cmd: []string{"sleep", "10000"}},
				HostConfig: &container.HostConfig{PortBindings: network.PortMap{p: {{HostPort: host}}}}})
			return c.ID, err
		}
		id, err := create(nodes[0], "web", "8080")
		require.NoError(t, err)
		require.NoError(t, nodes[1].Engine().StartContainer(t.Context(), "web", api.StartOptions{}))
		_, err = create(nodes[1], "other", "8080")
		require.EqualError(t, err, "driver failed programming external connectivity on endpoint other: Bind for 0.0.0.0:8080 failed: port is already allocated")
		require.NoError(t, nodes[2].Engine().StopContainer(t.Context(), id, api.StopOptions{Timeout: new(int)}))
		other, err := create(nodes[1], "other", "8080")
		require.NoError(t, err, "an ended container holds no port")
		require.ErrorContains(t, nodes[0].Engine().StartContainer(t.Context(), "web", api.StartOptions{}), "port is already allocated")
		require.NoError(t, nodes[0].Engine().RemoveContainer(t.Context(), other, api.RemoveOptions{}))
		require.NoError(t, nodes[0].Engine().StartContainer(t.Context(), "web", api.StartOptions{}))

		free, err := create(nodes[2], "free", "")
		require.NoError(t, err)
		c, err := nodes[0].Reader().View().Container(free)
		require.NoError(t, err)
		i, err := nodes[0].Engine().InspectContainer(t.Context(), free, api.InspectOptions{})
		require.NoError(t, err)
		for _, b := range i.HostConfig.PortBindings {
			require.Equal(t, "49153", min(b[0].HostPort, "49153"), "the chosen port is what the node binds")
			require.EqualValues(t, b[0].HostPort, network.MustParsePort(b[0].HostPort+"/tcp").Port())
		}
		require.GreaterOrEqual(t, c.Ports[0].HostPort, uint16(49153))
	})
}
