package lb

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// list is a template that is easy to read back.
const list = `{{range .Routes}}{{.Host}}{{.Path}}{{range .Servers}} {{.Name}}{{end}}
{{end}}`

func parse(t testing.TB, text string) *Template {
	t.Helper()
	p, err := ParseTemplate("list.tmpl", text, nil)
	require.NoError(t, err)
	return p
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

func TestOnce(t *testing.T) {
	dir := t.TempDir()
	cat := discoverytest.New(discoverytest.Nodes(1)...)
	r := New(Config{
		Reader: cat, Template: parse(t, list), File: filepath.Join(dir, "lb.conf"), Logger: quiet(),
		Check:  `! grep -q bad "$FILE" || { echo "line of $(basename "$FILE" | cut -c1-8) is bad" >&2; exit 1; }`,
		Reload: fmt.Sprintf(`cat "$FILE" >> %s/loaded; test ! -e %s/broken`, dir, dir),
	})
	once := func() error { return r.Once(t.Context()) }
	cat.Put(on80("a", tags{"lb.host": "x"}))
	require.NoError(t, once())
	require.Equal(t, "x/ a\n", read(t, r.File))
	require.Equal(t, "x/ a\n", read(t, filepath.Join(dir, "loaded")))

	cat.Put(on80("unrelated", nil))
	require.NoError(t, once())
	require.Equal(t, "x/ a\n", read(t, filepath.Join(dir, "loaded")), "no needless reload")

	require.NoError(t, os.Chmod(r.File, 0o600))
	cat.Put(on80("bad", tags{"lb.host": "x"}))
	require.ErrorContains(t, once(), "check command: exit status 1: line of .lb.conf is bad")
	require.Equal(t, "x/ a\n", read(t, r.File), "a refused draft changes nothing")
	left, err := filepath.Glob(filepath.Join(dir, ".lb.conf*"))
	require.NoError(t, err)
	require.Empty(t, left)

	cat.Remove("bad")
	cat.Put(on80("b", tags{"lb.host": "x"}))
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, nil, 0o600))
	require.ErrorContains(t, once(), "reload command: exit status 1")
	require.Equal(t, "x/ a b\n", read(t, r.File))
	st, err := os.Stat(r.File)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), "the file keeps its mode")
	require.NoError(t, os.Remove(broken))
	require.NoError(t, once(), "a failed reload is tried again")
	require.Equal(t, "x/ a\nx/ a b\nx/ a b\n", read(t, filepath.Join(dir, "loaded")))
	require.NoError(t, once())
	require.Equal(t, "x/ a\nx/ a b\nx/ a b\n", read(t, filepath.Join(dir, "loaded")))
}

func TestCommandsAreBounded(t *testing.T) {
	dir := t.TempDir()
	r := New(Config{
		Reader: discoverytest.New(), Template: parse(t, "x"), File: filepath.Join(dir, "f"), Logger: quiet(),
		Check: "echo stuck; sleep 600 & wait", Timeout: 200 * time.Millisecond,
	})
	start := time.Now()
	require.ErrorContains(t, r.Once(t.Context()), "check command: not done after 200ms")
	require.Less(t, time.Since(start), 20*time.Second)
	require.NoFileExists(t, r.File)

	// What a command leaves in the background, with its output, is not waited for.
	pid := filepath.Join(dir, "pid")
	r.Check, r.Timeout = fmt.Sprintf("sleep 600 & echo $! > %s", pid), time.Minute
	require.NoError(t, r.Once(t.Context()))
	require.Less(t, time.Since(start), 40*time.Second)
	n, err := strconv.Atoi(strings.TrimSpace(read(t, pid)))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(n, syscall.SIGKILL))
}

func TestTemplateErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\n{{.Oops":                         "my.tmpl:3",
		"a\n{{nofunc 1}}":                       "my.tmpl:2",
		"a\n\n\n{{.Oops}}":                      "my.tmpl:4",
		"\n{{word \"a b\"}}":                    "my.tmpl:2",
		"\n{{range .Routes}}\n{{.Nope}}{{end}}": "my.tmpl:3",
	} {
		p, err := ParseTemplate("my.tmpl", text, nil)
		if err == nil {
			_, err = p.Render(model(on80("a", tags{"lb.host": "x"})))
		}
		require.ErrorContains(t, err, want, text)
	}
}

func TestFunctions(t *testing.T) {
	p, err := ParseTemplate("f", `{{param "a" "x"}} {{param "b" "x"}} {{word .Route}} {{quote "a\"$\n"}} {{join "," .List}}`, map[string]string{"a": "set"})
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, p.t.Execute(&b, map[string]any{"Route": "a_b", "List": []string{"1", "2"}}))
	require.Equal(t, `set x a_b "a\"\$" 1,2`, b.String())
}

