package clustertest_test

import (
	"bufio"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// copyImage asks a node's administration for a copy and returns the last line of each
// node.
func copyImage(t *testing.T, n *clustertest.Node, ref string, nodes ...string) (code int, last map[string]api.Progress) {
	t.Helper()
	return copyWith(t, n, url.Values{"ref": {ref}, "node": nodes})
}

func copyWith(t *testing.T, n *clustertest.Node, q url.Values) (code int, last map[string]api.Progress) {
	t.Helper()
	w := httptest.NewRecorder()
	n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/shoal/v1/images/copy?"+q.Encode(), nil))
	last = map[string]api.Progress{}
	for lines := bufio.NewScanner(w.Body); w.Code == http.StatusOK && lines.Scan(); {
		var p api.Progress
		require.NoError(t, json.Unmarshal(lines.Bytes(), &p), lines.Text())
		if old := last[p.ID]; old.Aux != nil {
			var d cluster.CopyDetail
			require.NoError(t, json.Unmarshal(*old.Aux, &d))
			require.False(t, d.Final, "nothing follows a node's last line")
		}
		last[p.ID] = p
	}
	return w.Code, last
}

func TestCopyImage(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c", "d")
		code, _ := copyImage(t, nodes[0], "busybox")
		require.Equal(t, http.StatusNotFound, code, "nobody has it")
		load(t, nodes[0].Engine())
		holders := func(want ...string) {
			for _, n := range nodes {
				_, err := n.Host.InspectImage(t.Context(), "busybox", api.ImageInspectOptions{})
				has := false
				for _, w := range want {
					has = has || w == n.ID
				}
				if has {
					require.NoError(t, err, n.ID)
				} else {
					require.ErrorIs(t, err, errdefs.ErrNotFound, n.ID)
				}
			}
		}
		holders("a")
		code, _ = copyImage(t, nodes[1], "busybox", "node-c", "nowhere")
		require.Equal(t, http.StatusNotFound, code)
		holders("a")

		// Twice the same node, by name and ID, is once.
		code, last := copyImage(t, nodes[1], "busybox", "node-c", "c")
		require.Equal(t, http.StatusOK, code)
		require.Len(t, last, 1)
		require.Equal(t, "Complete", last["node-c"].Status)
		require.Nil(t, last["node-c"].Error)
		holders("a", "c")

		// One that is away fails alone.
		l.Stop("d")
		nodes[0].Until(t.Context(), t, "d is down", func(v catalog.View) bool { d, _ := v.Node("d"); return d.Down })
		code, last = copyImage(t, nodes[0], "busybox:latest")
		require.Equal(t, http.StatusOK, code)
		require.Len(t, last, 4)
		holders("a", "b", "c")
		for _, n := range []string{"node-a", "node-b", "node-c"} {
			require.Equal(t, "Complete", last[n].Status)
		}
		require.Equal(t, "Failed", last["node-d"].Status)
		require.Contains(t, last["node-d"].Error.Message, "can't be reached")
		require.Equal(t, http.StatusServiceUnavailable, last["node-d"].Error.Code)
	})
}

// TestCopyToUsers: an image gets to where a service's containers run, before they are
// replaced.
func TestCopyToUsers(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c", "d")
		load(t, nodes[0].Engine())
		run(t, nodes[0].Engine(), "x1", "constraint:node==node-b")
		run(t, nodes[0].Engine(), "x2", "constraint:node==node-b")
		stopped := run(t, nodes[0].Engine(), "x3", "constraint:node==node-c")
		require.NoError(t, nodes[0].Engine().StopContainer(t.Context(), stopped, api.StopOptions{}))
		for _, c := range []struct {
			users string
			nodes []string
			code  int
			want  []string
		}{
			{`{"ancestor":["busybox"]}`, nil, 200, []string{"node-b"}},
			{`{"name":["x1","x3"],"status":["running","exited"]}`, nil, 200, []string{"node-b", "node-c"}},
			{`{"name":["x3"]}`, nil, 404, nil},
			{`{"name":["x3"]}`, []string{"node-a"}, 404, nil},
			{`{"name":["x1"]}`, []string{"node-a", "b"}, 200, []string{"node-a", "node-b"}},
			{`{"nonsense":["x1"]}`, nil, 400, nil},
			{`{`, nil, 400, nil},
			{``, []string{"tag:host=b", "node-a"}, 200, []string{"node-a", "node-b"}},
			{``, []string{"tag:host=x"}, 404, nil},
			{``, []string{"tag:host"}, 400, nil},
		} {
			code, last := copyWith(t, nodes[3], url.Values{"ref": {"busybox"}, "node": c.nodes, "users": {c.users}})
			require.Equal(t, c.code, code, c.users)
			for _, p := range last {
				require.Nil(t, p.Error)
			}
			require.ElementsMatch(t, c.want, slices.Collect(maps.Keys(last)), c.users)
		}
	})
}
