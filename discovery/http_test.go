package discovery_test

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func get(h http.Handler, target string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestHTTPResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(1)...)
		h := discovery.Handler(cat, slog.New(slog.DiscardHandler))
		for target, want := range map[string]struct {
			code int
			text string
		}{
			"/shoal/v1/resolve?name=db&port=80":           {404, `{"message":"nothing serves 80/tcp of db: no such container"}`},
			"/shoal/v1/resolve?tag=a%3Db&port=80&wait=5s": {404, `{"message":"nothing serves 80/tcp with a=b: no container matches"}`},
			"/shoal/v1/resolve":                           {400, `{"message":"name or tag is required"}`},
			"/shoal/v1/resolve?name=db&port=x":            {400, `{"message":"invalid port \"x\": want a number from 1 to 65535"}`},
			"/shoal/v1/resolve?name=db&wait=-1s":          {400, `{"message":"invalid wait \"-1s\": want a duration up to 1h0m0s, such as 30s"}`},
			"/shoal/v1/resolve?name=db&wait=2h":           {400, `{"message":"invalid wait \"2h\": want a duration up to 1h0m0s, such as 30s"}`},
			"/shoal/v1/watch?port=0":                      {400, `{"message":"invalid port \"0\": want a number from 1 to 65535"}`},
		} {
			code, text := get(h, target)
			require.Equal(t, want.code, code, target)
			require.Equal(t, want.text, text, target)
		}
		start := time.Now()
		go func() {
			<-time.After(20 * time.Second)
			cat.Put(discoverytest.Running("db", "id1", "10.77.1.2", map[string]string{"a": "b"},
				catalog.Port{HostPort: 8080, ContainerPort: 80}))
		}()
		code, text := get(h, "/shoal/v1/resolve?name=/db&port=80&wait=30s")
		require.Equal(t, 200, code)
		require.Equal(t, 20*time.Second, time.Since(start))
		var es []map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &es))
		require.Len(t, es, 1)
		require.Equal(t, "10.77.1.2", es[0]["address"])
		require.InDelta(t, 80, es[0]["port"], 0)
		require.Equal(t, "192.0.2.1:8080", es[0]["published"])
		require.Equal(t, "node1", es[0]["node"])

		code, text = get(h, "/shoal/v1/catalog")
		require.Equal(t, 200, code)
		var all struct {
			Index      uint64
			Nodes      []catalog.Node
			Containers []catalog.Container
		}
		require.NoError(t, json.Unmarshal([]byte(text), &all))
		require.Equal(t, cat.View().Index(), all.Index)
		require.Equal(t, "node1", all.Nodes[0].Name)
		require.Equal(t, "db", all.Containers[0].Name)
	})
}

func TestHTTPWatch(t *testing.T) {
	cat := discoverytest.New(discoverytest.Nodes(1)...)
	srv := httptest.NewServer(discovery.Handler(cat, slog.New(slog.DiscardHandler)))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/shoal/v1/watch?name=db&port=80", nil)
	require.NoError(t, err)
	res, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, "application/jsonl", res.Header.Get("Content-Type"))
	lines := bufio.NewScanner(res.Body)
	next := func() discovery.Change {
		require.True(t, lines.Scan(), "%v", lines.Err())
		var c discovery.Change
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		return c
	}
	require.Equal(t, discovery.Snapshot, next().Type)
	cat.Put(discoverytest.Running("other", "id1", "10.77.1.2", nil))
	cat.Put(discoverytest.Running("db", "id1", "10.77.1.3", nil))
	c := next()
	require.Equal(t, discovery.Added, c.Type)
	require.Equal(t, []string{"db@node1 10.77.1.3:80/tcp"}, brief(c.Endpoints))
	cat.Remove("db")
	require.Equal(t, discovery.Removed, next().Type)
}

// Any query string is answered at once with a class that tells a client's fault from ours.
func FuzzHTTPQuery(f *testing.F) {
	for _, s := range []string{
		"name=db&port=80", "name=db&port=80/udp&tag=a=b&tag=c", "wait=0s&name=%00", "tag==", "%zz",
	} {
		f.Add(s)
	}
	cat := discoverytest.New(discoverytest.Nodes(1)...)
	cat.Put(discoverytest.Running("db", "id1", "10.77.1.2", map[string]string{"a": "b"}, catalog.Port{ContainerPort: 80}))
	h := discovery.Handler(cat, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, query string) {
		if v := (&url.URL{RawQuery: query}).Query(); v.Has("wait") && v.Get("wait") != "0s" {
			t.Skip("would wait")
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/shoal/v1/resolve", nil)
		r.URL.RawQuery = query
		h.ServeHTTP(w, r)
		body, err := io.ReadAll(w.Body)
		if err != nil || !json.Valid(body) {
			t.Fatalf("%q: %q", query, body)
		}
		if w.Code != 200 && w.Code != 400 && w.Code != 404 {
			t.Fatalf("%q: status %d", query, w.Code)
		}
	})
}
