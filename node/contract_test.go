package node

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/server"
)

func TestContract(t *testing.T) {
	n, _ := newRealHost(t).node(t)
	apitest.Run(t, func(*testing.T) apitest.Target { return apitest.Target{Engine: n} })
}

func TestContractOverTheWire(t *testing.T) {
	h := newRealHost(t)
	n, _ := h.node(t)
	c := overWire(t, n, filepath.Join(h.dir, "api.sock"))
	apitest.Run(t, func(*testing.T) apitest.Target { return apitest.Target{Engine: c} })
}

// overWire serves an engine on a socket and reaches it there.
func overWire(t *testing.T, e api.Engine, path string) *client.Client {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s := server.NewServer(server.Config{Engine: e, Version: "0.0.0-test"})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	c := client.New(client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}})
	t.Cleanup(func() {
		require.NoError(t, c.Close())
		cancel()
		require.NoError(t, <-done)
	})
	return c
}
