package client_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/api/server"
)

// overUnix is a client of a Fake that holds an image of one shell.
func overUnix(b *testing.B) *client.Client {
	f := apitest.NewFake("fake", 1)
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.NewServer(server.Config{Engine: f}).Run(ctx, l) }()
	c := client.New(client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}})
	b.Cleanup(func() {
		_ = c.Close()
		cancel()
		require.NoError(b, <-done)
		require.NoError(b, f.Close())
	})
	archive, err := imagetar.Bytes(imagetar.Image{
		Refs: []string{"box"}, Config: ocispec.ImageConfig{}, Layers: [][]imagetar.File{{{Name: "bin/sh", Mode: 0o755}}},
	})
	require.NoError(b, err)
	_, err = f.LoadImages(b.Context(), bytes.NewReader(archive), api.LoadOptions{})
	require.NoError(b, err)
	return c
}

// BenchmarkCall is what the wire adds to a call.
func BenchmarkCall(b *testing.B) {
	c := overUnix(b)
	for b.Loop() {
		if _, err := c.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRun is create, attach, wait, start and remove, as docker run --rm does it.
func BenchmarkRun(b *testing.B) {
	c := overUnix(b)
	for b.Loop() {
		made, err := c.CreateContainer(b.Context(), api.CreateOptions{
			Config:     &container.Config{Image: "box", Cmd: []string{"true"}},
			HostConfig: &container.HostConfig{AutoRemove: true},
		})
		require.NoError(b, err)
		s, err := c.AttachContainer(b.Context(), made.ID, api.AttachOptions{Stdout: true, Stream: true})
		require.NoError(b, err)
		w, err := c.WaitContainer(b.Context(), made.ID, container.WaitConditionRemoved)
		require.NoError(b, err)
		require.NoError(b, c.StartContainer(b.Context(), made.ID, api.StartOptions{}))
		_, err = w.Recv()
		require.NoError(b, err)
		_, err = io.Copy(io.Discard, s)
		require.NoError(b, err)
		_, _ = w.Close(), s.Close()
	}
}
