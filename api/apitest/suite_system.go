package apitest

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func systemTests() map[string]func(*suite) {
	return map[string]func(*suite){"WhoAreYou": testSystem, "Networks": testNetworks}
}

// cleanup is a context for what has to be done after a test.
func cleanup(s *suite) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), limit)
	s.Cleanup(cancel)
	return ctx
}

func testSystem(s *suite) {
	p, err := s.Engine.Ping(s.ctx)
	require.NoError(s, err)
	assert.Equal(s, "linux", p.OSType)
	assert.NotEmpty(s, p.APIVersion)
	v, err := s.Engine.Version(s.ctx)
	require.NoError(s, err)
	assert.NotEmpty(s, v.Version)
	assert.NotEmpty(s, v.APIVersion)
	s.running()
	i, err := s.Engine.Info(s.ctx)
	require.NoError(s, err)
	assert.NotEmpty(s, i.Name)
	assert.Equal(s, "linux", i.OSType)
	assert.GreaterOrEqual(s, i.Containers, 1)
	assert.GreaterOrEqual(s, i.ContainersRunning, 1)
	assert.GreaterOrEqual(s, i.Images, 1)
	assert.Equal(s, i.Containers, i.ContainersRunning+i.ContainersPaused+i.ContainersStopped)
}

func testNetworks(s *suite) {
	all, err := s.Engine.ListNetworks(s.ctx, nil)
	require.NoError(s, err)
	names := map[string]bool{}
	for _, n := range all {
		names[n.Name] = true
		for _, ref := range []string{n.Name, n.ID, n.ID[:12]} {
			got, err := s.Engine.InspectNetwork(s.ctx, ref, api.NetworkInspectOptions{})
			require.NoError(s, err)
			assert.Equal(s, n.ID, got.ID)
		}
	}
	assert.Contains(s, names, "host")
	assert.Contains(s, names, "none")
	found, err := s.Engine.ListNetworks(s.ctx, api.Filters{"driver": {"host"}})
	require.NoError(s, err)
	require.Len(s, found, 1)
	assert.Equal(s, "host", found[0].Name)
	_, err = s.Engine.InspectNetwork(s.ctx, "no-such-"+s.label, api.NetworkInspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
	assert.ErrorContains(s, err, "network no-such-"+s.label+" not found")
}
