package apitest_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/server"
)

func newFake(t *testing.T) *apitest.Fake {
	f := apitest.NewFake("fake", 1)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func TestFakeKeepsTheContract(t *testing.T) {
	apitest.Run(t, func(t *testing.T) apitest.Target { return apitest.Target{Engine: newFake(t)} })
}

func TestTheWireKeepsTheContract(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			apitest.Run(t, func(t *testing.T) apitest.Target {
				address := "127.0.0.1:0"
				if network == "unix" {
					address = filepath.Join(t.TempDir(), "s")
				}
				l, err := net.Listen(network, address)
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(context.Background())
				s := server.NewServer(server.Config{Engine: newFake(t)})
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx, l) }()
				c := client.New(client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
				}})
				t.Cleanup(func() {
					require.NoError(t, c.Close())
					cancel()
					require.NoError(t, <-done)
				})
				return apitest.Target{Engine: c}
			})
		})
	}
}
