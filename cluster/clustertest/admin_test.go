package clustertest_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// call makes a request of a node's administration.
func call[T any](t *testing.T, n *clustertest.Node, method, path, body string) (int, T) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/shoal/v1/"+path, strings.NewReader(body))
	w := httptest.NewRecorder()
	n.Handler().ServeHTTP(w, r)
	var out T
	if w.Body.Len() > 0 {
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &out), w.Body.String())
	}
	return w.Code, out
}

type message struct{ Message string }

func TestAdministration(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		a, b := l.Start("a"), l.Start("b")
		code, status := call[cluster.Status](t, a, "GET", "status", "")
		require.Equal(t, http.StatusOK, code)
		require.False(t, status.Member)
		code, msg := call[message](t, a, "GET", "nodes", "")
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Contains(t, msg.Message, "shoal init")
		code, _ = call[message](t, a, "POST", "init", "{}")
		require.Equal(t, http.StatusNoContent, code)
		code, _ = call[message](t, a, "POST", "init", "")
		require.Equal(t, http.StatusConflict, code)

		_, token := call[struct{ Token string }](t, a, "GET", "token", "")
		code, msg = call[message](t, b, "POST", "join", `{"token":"nonsense"}`)
		require.Equal(t, http.StatusBadRequest, code, msg)
		code, msg = call[message](t, b, "POST", "join", `{`)
		require.Equal(t, http.StatusBadRequest, code, msg)
		code, msg = call[message](t, b, "POST", "join", `{"token":"`+token.Token+`"}`)
		require.Equal(t, http.StatusNoContent, code, msg)
		_, rotated := call[struct{ Token string }](t, b, "POST", "token", "")
		require.NotEqual(t, token, rotated)

		load(t, b.Engine())
		run(t, b.Engine(), "web", "constraint:node==node-b")
		_, nodes := call[[]cluster.NodeStatus](t, a, "GET", "nodes", "")
		require.Len(t, nodes, 2)
		require.True(t, nodes[0].Leader)
		require.True(t, nodes[1].Reachable)
		require.Equal(t, 1, nodes[1].Containers)
		_, where := call[[]cluster.Holding](t, a, "GET", "images/where?ref=busybox", "")
		require.Equal(t, []string{"busybox:latest"}, where[0].Tags)
		require.Equal(t, "node-b", where[0].Node)
		_, got := call[map[string]string](t, a, "PATCH", "nodes/node-b/tags", `{"set":{"zone":"b"},"remove":["host"]}`)
		require.Equal(t, map[string]string{"zone": "b"}, got)
		_, got = call[map[string]string](t, a, "PATCH", "containers/web/tags", `{"set":{"lb":"1"}}`)
		require.Equal(t, map[string]string{"lb": "1"}, got)
		code, _ = call[message](t, a, "PATCH", "containers/nope/tags", `{}`)
		require.Equal(t, http.StatusNotFound, code)
		code, msg = call[message](t, a, "DELETE", "nodes/node-b", "")
		require.Equal(t, http.StatusConflict, code, msg)
		code, _ = call[message](t, a, "GET", "bogus", "")
		require.Equal(t, http.StatusNotFound, code)
		_, status = call[cluster.Status](t, b, "GET", "status", "")
		require.Equal(t, cluster.Status{Member: true, ID: "b", Name: "node-b", Leader: "node-a", Nodes: 2, Reachable: 2, Index: status.Index}, status)

		l.Stop("b")
		a.Until(t.Context(), t, "b is down", func(v catalog.View) bool { b, _ := v.Node("b"); return b.Down })
		code, msg = call[message](t, a, "DELETE", "nodes/node-b", "")
		require.Equal(t, http.StatusNoContent, code, msg)
		require.Empty(t, a.Reader().View().Containers())
	})
}

func TestEventsOfAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s, err := nodes[0].Engine().Events(ctx, api.EventsOptions{Filters: api.Filters{"type": {"container"}, "event": {"start"}}})
		require.NoError(t, err)
		defer s.Close()
		next := func() events.Message {
			m, err := s.Recv()
			require.NoError(t, err)
			return m
		}
		for _, on := range []string{"a", "b", "c"} {
			id := run(t, nodes[1].Engine(), "on-"+on, "constraint:node==node-"+on)
			m := next()
			require.Equal(t, id, m.Actor.ID)
			require.Equal(t, "node-"+on, m.Actor.Attributes["node.name"])
		}
		l.Isolate("c")
		nodes[0].Until(t.Context(), t, "c is down", func(v catalog.View) bool { c, _ := v.Node("c"); return c.Down })
		run(t, nodes[0].Engine(), "still", "constraint:node==node-b")
		require.Equal(t, "node-b", next().Actor.Attributes["node.name"])
		l.Heal()
		nodes[0].Until(t.Context(), t, "c is up", func(v catalog.View) bool { c, _ := v.Node("c"); return !c.Down })

		past, err := nodes[1].Engine().Events(t.Context(), api.EventsOptions{Since: time.Unix(1, 0), Until: time.Now(), Filters: api.Filters{"event": {"start"}}})
		require.NoError(t, err)
		seen := map[string]int{}
		for m, err := range api.All(past) {
			require.NoError(t, err)
			seen[m.Actor.Attributes["node.name"]]++
		}
		require.Equal(t, map[string]int{"node-a": 1, "node-b": 2, "node-c": 1}, seen)
	})
}

func TestAbandonedClaimExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		// What a router leaves that dies between its claim and the node's work.
		store := nodes[1].Store()
		_, err := store.Propose(t.Context(), catalog.ClaimContainer{ID: strings.Repeat("1", 64), Name: "x1", NodeID: "c"})
		require.NoError(t, err)
		load(t, nodes[0].Engine())
		_, err = create(t.Context(), nodes[0].Engine(), "x1")
		require.ErrorContains(t, err, "is already in use")
		<-time.After(20 * time.Minute)
		run(t, nodes[0].Engine(), "x1")
	})
}
