package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/imagetar"
)

// stub answers what a test sets and is a Fake otherwise.
type stub struct {
	api.Engine
	create  func(api.CreateOptions) error
	pull    func(context.Context, api.PullOptions) (api.Stream[api.Progress], error)
	inspect *container.InspectResponse
	list    []container.Summary
	images  []image.Summary
	happens []events.Message
}

func (s *stub) CreateContainer(ctx context.Context, o api.CreateOptions) (container.CreateResponse, error) {
	if s.create == nil {
		return s.Engine.CreateContainer(ctx, o)
	}
	return container.CreateResponse{ID: "made"}, s.create(o)
}

func (s *stub) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	return s.pull(ctx, o)
}

func (s *stub) InspectContainer(ctx context.Context, id string, o api.InspectOptions) (container.InspectResponse, error) {
	if s.inspect == nil {
		return s.Engine.InspectContainer(ctx, id, o)
	}
	return *s.inspect, nil
}

func (s *stub) ListContainers(ctx context.Context, o api.ListOptions) ([]container.Summary, error) {
	if s.list == nil {
		return s.Engine.ListContainers(ctx, o)
	}
	return s.list, nil
}

func (s *stub) ListImages(ctx context.Context, o api.ImageListOptions) ([]image.Summary, error) {
	if s.images == nil {
		return s.Engine.ListImages(ctx, o)
	}
	return s.images, nil
}

func (s *stub) Events(ctx context.Context, o api.EventsOptions) (api.Stream[events.Message], error) {
	if s.happens == nil {
		return s.Engine.Events(ctx, o)
	}
	out, send, finish := api.Pipe[events.Message](ctx)
	go func() {
		for _, m := range s.happens {
			if send(m) != nil {
				break
			}
		}
		finish(nil)
	}()
	return out, nil
}

func newStub(t *testing.T) *stub {
	f := apitest.NewFake("stub", 1)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return &stub{Engine: f}
}

// ask sends a request to a handler.
func ask(h http.Handler, method, target, kind, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func message(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var m struct{ Message string }
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &m), "%s", w.Body)
	return m.Message
}

