package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

// lingering answers a load before it has read the archive, and reads on.
type lingering struct {
	api.Engine
	read chan error
}

func (l lingering) LoadImages(ctx context.Context, archive io.Reader, _ api.LoadOptions) (api.Stream[api.Progress], error) {
	s, send, finish := api.Pipe[api.Progress](ctx)
	go func() {
		finish(send(api.Progress{Stream: "loaded"}))
		_, err := io.Copy(io.Discard, archive)
		l.read <- err
	}()
	return s, nil
}

// TestUploadOutlivesAnswer sends a body that never ends to an engine that answers
// early: the connection must end in order, and the next one work.
func TestUploadOutlivesAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	engine := lingering{read: make(chan error, 1)}
	go func() { done <- NewServer(Config{Engine: engine}).Run(ctx, l) }()
	for range 3 {
		body, more := io.Pipe()
		go func() { _, _ = more.Write([]byte(strings.Repeat("x", 1<<16))) }() // fails when the request is over
		res, err := http.Post("http://"+l.Addr().String()+"/images/load", "application/x-tar", body)
		require.NoError(t, err)
		raw, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Contains(t, string(raw), "loaded")
		res.Body.Close()
		require.Error(t, <-engine.read, "a read after the answer fails")
		body.Close()
	}
	stop()
	require.NoError(t, <-done)
}
