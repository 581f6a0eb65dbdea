package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBadInput makes each mistake, and checks that it is named and nothing half-made stays.
func TestBadInput(t *testing.T) {
	before := state(t)
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"run", "nobody-has-this"}, 125, "nobody-has-this"},
		{[]string{"run", "--mount", "type=bind,src=/not/there,dst=/x", "busybox", "true"}, 125, "bind source path does not exist: /not/there"},
		{[]string{"run", "--name", "b@d", "busybox", "true"}, 125, "Invalid container name (b@d)"},
		{[]string{"start", "no-such"}, 1, "No such container: no-such"},
		{[]string{"logs", "no-such"}, 1, "No such container: no-such"},
		{[]string{"rmi", "no-such"}, 1, "No such image: no-such"},
		{[]string{"tag", "no-such", "x:1"}, 1, "No such image: no-such"},
		{[]string{"ps", "--filter", "bogus=1"}, 1, "bogus"},
		{[]string{"run", "-p", "99999:80", "busybox", "true"}, 125, "99999"},
	} {
		r := docker(t, 2, c.args...)
		require.Equal(t, c.code, r.code, "docker %v: %s%s", c.args, r.out, r.err)
		require.Contains(t, r.err, c.text)
	}
	require.Equal(t, before, state(t))
}

// state is what must not change when a request is refused.
func state(t *testing.T) string {
	t.Helper()
	return ok(t, 1, "ps", "-aq", "--no-trunc") + "\n" + ok(t, 1, "images", "-aq", "--no-trunc")
}

func TestBrokenArchives(t *testing.T) {
	before := state(t)
	good, err := os.ReadFile(shared.web)
	require.NoError(t, err)
	for what, archive := range map[string][]byte{
		"empty":      {},
		"not a tar":  []byte(strings.Repeat("this is no archive ", 1000)),
		"cut short":  good[:len(good)/2],
		"swapped":    bytes.Replace(good, []byte("noise"), []byte("nOise"), 1),
		"wrong blob": lyingLayer(t),
	} {
		r := dockerInput(t, 2, bytes.NewReader(archive), "load")
		require.NotZero(t, r.code, "%s: %s", what, r.out)
		require.NotEmpty(t, r.err, what)
		require.Equal(t, before, state(t), what)
	}
}