func TestErrorsHaveDockersStatusAndText(t *testing.T) {
	h := New(Config{Engine: newStub(t), Version: "1.2"})
	for _, c := range []struct {
		method, target, kind, body string
		status                     int
		text                       string
	}{
		{"GET", "/v1.99/info", "", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v2/info", "", "", 400, "client version 2 is too new"},
		{"GET", "/v1.39/info", "", "", 400, "client version 1.39 is too old. Minimum supported API version is 1.40, please upgrade"},
		{"GET", "/v1..4/info", "", "", 400, "invalid API version"},
		{"GET", "/nosuch", "", "", 404, "page not found"},
		{"GET", "/containers/create", "", "", 404, "page not found"},
		{"POST", "/build", "", "", 404, "page not found"},
		{"GET", "/containers/x/json", "", "", 404, "No such container: x"},
		{"GET", "/images/a/b/c:1/json", "", "", 404, "No such image: a/b/c:1"},
		{"POST", "/containers/create", "text/plain", "{}", 400,
			"unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"POST", "/containers/create", "application/json", "{", 400, "invalid JSON: unexpected EOF"},
		{"POST", "/containers/create", "application/json", `{"Image":"x"} {}`, 400, "unexpected content after JSON"},
		{"POST", "/containers/create", "application/json", `{"Image":3}`, 400, "invalid JSON: "},
		{"POST", "/containers/create", "application/json", "{}", 400, "config cannot be empty"},
		{"POST", "/containers/create", "", "", 400, "config cannot be empty"},
		{"POST", "/containers/create", "application/json", `{"Image":"` + strings.Repeat("x", maxBody) + `"}`, 413,
			"request body is larger than 8388608 bytes"},
		{"GET", "/containers/json?filters=nonsense", "", "", 400, "invalid filter"},
		{"GET", `/containers/json?filters={"bogus":["x"]}`, "", "", 400, "invalid filter 'bogus'"},
		{"GET", `/containers/json?filters={"bogus":{"x":true}}`, "", "", 400, "invalid filter 'bogus'"},
		{"GET", "/containers/json?limit=x", "", "", 400, "invalid limit"},
		{"GET", "/containers/x/logs", "", "", 400, "you must choose at least one stream"},
		{"POST", "/containers/x/wait?condition=x", "", "", 400, `invalid condition: "x"`},
		{"POST", "/containers/x/resize?h=x", "", "", 400, "invalid resize height or width"},
		{"POST", "/containers/x/exec", "application/json", "{}", 400, "No exec command specified"},
		{"POST", "/images/create?fromImage=a&shoal-digest=x", "", "", 400, "invalid shoal-digest"},
		{"POST", "/images/create?fromSrc=http://example.com", "", "", 501, "is not supported"},
		{"POST", "/images/x/tag?repo=UPPER", "", "", 400, "invalid reference format"},
		{"GET", "/images/get", "", "", 400, "no images to save"},
		{"GET", "/events?since=yesterday", "", "", 400, "failed to parse value as time or duration"},
		{"GET", "/events?since=20&until=10", "", "", 400, "cannot be after"},
	} {
		target, query, _ := strings.Cut(c.target, "?")
		if q, err := url.ParseQuery(query); err == nil && query != "" {
			target += "?" + q.Encode()
		}
		w := ask(h, c.method, target, c.kind, c.body)
		name := c.method + " " + c.target
		assert.Equal(t, c.status, w.Code, name)
		assert.Contains(t, message(t, w), c.text, name)
		assert.Equal(t, "application/json", w.Header().Get("Content-Type"), name)
		assert.Equal(t, "1.56", w.Header().Get("Api-Version"), name)
		assert.Equal(t, "linux", w.Header().Get("Ostype"), name)
		assert.Equal(t, "false", w.Header().Get("Docker-Experimental"), name)
		assert.Equal(t, "Shoal/1.2 (linux)", w.Header().Get("Server"), name)
	}
}

func TestPingNegotiates(t *testing.T) {
	h := New(Config{Engine: newStub(t)})
	for _, target := range []string{"/_ping", "/v1.41/_ping"} {
		for _, method := range []string{"GET", "HEAD"} {
			w := ask(h, method, target, "", "")
			assert.Equal(t, 200, w.Code)
			assert.Equal(t, "1.56", w.Header().Get("Api-Version"))
			assert.Equal(t, "1", w.Header().Get("Builder-Version"), "there is no BuildKit")
			assert.Equal(t, "inactive", w.Header().Get("Swarm"))
			assert.Contains(t, w.Header().Get("Cache-Control"), "no-cache")
			assert.Equal(t, map[string]string{"GET": "OK", "HEAD": ""}[method], w.Body.String())
		}
	}
}

func TestEveryRouteIsServedAndDescribed(t *testing.T) {
	h := New(Config{Engine: newStub(t), Version: "9"})
	w := ask(h, "GET", "/openapi.json", "", "")
	require.Equal(t, 200, w.Code)
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID string }
		Components struct{ Schemas map[string]any }
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &doc))
	assert.Regexp(t, `^3\.`, doc.OpenAPI)

	described, ids := 0, map[string]bool{}
	for _, methods := range doc.Paths {
		described += len(methods)
	}
	routes := table()
	assert.Equal(t, len(routes), described, "the document has a route that the table hasn't, or the other way round")
	page := ask(h, "GET", "/docs", "", "").Body.String()
	m := newMux(routes)
	for _, r := range routes {
		path := strings.Replace(r.path, "...}", "}", 1)
		op, ok := doc.Paths[path][strings.ToLower(r.method)]
		assert.True(t, ok, "%s %s isn't described", r.method, r.path)
		assert.Equal(t, r.id, op.OperationID)
		assert.False(t, ids[r.id], "%s is there twice", r.id)
		ids[r.id] = true
		assert.NotEmpty(t, r.doc, r.path)
		assert.Contains(t, page, r.method+" "+path)
		found, _, ok := m.find(r.method, strings.NewReplacer("{id}", "x", "{name...}", "x/y").Replace(r.path))
		assert.True(t, ok, "%s %s isn't found", r.method, r.path)
		assert.Equal(t, r.id, found.id)
	}
	for _, ref := range refs(doc.Paths, w.Body.Bytes()) {
		assert.Contains(t, doc.Components.Schemas, ref)
		assert.NotNil(t, doc.Components.Schemas[ref], ref)
	}
}

