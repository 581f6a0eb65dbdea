package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
)

// serveAgent serves a socket with canned answers and the real look-ups over a catalog.
func serveAgent(t *testing.T, s *catalog.State) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/shoal/v1/", discovery.Handler(s, logger(defaultLog(), os.Stderr)))
	mux.HandleFunc("GET /shoal/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]map[string]any{{"ID": "12D3KooWabcdefgh", "Name": "node1", "Leader": true, "Reachable": true, "Memory": 1 << 30}})
	})
	mux.HandleFunc("POST /shoal/v1/join", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"message":"this is no token"}`))
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return socket
}

func run(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Main(t.Context(), "v1", args, &o, &e)
	return code, o.String(), e.String()
}

func TestExitCodesAndTexts(t *testing.T) {
	socket := serveAgent(t, catalog.NewState())
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"version"}, 0, "shoal v1"},
		{[]string{"-H", socket, "node", "ls"}, 0, "node1"},
		{[]string{"-H", "unix://" + socket, "node", "ls", "--json"}, 0, `"Name": "node1"`},
		{[]string{"-H", socket, "join", "x"}, 1, "this is no token"},
		{[]string{"-H", socket, "resolve", "nothing"}, 3, "no such container"},
		{[]string{"-H", socket, "resolve"}, 2, "NAME"},
		{[]string{"-H", socket, "resolve", "x", "--port", "http"}, 2, "http"},
		{[]string{"-H", none, "node", "ls"}, 1, "is it running"},
		{[]string{"-H", "tcp://1.2.3.4:5", "node", "ls"}, 1, "only unix://"},
		{[]string{"-H", socket, "tag", "x", "novalue"}, 2, "KEY=VALUE"},
		{[]string{"nonsense"}, 2, "nonsense"},
		{[]string{"node", "ls", "extra"}, 2, "extra"},
		{[]string{"lab", "status", "--dir", "/nowhere"}, 1, "shoal lab up"},
		{[]string{"lab", "up", "--rate", "fast"}, 1, "fast"},
		{[]string{"reset"}, 2, "--force"},
		{[]string{"agent", "--config", "/nowhere.toml"}, 2, "/nowhere.toml"},
	} {
		code, out, errOut := run(t, c.args...)
		require.Equal(t, c.code, code, "%v: %s%s", c.args, out, errOut)
		require.Contains(t, out+errOut, c.text, "%v", c.args)
	}
}

func TestLoadBalancerFollowsFromOutside(t *testing.T) {
	s := catalog.NewState()
	socket := serveAgent(t, s)
	dir := t.TempDir()
	tmpl, out := filepath.Join(dir, "t"), filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(tmpl, []byte(`{{param "x" "none"}}{{range .Routes}} {{.Host}}{{end}}`), 0o600))
	code, text, errOut := run(t, "-H", socket, "lb", "--template", tmpl, "--param", "x=y")
	require.Zero(t, code, errOut)
	require.Equal(t, "y", text)
	code, _, errOut = run(t, "-H", socket, "lb", "--template", tmpl, "--out", out, "--once", "--check", "exit 1")
	require.Equal(t, 1, code)
	require.Contains(t, errOut, "check command")
	require.NoFileExists(t, out)
	require.NoError(t, os.WriteFile(tmpl, []byte("a\n{{broken"), 0o600))
	code, _, errOut = run(t, "-H", socket, "lb", "--template", tmpl)
	require.Equal(t, 2, code)
	require.Contains(t, errOut, ":2")
}

func TestSocketPath(t *testing.T) {
	t.Setenv("SHOAL_HOST", "")
	t.Setenv("DOCKER_HOST", "unix:///var/run/docker.sock")
	p, err := socketPath("")
	require.NoError(t, err)
	require.Equal(t, "/run/shoal/shoal.sock", p, "another engine's socket is not ours")
	t.Setenv("DOCKER_HOST", "unix:///run/shoal-lab/node1/shoal.sock")
	p, err = socketPath("")
	require.NoError(t, err)
	require.Equal(t, "/run/shoal-lab/node1/shoal.sock", p)
	t.Setenv("SHOAL_HOST", "/x")
	p, err = socketPath("")
	require.NoError(t, err)
	require.Equal(t, "/x", p)
}

// TestEveryListingSpeaksJSON holds the promise of docs/cli.md.
func TestEveryListingSpeaksJSON(t *testing.T) {
	root := newRoot("v")
	for _, words := range [][]string{{"node", "ls"}, {"tag"}, {"image", "where"}, {"resolve"}, {"watch"}, {"doctor"}, {"lab", "status"}, {"version"}} {
		cmd, _, err := root.Find(words)
		require.NoError(t, err)
		require.NotNil(t, cmd.Flag("json"), strings.Join(words, " "))
	}
}
