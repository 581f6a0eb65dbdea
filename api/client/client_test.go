package client_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/api/server"
)

// pipes is a listener in memory and the dial function that reaches it.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) Dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestNothingIsLeftBehind runs in a bubble, which fails when a goroutine outlives it.
func TestNothingIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := apitest.NewFake("fake", 1), newPipes()
		serving, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- server.NewServer(server.Config{Engine: f}).Run(serving, p) }()
		c := client.New(client.Config{Dial: p.Dial})
		load(t, c, apitest.Archive(t, "box", ocispec.ImageConfig{}, []imagetar.File{{Name: "bin/sh", Mode: 0o755}}))
		made, err := c.CreateContainer(t.Context(), api.CreateOptions{Config: &container.Config{
			Image: "box", Cmd: []string{"sleep", "1000"}, OpenStdin: true,
		}})
		require.NoError(t, err)
		require.NoError(t, c.StartContainer(t.Context(), made.ID, api.StartOptions{}))

		ctx, cancel := context.WithCancelCause(t.Context())
		_, err = c.WaitContainer(ctx, made.ID, container.WaitConditionNextExit)
		require.NoError(t, err)
		_, err = c.ContainerLogs(ctx, made.ID, api.LogsOptions{Stdout: true, Follow: true, Tail: -1})
		require.NoError(t, err)
		events, err := c.Events(ctx, api.EventsOptions{Filters: api.Filters{"event": {"none such"}}})
		require.NoError(t, err)
		session, err := c.AttachContainer(ctx, made.ID, api.AttachOptions{Stdin: true, Stdout: true, Stream: true})
		require.NoError(t, err)
		assert.True(t, errdefs.IsNotImplemented(session.CloseWrite()), "a pipe can't be closed in one direction")
		cancel(io.ErrNoProgress) // and nobody closes anything
		for _, err := range []error{second(session.Read(make([]byte, 1))), second(session.Write([]byte("x"))), second(events.Recv())} {
			assert.ErrorIs(t, err, io.ErrNoProgress, "the cause of the end is told")
		}
		synctest.Wait()

		abandoned, err := c.Events(t.Context(), api.EventsOptions{})
		require.NoError(t, err)
		require.NoError(t, abandoned.Close())
		require.NoError(t, abandoned.Close(), "closing twice is no error")
		require.NoError(t, c.Close())
		stop()
		require.NoError(t, <-done)
		require.NoError(t, f.Close())
		_, err = c.Ping(t.Context())
		assert.True(t, errdefs.IsUnavailable(err), "%v", err)
	})
}

func second[T any](_ T, err error) error { return err }

func load(t *testing.T, c api.Engine, archive []byte) {
	s, err := c.LoadImages(t.Context(), strings.NewReader(string(archive)), api.LoadOptions{})
	require.NoError(t, err)
	for _, err := range api.All(s) {
		require.NoError(t, err)
	}
}

// recording answers with a fixed answer and keeps the last request.
func recording(t *testing.T, answer string) (*client.Client, *http.Request) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	got := &http.Request{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				*got = *r
			}
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}()
	return client.New(client.Config{UserAgent: "me/1", Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}), got
}