// refs are the names of all schemas a document refers to.
func refs(_ any, doc []byte) []string {
	var names []string
	for _, part := range strings.Split(string(doc), `"$ref": "#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		names = append(names, name)
	}
	return names
}

func TestNamesOfImagesHaveSlashes(t *testing.T) {
	m := newMux(table())
	for _, c := range []struct{ method, path, id, arg string }{
		{"GET", "/images/registry:5000/a/b:tag/json", "ImageInspect", "registry:5000/a/b:tag"},
		{"GET", "/images/json", "ImageList", ""},
		{"GET", "/images/json/json", "ImageInspect", "json"},
		{"GET", "/images/a/json/history", "ImageHistory", "a/json"},
		{"DELETE", "/images/a/b/c", "ImageDelete", "a/b/c"},
		{"GET", "/images/get", "ImageGetAll", ""},
		{"GET", "/images/a/get", "ImageGet", "a"},
		{"GET", "/networks/", "NetworkList", ""},
		{"GET", "/containers/x/attach/ws", "ContainerAttachWebsocket", "x"},
	} {
		r, arg, ok := m.find(c.method, c.path)
		assert.True(t, ok, c.path)
		assert.Equal(t, c.id, r.id, c.path)
		assert.Equal(t, c.arg, arg, c.path)
	}
	for _, path := range []string{"/containers//json", "/containers/a/b/json", "/images//json", "/"} {
		_, _, ok := m.find("GET", path)
		assert.False(t, ok, path)
	}
}

func TestCreateOptionsArrive(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	var got api.CreateOptions
	s.create = func(o api.CreateOptions) error { got = o; return nil }
	id := strings.Repeat("ab", 32)
	body := `{"Image":"x","Cmd":["a"],"MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"n","Memory":7,"ConsoleSize":[1,2]},
		"NetworkingConfig":{"EndpointsConfig":{"n":{"Aliases":["y"]}}}}`
	w := ask(h, "POST", "/v1.41/containers/create?name=web&platform=linux/arm64/v8", "application/json; charset=utf-8", body, idHeader, id)
	require.Equal(t, 201, w.Code, w.Body)
	assert.JSONEq(t, `{"Id":"made","Warnings":[]}`, w.Body.String())
	assert.Equal(t, id, got.ID)
	assert.Equal(t, "web", got.Name)
	assert.Equal(t, api.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, got.Platform)
	assert.Equal(t, []string{"a"}, got.Config.Cmd)
	assert.EqualValues(t, 7, got.HostConfig.Memory)
	assert.Zero(t, got.HostConfig.ConsoleSize, "before 1.42 it was nonsense")
	assert.Equal(t, []string{"y"}, got.Networking.EndpointsConfig["n"].Aliases)
	assert.Equal(t, "02:00:00:00:00:01", got.Networking.EndpointsConfig["n"].MacAddress.String())

	w = ask(h, "POST", "/containers/create", "application/json", body)
	require.Equal(t, 201, w.Code)
	assert.Empty(t, got.Networking.EndpointsConfig["n"].MacAddress, "since 1.52 it is ignored")
	assert.Equal(t, [2]uint{1, 2}, got.HostConfig.ConsoleSize)
	w = ask(h, "POST", "/containers/create", "application/json", body, idHeader, "short")
	assert.Equal(t, 400, w.Code)
}

func TestPullOptionsArriveAndErrorsComeInTime(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	var got api.PullOptions
	lines, fail := 0, error(nil)
	s.pull = func(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
		got = o
		out, send, finish := api.Pipe[api.Progress](ctx)
		go func() {
			for range lines {
				_ = send(api.Progress{Status: "<going>"})
			}
			finish(fail)
		}()
		return out, nil
	}
	d := digest.FromString("x").String()
	lines = 1
	w := ask(h, "POST", "/images/create?fromImage=a/b&tag=v1&platform=arm64&shoal-digest="+d, "", "",
		"X-Registry-Auth", "eyJ1c2VybmFtZSI6Im1lIn0=")
	assert.Equal(t, 200, w.Code)
	assert.Equal(t, `{"status":"<going>"}`+"\n", w.Body.String(), "without HTML escapes")
	assert.Equal(t, "a/b:v1", got.Ref)
	assert.Equal(t, d, got.Digest)
	assert.Equal(t, "arm64", got.Platform.Architecture)
	assert.Equal(t, "me", got.Auth.Username)

	lines, fail = 0, api.NotFound("no such host")
	w = ask(h, "POST", "/images/create?fromImage=a&tag="+d, "", "", "X-Registry-Auth", "nonsense")
	assert.Equal(t, 404, w.Code, "before the first byte it is a real status")
	assert.Equal(t, "no such host", message(t, w))
	assert.Equal(t, "a@"+d, got.Ref)
	assert.Empty(t, got.Auth.Username, "what can't be read is anonymous")

	lines = 1
	w = ask(h, "POST", "/images/create?fromImage=a", "", "")
	assert.Equal(t, 200, w.Code)
	assert.Contains(t, w.Body.String(), `{"errorDetail":{"code":404,"message":"no such host"},"error":"no such host"}`)
	assert.Equal(t, "a:latest", got.Ref)
}

func TestOldVersionsGetOldFields(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	s.inspect = &container.InspectResponse{NetworkSettings: &container.NetworkSettings{
		Networks: map[string]*network.EndpointSettings{"bridge": {IPAddress: netip.MustParseAddr("172.17.0.2"), IPPrefixLen: 16}},
	}}
	for v, want := range map[string]bool{"1.40": true, "1.51": true, "1.52": false, "1.56": false} {
		body := ask(h, "GET", "/v"+v+"/containers/x/json", "", "").Body.String()
		var got struct{ NetworkSettings map[string]any }
		require.NoError(t, json.Unmarshal([]byte(body), &got))
		ip, has := got.NetworkSettings["IPAddress"]
		assert.Equal(t, want, has, v)
		if want {
			assert.Equal(t, "172.17.0.2", ip)
		}
		assert.Contains(t, got.NetworkSettings, "Networks", v)
	}
	s.images = []image.Summary{{ID: "x", Size: 5, Descriptor: &ocispec.Descriptor{}}}
	for v, want := range map[string]string{
		"1.41": `"RepoTags":["<none>:<none>"],"SharedSize":0,"Size":5,"VirtualSize":5`,
		"1.43": `"RepoTags":[],"SharedSize":0,"Size":5,"VirtualSize":5`,
		"1.44": `"RepoTags":[],"SharedSize":0,"Size":5}`,
	} {
		assert.Contains(t, ask(h, "GET", "/v"+v+"/images/json", "", "").Body.String(), want, v)
	}
	assert.NotContains(t, ask(h, "GET", "/v1.47/images/json", "", "").Body.String(), "Descriptor")
	assert.Contains(t, ask(h, "GET", "/v1.48/images/json", "", "").Body.String(), "Descriptor")
	s.list = []container.Summary{{Health: &container.HealthSummary{Status: "healthy"}}}
	assert.NotContains(t, ask(h, "GET", "/v1.51/containers/json", "", "").Body.String(), "Health")
	assert.Contains(t, ask(h, "GET", "/v1.52/containers/json", "", "").Body.String(), "Health")
	assert.Contains(t, ask(h, "GET", "/containers/json", "", "").Body.String(), `"Ports":[]`)
}

func TestEventsInEveryNotation(t *testing.T) {
	s := newStub(t)
	h := New(Config{Engine: s})
	s.happens = []events.Message{{
		Type: "container", Action: "start", Actor: events.Actor{ID: "c", Attributes: map[string]string{"image": "i"}},
	}}
	for _, c := range []struct{ version, accept, kind, prefix string }{
		{"1.51", "", "application/json", `{"status":"start","id":"c","from":"i","Type":`},
		{"1.52", "", "application/jsonl", `{"Type":"container"`},
		{"1.52", "application/x-ndjson", "application/x-ndjson", `{"Type":`},
		{"1.52", "application/json-seq", "application/json-seq", "\x1e{\"Type\":"},
		{"1.56", "application/json", "application/json", `{"Type":`},
	} {
		w := ask(h, "GET", "/v"+c.version+"/events", "", "", "Accept", c.accept)
		assert.Equal(t, c.kind, w.Header().Get("Content-Type"), c)
		assert.True(t, strings.HasPrefix(w.Body.String(), c.prefix), "%v: %q", c, w.Body)
		assert.True(t, strings.HasSuffix(w.Body.String(), "}\n"))
	}
}

func TestExtraServesItsPaths(t *testing.T) {
	extra := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "extra "+r.URL.Path) })
	assert.Equal(t, "extra /shoal/v1/x", ask(New(Config{Engine: newStub(t), Extra: extra}), "GET", "/shoal/v1/x", "", "").Body.String())
	assert.Equal(t, 404, ask(New(Config{Engine: newStub(t)}), "GET", "/shoal/v1/x", "", "").Code)
}

// listen runs a server over a Fake that holds an image of one shell.
func listen(t *testing.T) (engine *apitest.Fake, socket string, stop func()) {
	f := apitest.NewFake("fake", 1)
	b := apitest.Archive(t, "box", ocispec.ImageConfig{}, []imagetar.File{{Name: "bin/sh", Mode: 0o755}})
	s, err := f.LoadImages(t.Context(), strings.NewReader(string(b)), api.LoadOptions{})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	srv := NewServer(Config{Engine: f})
	go func() { done <- srv.Run(ctx, l) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-done)
			require.NoError(t, f.Close())
		}
	}
	t.Cleanup(stop)
	return f, l.Addr().String(), stop
}

func create(t *testing.T, e api.Engine, tty bool, cmd ...string) string {
	made, err := e.CreateContainer(t.Context(), api.CreateOptions{Config: &container.Config{
		Image: "box", Cmd: cmd, Tty: tty, OpenStdin: true, StdinOnce: true,
	}})
	require.NoError(t, err)
	return made.ID
}

func TestUpgradeIsLiteral(t *testing.T) {
	f, socket, _ := listen(t)
	for _, c := range []struct {
		version, upgrade, want string
		tty                    bool
	}{
		{"1.56", "Connection: Upgrade\r\nUpgrade: tcp\r\n",
			"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n", false},
		{"1.41", "Connection: Upgrade\r\nUpgrade: tcp\r\n",
			"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n", false},
		{"1.56", "Connection: Upgrade\r\nUpgrade: tcp\r\n",
			"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n", true},
		{"1.56", "", "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n", false},
	} {
		id := create(t, f, c.tty, "sh", "-c", "cat; echo end")
		conn, err := net.Dial("unix", socket)
		require.NoError(t, err)
		// Input comes in the same packet as the request.
		_, err = fmt.Fprintf(conn, "POST /v%s/containers/%s/attach?stdin=1&stdout=1&stream=1 HTTP/1.1\r\nHost: x\r\n%s\r\nearly\n",
			c.version, id, c.upgrade)
		require.NoError(t, err)
		head := make([]byte, len(c.want))
		_, err = io.ReadFull(conn, head)
		require.NoError(t, err)
		assert.Equal(t, c.want, string(head))
		require.NoError(t, f.StartContainer(t.Context(), id, api.StartOptions{}))
		if c.tty {
			_, err = conn.Write([]byte{4})
			require.NoError(t, err)
		} else {
			require.NoError(t, conn.(*net.UnixConn).CloseWrite())
		}
		rest, err := io.ReadAll(conn)
		require.NoError(t, err)
		assert.Contains(t, string(rest), "early")
		assert.Contains(t, string(rest), "end")
		require.NoError(t, conn.Close())
	}
}

func TestShutdownCutsStreams(t *testing.T) {
	f, socket, stop := listen(t)
	id := create(t, f, false, "sleep", "1000")
	require.NoError(t, f.StartContainer(t.Context(), id, api.StartOptions{}))
	var readers []*bufio.Reader
	for _, request := range []string{
		"POST /containers/" + id + "/attach?stdout=1&stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"GET /containers/" + id + "/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /containers/" + id + "/wait HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn, err := net.Dial("unix", socket)
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, request)
		require.NoError(t, err)
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		assert.Regexp(t, `^HTTP/1.1 (101|200) `, line, "headers come before anything happens")
		readers = append(readers, r)
	}
	stop()
	for _, r := range readers {
		_, err := io.ReadAll(r)
		assert.NoError(t, err)
	}
}

func TestWebsocketCarriesBothWays(t *testing.T) {
	f, socket, _ := listen(t)
	id := create(t, f, false, "cat")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	ws, _, err := websocket.Dial(t.Context(), "ws://x/v1.56/containers/"+id+"/attach/ws?stdin=1&stdout=1&stream=1",
		&websocket.DialOptions{HTTPClient: client})
	require.NoError(t, err)
	defer func() { _ = ws.CloseNow() }()
	require.NoError(t, f.StartContainer(t.Context(), id, api.StartOptions{}))
	require.NoError(t, ws.Write(t.Context(), websocket.MessageText, []byte("hello\n")))
	_, got, err := ws.Read(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "hello\n", string(got), "not framed")
	require.NoError(t, f.KillContainer(t.Context(), id, "KILL"))
	_, _, err = ws.Read(t.Context())
	assert.Equal(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))

	_, res, err := websocket.Dial(t.Context(), "ws://x/containers/"+id+"/attach/ws?stream=1",
		&websocket.DialOptions{HTTPClient: client, HTTPHeader: http.Header{"Origin": {"http://evil.example"}}})
	require.Error(t, err)
	assert.Equal(t, 403, res.StatusCode, "a page of another origin")
}
