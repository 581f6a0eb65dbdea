package apitest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/imagetar"
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

// TestFakeRegistry pushes over the wire to a registry in memory.
func TestFakeRegistry(t *testing.T) {
	f := newFake(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.NewServer(server.Config{Engine: f}).Run(ctx, l) }()
	c := client.New(client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer func() {
		require.NoError(t, c.Close())
		cancel()
		require.NoError(t, <-done)
	}()
	archive := apitest.Archive(t, "team/app:1", ocispec.ImageConfig{}, []imagetar.File{{Name: "a"}})
	for _, err := range api.All(must(c.LoadImages(ctx, bytes.NewReader(archive), api.LoadOptions{}))) {
		require.NoError(t, err)
	}
	require.NoError(t, c.TagImage(ctx, "team/app:1", "team/app:2"))
	before, err := c.InspectImage(ctx, "team/app:1", api.ImageInspectOptions{})
	require.NoError(t, err)
	var results []api.PushResult
	for p, err := range api.All(must(c.PushImage(ctx, api.PushOptions{Ref: "team/app"}))) {
		require.NoError(t, err)
		var r api.PushResult
		if p.Aux != nil {
			require.NoError(t, json.Unmarshal(*p.Aux, &r))
			results = append(results, r)
		}
	}
	require.Len(t, results, 2)
	require.Equal(t, before.ID, results[0].Digest)
	_, err = c.PushImage(ctx, api.PushOptions{Ref: "team/app@" + before.ID})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = c.RemoveImage(ctx, before.ID, api.ImageRemoveOptions{Force: true})
	require.NoError(t, err)
	for _, err := range api.All(must(c.PullImage(ctx, api.PullOptions{Ref: "team/app:2"}))) {
		require.NoError(t, err)
	}
	after, err := c.InspectImage(ctx, "team/app:2", api.ImageInspectOptions{})
	require.NoError(t, err)
	require.Equal(t, before.ID, after.ID)
	d, err := c.InspectDistribution(ctx, "team/app:1", registry.AuthConfig{})
	require.NoError(t, err)
	require.Equal(t, before.ID, d.Descriptor.Digest.String())
	_, err = c.Login(ctx, registry.AuthConfig{Username: "me"})
	require.True(t, errdefs.IsUnauthorized(err), "%v", err)
	answer, err := c.Login(ctx, registry.AuthConfig{Username: "me", Password: "x"})
	require.NoError(t, err)
	require.Equal(t, "Login Succeeded", answer.Status)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
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