// lyingLayer is an image whose layer isn't what its configuration says.
func lyingLayer(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	config := `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("ab", 32) + `"]}}`
	manifest := `[{"Config":"c.json","RepoTags":["liar:1"],"Layers":["l/layer.tar"]}]`
	layer := make([]byte, 1024)
	for _, f := range []struct{ name, body string }{{"c.json", config}, {"l/layer.tar", string(layer)}, {"manifest.json", manifest}} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: 0o644}))
		_, err := io.WriteString(w, f.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// TestRawRequests sends what no client sends.
func TestRawRequests(t *testing.T) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", shared.lab.Socket(2))
	}}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		method, path, contentType, body string
		status                          int
		text                            string
	}{
		{"POST", "/containers/create", "application/json", `{"Image":`, 400, "invalid JSON"},
		{"POST", "/containers/create", "text/plain", `{}`, 400, "unsupported Content-Type"},
		{"POST", "/containers/create", "application/json", `{"Image":"busybox"} {}`, 400, "unexpected content after JSON"},
		{"POST", "/containers/create", "application/json", `{"Image":"busybox","Env":["` + strings.Repeat("x", 40<<20) + `"]}`, 413, ""},
		{"GET", "/v1.99/containers/json", "", "", 400, "client version 1.99 is too new"},
		{"GET", "/v1.12/containers/json", "", "", 400, "client version 1.12 is too old"},
		{"GET", "/containers/json?filters=nonsense", "", "", 400, "invalid filter"},
		{"GET", "/no/such/page", "", "", 404, "page not found"},
		{"POST", "/containers/none/wait?condition=never", "", "", 400, "invalid condition"},
		{"GET", "/containers/none/json", "", "", 404, "No such container: none"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://shoal"+c.path, strings.NewReader(c.body))
		require.NoError(t, err)
		if c.contentType != "" {
			req.Header.Set("Content-Type", c.contentType)
		}
		res, err := client.Do(req)
		require.NoError(t, err, c.path)
		raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		res.Body.Close()
		require.NoError(t, err)
		require.Equal(t, c.status, res.StatusCode, "%s %s: %s", c.method, c.path, raw)
		var message struct{ Message string }
		if c.status != 400 || json.Unmarshal(raw, &message) == nil {
			require.Contains(t, string(raw), c.text)
		}
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	out, err := exec.Command(shared.shoal, "agent", "--config", filepath.Join(shared.lab.Dir(), "node1", "agent.toml")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "belongs to another agent")
	require.Zero(t, docker(t, 1, "ps").code, "the first agent goes on")
}

func TestStrangersAreRefused(t *testing.T) {
	r := shoal(t, 1, "token")
	require.Zero(t, r.code, r.err)
	token := strings.TrimSpace(r.out)
	wrong := []byte(token)
	wrong[len(wrong)/2] ^= 1
	for _, bad := range []string{"", "nonsense", string(wrong)} {
		r := shoal(t, 1, "join", bad)
		require.NotZero(t, r.code)
		require.NotEmpty(t, r.err)
	}
	// Bytes that are no protocol at all end a connection, not an agent.
	for _, port := range []string{"7946", "7947", "7948"} {
		inside(t, 2, "bash", "-c", "head -c 100000 /dev/urandom | timeout 2 curl -s telnet://"+address(1)+":"+port+" || true")
	}
	require.Zero(t, docker(t, 1, "run", "--rm", "busybox", "true").code)
}

func address(n int) string { return shared.lab.Status(context.Background())[n-1].Address }

// TestDamagedFiles starts a node of its own, damages what it keeps, and reads what it says.
func TestDamagedFiles(t *testing.T) {
	for _, what := range []string{"log", "segments", "container"} {
		t.Run(what, func(t *testing.T) {
			l := single(t)
			run := func(args ...string) result {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, shared.docker, args...)
				cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+l.Socket(1))
				return runCommand(t, cmd)
			}
			require.Zero(t, run("load", "-i", shared.busybox).code)
			require.Zero(t, run("create", "--name", "aa", "busybox", "true").code)
			require.Zero(t, run("create", "--name", "bb", "busybox", "true").code)
			id := strings.TrimSpace(run("inspect", "-f", "{{.Id}}", "aa").out)
			require.NoError(t, l.Stop(t.Context(), 1))
			switch what {
			case "container":
				damage(t, l.Data(1), func(path string) bool { return strings.Contains(path, id) && strings.HasSuffix(path, ".json") })
				require.NoError(t, l.Start(t.Context(), 1))
				require.Zero(t, run("inspect", "bb").code, "the others are there")
				log, err := os.ReadFile(l.Log(1))
				require.NoError(t, err)
				require.Contains(t, string(log), id, "the log names the damaged file")
			default:
				suffix := map[string]string{"log": ".wal", "segments": "wal-meta.db"}[what]
				damage(t, l.Data(1), func(path string) bool { return strings.HasSuffix(path, suffix) })
				err := l.Start(t.Context(), 1)
				require.ErrorContains(t, err, l.Data(1), "the error names the damaged file")
			}
		})
	}
}

// damage flips bytes in the middle of every file that is chosen.
func damage(t *testing.T, root string, chosen func(string) bool) {
	t.Helper()
	n := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !chosen(path) {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil || len(raw) == 0 {
			return err
		}
		for i := range min(len(raw), 16<<10) {
			raw[i] ^= 0x5a
		}
		n++
		return os.WriteFile(path, raw, 0o600)
	}))
	require.NotZero(t, n, "nothing was damaged: the test doesn't know the disk layout any more")
}

// TestClientLibraries runs the Python SDK's own calls.
func TestClientLibraries(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "clients/dockerpy.py")
	for n := 1; n <= 3; n++ {
		cmd.Env = append(cmd.Env, fmt.Sprintf("NODE%d=unix://%s", n, shared.lab.Socket(n)))
	}
	r := runCommand(t, cmd)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
}