// Many changes in a row become few files, and the last one is the state.
func TestRunCoalesces(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(1)...)
		var writes counter
		r := New(Config{
			Reader: cat, Template: parse(t, list), File: filepath.Join(dir, "lb.conf"), Settle: time.Second,
			Logger: slog.New(slog.NewTextHandler(&writes, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		for i := range 50 {
			<-time.After(10 * time.Millisecond)
			cat.Put(on80(fmt.Sprintf("c%02d", i), tags{"lb.host": "x"}))
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		require.Contains(t, read(t, r.File), " c49\n")
		require.EqualValues(t, 2, writes.Load(), "the empty file and the full one")
		cancel()
		require.NoError(t, <-done)
	})
}

// A change that fails is tried again without another change.
func TestRunRetries(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	synctest.Test(t, func(t *testing.T) {
		cat := discoverytest.New(discoverytest.Nodes(1)...)
		cat.Put(on80("a", tags{"lb.host": "x"}))
		r := New(Config{Reader: cat, Template: parse(t, list), File: filepath.Join(dir, "lb.conf"), Logger: quiet()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		<-time.After(10 * time.Second)
		require.NoError(t, os.Mkdir(dir, 0o755))
		<-time.After(lastRetry)
		synctest.Wait()
		require.Equal(t, "x/ a\n", read(t, r.File))
		cancel()
		require.NoError(t, <-done)
	})
}

type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("wrote")) {
		c.Add(1)
	}
	return len(p), nil
}

// backend is a web server that answers its name.
func backend(t *testing.T, name string, tg tags) catalog.Container {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, name+" "+r.URL.Path)
	}))
	t.Cleanup(srv.Close)
	at := netip.MustParseAddrPort(srv.Listener.Addr().String())
	return discoverytest.Running(name, "id1", at.Addr().String(), tg, catalog.Port{ContainerPort: at.Port(), Proto: "tcp"})
}

func TestHAProxy(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("needs haproxy")
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	tmpl, err := ParseTemplate("haproxy", HAProxy, map[string]string{"bind": addr, "maxconn": "100", "socket": filepath.Join(dir, "s")})
	require.NoError(t, err)
	cat := discoverytest.New(discoverytest.Nodes(1)...)
	r := New(Config{
		Reader: cat, Template: tmpl, File: filepath.Join(dir, "haproxy.cfg"), Check: `haproxy -c -q -f "$FILE"`,
		Settle: 10 * time.Millisecond, Logger: quiet(),
	})
	cat.Put(backend(t, "root", tags{"lb.host": "*"}), backend(t, "web", tags{"lb.host": "web.example"}),
		backend(t, "api", tags{"lb.host": "web.example", "lb.path": "/api"}), backend(t, "wild", tags{"lb.host": "*.example"}))
	require.NoError(t, r.Once(t.Context()), "haproxy takes the shipped template")

	var log bytes.Buffer
	master := exec.CommandContext(t.Context(), "haproxy", "-W", "-db", "-f", r.File)
	master.Stdout, master.Stderr = &log, &log
	require.NoError(t, master.Start())
	t.Cleanup(func() {
		_ = master.Process.Signal(syscall.SIGTERM)
		_ = master.Wait()
		if t.Failed() {
			t.Log(log.String(), read(t, r.File))
		}
	})
	r.Reload = fmt.Sprintf("kill -USR2 %d", master.Process.Pid)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	get := func(host, path string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		require.NoError(t, err)
		req.Host = host
		res, err := client.Do(req)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		if res.StatusCode != http.StatusOK {
			return res.Status
		}
		return string(body)
	}
	eventually := func(host, path, want string) {
		t.Helper()
		require.Eventually(t, func() bool { return get(host, path) == want }, time.Minute, 10*time.Millisecond,
			"%s%s: want %q, got %q", host, path, want, get(host, path))
	}
	eventually("other", "/", "root /")
	for _, c := range []struct{ host, path, want string }{
		{"web.example", "/", "web /"}, {"WEB.example:8080", "/x", "web /x"}, {"web.example", "/api", "api /api"},
		{"web.example", "/api/x", "api /api/x"}, {"web.example", "/apix", "web /apix"}, {"a.b.example", "/api", "wild /api"},
		{"example", "/", "root /"},
	} {
		require.Equal(t, c.want, get(c.host, c.path), "%s%s", c.host, c.path)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	failed := make(chan string, 1)
	go func() { // somebody keeps asking through all reloads
		defer close(failed)
		for ctx.Err() == nil {
			if got := get("web.example", "/api"); got != "api /api" && ctx.Err() == nil {
				failed <- got
				return
			}
		}
	}()
	cat.Remove("web")
	eventually("web.example", "/", "wild /")
	stopped := backend(t, "late", tags{"lb.host": "late.test"})
	cat.Put(stopped)
	eventually("late.test", "/", "late /")
	stopped.Healthy = false
	cat.Put(stopped)
	eventually("late.test", "/", "503 Service Unavailable")
	cat.Put(on80("evil", tags{"lb.host": "evil.test\n    bogus line", "lb.path": "/"}), backend(t, "after", tags{"lb.host": "after.test"}))
	eventually("after.test", "/", "after /")
	cancel()
	require.NoError(t, <-done)
	for got := range failed {
		t.Errorf("a request during reloads was answered %q", got)
	}
}