func TestErrorsOfStrangers(t *testing.T) {
	for _, c := range []struct {
		answer, text string
		is           func(error) bool
	}{
		{"HTTP/1.1 404 Not Found\r\nContent-Length: 17\r\n\r\n{\"message\":\"gone\"", `{"message":"gone"`, errdefs.IsNotFound},
		{"HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n{\"message\":\"gone\"}", "gone", errdefs.IsNotFound},
		{"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n", "conflict", errdefs.IsConflict},
		{"HTTP/1.1 503 X\r\nContent-Length: 9\r\n\r\n<p>no</p>", "<p>no</p>", errdefs.IsUnavailable},
		{"HTTP/1.1 304 Not Modified\r\n\r\n", "not modified", errdefs.IsNotModified},
		{"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "found", errdefs.IsInternal},
		{"HTTP/1.1 413 X\r\nContent-Length: 1\r\n\r\nx", "x", errdefs.IsInvalidArgument},
		{"HTTP/1.1 500 X\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 1000000), "xxx", errdefs.IsInternal},
		{"SSH-2.0-OpenSSH\r\n", "reach the engine", errdefs.IsUnavailable},
		{"", "reach the engine", errdefs.IsUnavailable},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"Id\"", "read the answer of POST /containers/x/start", nil},
	} {
		e, _ := recording(t, c.answer)
		err := e.StartContainer(t.Context(), "x", api.StartOptions{})
		if c.is == nil { // what is said after a success doesn't matter unless it is asked for
			assert.NoError(t, err)
			_, err = e.InspectContainer(t.Context(), "x", api.InspectOptions{})
			assert.ErrorContains(t, err, "read the answer of GET /containers/x/json")
			continue
		}
		require.Error(t, err)
		assert.ErrorContains(t, err, c.text)
		assert.Less(t, len(err.Error()), 70<<10, "bounded")
		assert.True(t, c.is(err), "%v", err)
		_, err = e.AttachContainer(t.Context(), "x", api.AttachOptions{})
		assert.Error(t, err)
	}
	e, _ := recording(t, "HTTP/1.1 200 OK\r\n\r\n")
	_, err := e.AttachContainer(t.Context(), "x", api.AttachOptions{})
	assert.ErrorContains(t, err, "instead of upgrading")
}

func TestRequestsSayEverything(t *testing.T) {
	d := digest.FromString("x").String()
	e, got := recording(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	s, err := e.PullImage(t.Context(), api.PullOptions{
		Ref: "host:5000/a/b:v1", Digest: d, Platform: api.Platform{OS: "linux", Architecture: "arm64"},
		Auth: registry.AuthConfig{Username: "me"},
	})
	require.NoError(t, err)
	_, err = s.Recv()
	assert.Equal(t, io.EOF, err)
	assert.Equal(t, "/v1.56/images/create", got.URL.Path)
	assert.Equal(t, map[string][]string{
		"fromImage": {"host:5000/a/b"}, "tag": {"v1"}, "platform": {"linux/arm64"}, "shoal-digest": {d},
	}, map[string][]string(got.URL.Query()))
	assert.Equal(t, "eyJ1c2VybmFtZSI6Im1lIn0=", got.Header.Get("X-Registry-Auth"))
	assert.Equal(t, "me/1", got.UserAgent())

	for ref, tag := range map[string][]string{"host:5000/a/b:v1": {"v1"}, "host:5000/a/b": nil} {
		e, got = recording(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_, err = e.PushImage(t.Context(), api.PushOptions{Ref: ref, Auth: registry.AuthConfig{Username: "me"}})
		require.NoError(t, err)
		assert.Equal(t, "/v1.56/images/host:5000/a/b/push", got.URL.Path)
		assert.Equal(t, tag, got.URL.Query()["tag"])
		assert.Equal(t, "eyJ1c2VybmFtZSI6Im1lIn0=", got.Header.Get("X-Registry-Auth"))
	}
	e, got = recording(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	_, err = e.PullImage(t.Context(), api.PullOptions{Ref: "x", Known: d})
	require.NoError(t, err)
	assert.Equal(t, d, got.URL.Query().Get("shoal-known"))

	e, got = recording(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	_, err = e.Events(t.Context(), api.EventsOptions{Since: time.Unix(5, 7), Filters: api.Filters{"a": {"b"}}})
	require.NoError(t, err)
	assert.Equal(t, "5.000000007", got.URL.Query().Get("since"))
	assert.Equal(t, `{"a":{"b":true}}`, got.URL.Query().Get("filters"))

	for _, id := range []string{"", "..", "a/b"} {
		assert.Error(t, e.StartContainer(t.Context(), id, api.StartOptions{}), id)
	}
}

func TestProgressFailsWithItsClass(t *testing.T) {
	e, _ := recording(t, "HTTP/1.1 200 OK\r\n\r\n"+
		`{"status":"going"}{"errorDetail":{"code":503,"message":"peer gone"},"error":"peer gone"}`)
	s, err := e.PullImage(t.Context(), api.PullOptions{Ref: "x"})
	require.NoError(t, err)
	p, err := s.Recv()
	require.NoError(t, err)
	assert.Equal(t, "going", p.Status)
	_, err = s.Recv()
	assert.True(t, errdefs.IsUnavailable(err), "%v", err)
	assert.EqualError(t, err, "peer gone")
}
