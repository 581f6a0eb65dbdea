package clustertest_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// TestPrivateImageStaysWhereItMay: a node that may not hold an image gets it in no way
// that leads through the cluster, and whoever asks is told why.
func TestPrivateImageStaysWhereItMay(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		code, msg := call[message](t, nodes[0], "PUT", "images/private?ref=none", `{"nodes":["node-a"]}`)
		require.Equal(t, http.StatusNotFound, code, msg)
		code, msg = call[message](t, nodes[0], "PUT", "images/private?ref=busybox", `{"nodes":["node-x"]}`)
		require.Equal(t, http.StatusNotFound, code, msg)
		code, msg = call[message](t, nodes[0], "PUT", "images/private?ref=busybox", `{}`)
		require.Equal(t, http.StatusBadRequest, code, msg)
		code, msg = call[message](t, nodes[0], "DELETE", "images/private?ref=busybox", "")
		require.Equal(t, http.StatusNotFound, code, msg)

		code, p := call[cluster.PrivateImage](t, nodes[2], "PUT", "images/private?ref=busybox", `{"nodes":["node-a","tag:host=b"]}`)
		require.Equal(t, http.StatusOK, code)
		require.Equal(t, cluster.PrivateImage{
			Digest: p.Digest, ID: p.ID, Names: []string{"busybox:latest"},
			Nodes: []string{"node-a"}, Tags: []string{"host=b"}, Holders: []string{"node-a"}, Others: []string{},
		}, p)
		for _, n := range nodes {
			n.Until(t.Context(), t, "it is private", func(v catalog.View) bool { return len(v.Private()) == 1 })
		}
		const who = "is private to node-a, nodes tagged host=b"
		c := nodes[2].Engine()
		_, err := create(t.Context(), nodes[0].Engine(), "x1", "constraint:node==node-c")
		require.ErrorContains(t, err, "node-c: image busybox:latest "+who)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = c.PullImage(t.Context(), api.PullOptions{Ref: "busybox"})
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
		require.EqualError(t, err, "image busybox:latest "+who+": node-c may not have it")
		_, err = c.SaveImages(t.Context(), []string{"busybox"}, api.Platform{})
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
		copied := func(targets ...string) map[string]string {
			s, err := nodes[0].Engine().(*cluster.Router).Copy(t.Context(), "busybox", cluster.CopyTo{Nodes: targets})
			require.NoError(t, err)
			out := map[string]string{}
			for line, err := range api.All(s) {
				require.NoError(t, err)
				out[line.ID] = line.Status
				if line.Error != nil {
					out[line.ID] = line.Error.Message
				}
			}
			return out
		}
		require.Equal(t, map[string]string{"node-b": "Complete", "node-c": "image busybox:latest " + who + ": node-c may not have it"}, copied("node-b", "node-c"))
		require.Equal(t, map[string]string{"node-a": "Complete", "node-b": "Complete"}, copied(), "all are those that may")
		for i := range 4 { // none of them on c, which has the fewest
			run(t, c, fmt.Sprint("p", i))
		}
		for _, x := range nodes[0].Reader().View().Containers() {
			require.NotEqual(t, "c", x.NodeID)
		}
		archive, err := nodes[1].Engine().SaveImages(t.Context(), []string{"busybox"}, api.Platform{})
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, archive)
		require.NoError(t, err)
		require.NoError(t, archive.Close())
		_, where := call[[]cluster.Holding](t, nodes[1], "GET", "images/where?ref=busybox", "")
		require.Len(t, where, 2)
		require.Equal(t, "node-a, node-b", where[0].Private)
		require.True(t, where[1].Allowed)

		// The tag goes: node-b keeps what it has and is named.
		_, _ = call[map[string]string](t, nodes[0], "PATCH", "nodes/node-b/tags", `{"remove":["host"]}`)
		_, list := call[[]cluster.PrivateImage](t, nodes[0], "GET", "images/private?ref=busybox", "")
		require.Equal(t, []string{"node-b"}, list[0].Others)

		code, _ = call[message](t, nodes[2], "DELETE", "images/private?ref=busybox", "")
		require.Equal(t, http.StatusNoContent, code)
		run(t, c, "x1", "constraint:node==node-c")
		_, list = call[[]cluster.PrivateImage](t, nodes[2], "GET", "images/private", "")
		require.Empty(t, list)
	})
}

// TestRemovedNodeIsShutOut: a node that is up and doesn't want to go loses its streams,
// can open no others, and knows no token that lets it in.
func TestRemovedNodeIsShutOut(t *testing.T) {
	for _, from := range []int{0, 1} { // the leader removes it, or a follower
		t.Run([]string{"leader", "follower"}[from], func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *clustertest.Lab) {
				nodes := l.Form(t.Context(), "a", "b", "c")
				token, err := nodes[2].Token(t.Context())
				require.NoError(t, err)
				const protocol = "/test/long/1"
				ended := make(chan time.Time, 2)
				for _, id := range []string{"a", "b"} {
					in, err := l.Network.Host(id).Listen(protocol)
					require.NoError(t, err)
					go func() {
						conn, err := in.Accept()
						for err == nil { // as long as c may read
							_, err = conn.Write(make([]byte, 1<<10))
							<-time.After(time.Millisecond)
						}
						ended <- time.Now()
					}()
					conn, err := l.Network.Host("c").Dial(t.Context(), id, protocol)
					require.NoError(t, err)
					go func() { _, _ = io.Copy(io.Discard, conn) }()
				}
				code, msg := call[message](t, nodes[from], "DELETE", "nodes/node-c", "")
				require.Equal(t, http.StatusConflict, code, msg)
				start := time.Now()
				code, msg = call[message](t, nodes[from], "DELETE", "nodes/node-c?force=true", "")
				require.Equal(t, http.StatusNoContent, code, msg)
				for range 2 {
					require.Less(t, (<-ended).Sub(start), time.Second, "once it may have heard why")
				}
				for _, n := range nodes[:2] {
					require.False(t, n.Allow("c", protocol))
					_, err := l.Network.Host("c").Dial(t.Context(), n.ID, protocol)
					require.Error(t, err)
					require.Len(t, n.Reader().View().Nodes(), 2)
				}
				d := l.Start("d")
				err = d.Join(t.Context(), token)
				require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
				now, err := nodes[1].Token(t.Context())
				require.NoError(t, err)
				require.NoError(t, d.Join(t.Context(), now))
				<-time.After(time.Minute)
				require.Len(t, nodes[0].Reader().View().Nodes(), 3, "c doesn't come back by itself")
				load(t, d.Engine())
				run(t, nodes[0].Engine(), "x1")
			})
		})
	}
}
