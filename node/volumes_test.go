package node

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
)

// TestVolumesInUseStay makes containers with volumes while others remove and prune all
// volumes they can: what a container has, it keeps.
func TestVolumesInUseStay(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	var g errgroup.Group
	var makers atomic.Int32
	makers.Store(3)
	for m := range 3 {
		g.Go(func() error {
			defer makers.Add(-1)
			for i := range 40 {
				if err := useVolumes(t, a.Node, fmt.Sprintf("c%d-%d", m, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 2 {
		g.Go(func() error {
			for makers.Load() > 0 {
				if _, err := a.PruneVolumes(t.Context(), api.Filters{"all": {"true"}}); err != nil {
					return err
				}
				err := a.RemoveVolume(t.Context(), "shared", false)
				if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	_, err := a.PruneVolumes(t.Context(), api.Filters{"all": {"true"}})
	require.NoError(t, err)
	left, err := os.ReadDir(a.volumes.root)
	require.NoError(t, err)
	require.Empty(t, left)
}

// useVolumes makes a container with a named and a nameless volume, looks whether they
// are there, and removes it.
func useVolumes(t *testing.T, n *Node, name string) error {
	made, err := n.CreateContainer(t.Context(), api.CreateOptions{Name: name, Config: &container.Config{
		Image: "busybox", Volumes: map[string]struct{}{"/own": {}},
	}, HostConfig: &container.HostConfig{Binds: []string{"shared:/data"}}})
	if err != nil {
		return err
	}
	i, err := n.InspectContainer(t.Context(), made.ID, api.InspectOptions{})
	if err != nil {
		return err
	}
	for _, m := range i.Mounts {
		if _, err := os.Stat(m.Source); m.Type == mount.TypeVolume && err != nil {
			return fmt.Errorf("volume %s of container %s: %w", m.Name, name, err)
		}
	}
	if err := n.RemoveContainer(t.Context(), made.ID, api.RemoveOptions{Volumes: true}); err != nil {
		return err
	}
	for _, m := range i.Mounts {
		if m.Name != "shared" {
			if _, err := n.InspectVolume(t.Context(), m.Name); !errdefs.IsNotFound(err) {
				return fmt.Errorf("volume %s is still there: %w", m.Name, err)
			}
		}
	}
	return nil
}

// TestFailedCreateLeavesNoVolume fails after the volumes were made.
func TestFailedCreateLeavesNoVolume(t *testing.T) {
	w := newWorld(t)
	a := w.boot(t, w.handle(0))
	_, err := a.CreateContainer(t.Context(), api.CreateOptions{Config: &container.Config{
		Image: "busybox", Volumes: map[string]struct{}{"/own": {}},
	}, HostConfig: &container.HostConfig{Binds: []string{"/proc/nowhere/x:/z"}}})
	require.Error(t, err)
	all, err := a.ListVolumes(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, all.Volumes)
}
