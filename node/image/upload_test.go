package image_test

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

func openAt(t *testing.T, root string) *image.Store {
	t.Helper()
	s, err := image.Open(image.Config{Root: root, Keep: time.Nanosecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func upload(t *testing.T, s *image.Store, body string) digest.Digest {
	t.Helper()
	u, err := s.Begin()
	require.NoError(t, err)
	for _, b := range []byte(body) {
		_, err := u.Write([]byte{b})
		require.NoError(t, err)
	}
	require.Equal(t, int64(len(body)), u.Size())
	d := digest.FromString(body)
	require.NoError(t, u.Commit(t.Context(), d))
	require.NoError(t, u.Abort(), "after the end there is nothing to drop")
	return d
}

func TestUploads(t *testing.T) {
	root := t.TempDir()
	s := openAt(t, root)
	d := upload(t, s, "body")
	require.Equal(t, d, upload(t, s, "body"), "again is no error")
	got, err := s.Stat(t.Context(), d)
	require.NoError(t, err)
	require.Equal(t, int64(4), got.Size)

	u, err := s.Begin()
	require.NoError(t, err)
	_, err = u.Write([]byte("other"))
	require.NoError(t, err)
	require.True(t, errdefs.IsDataLoss(u.Commit(t.Context(), digest.FromString("wrong"))))
	require.Empty(t, onDisk(t, root, "ingest"))
	require.NoError(t, s.Free(t.Context(), d))
	_, err = s.Stat(t.Context(), d)
	require.True(t, errdefs.IsNotFound(err))
}

// TestKept keeps blobs under a name over a sweep and a restart.
func TestKept(t *testing.T) {
	root := t.TempDir()
	s := openAt(t, root)
	a, b, loose, held := upload(t, s, "a"), upload(t, s, "b"), upload(t, s, "loose"), upload(t, s, "held")
	k := image.Kept{Name: "localhost:5000/x:1", Target: a, Blobs: []digest.Digest{b}}
	require.True(t, errdefs.IsNotFound(s.Keep(t.Context(), image.Kept{Name: "n", Target: digest.FromString("no")})))
	require.NoError(t, s.Keep(t.Context(), k))
	release := s.Hold(held)
	sweep(t, s)
	has := func(d digest.Digest) bool {
		_, err := s.Stat(t.Context(), d)
		return err == nil
	}
	require.True(t, has(a) && has(b) && has(held))
	require.False(t, has(loose))
	release()
	require.True(t, errdefs.IsConflict(s.Free(t.Context(), b)))

	require.NoError(t, s.Close())
	s = openAt(t, root)
	require.Equal(t, []image.Kept{k}, s.Kept())
	sweep(t, s)
	require.True(t, has(a) && has(b))
	require.False(t, has(held))
	require.NoError(t, s.Unkeep(t.Context(), k.Name, digest.FromString("another")))
	require.True(t, has(a))
	require.NoError(t, s.Unkeep(t.Context(), k.Name, a))
	require.False(t, has(a) || has(b))
	require.Empty(t, s.Kept())
}

// TestImageDecidesOverWhatIsKept lets go of a kept index when its name means an image
// that is another, or nothing.
func TestImageDecidesOverWhatIsKept(t *testing.T) {
	s := openAt(t, t.TempDir())
	d := upload(t, s, "kept")
	load(t, s, archiveOf(t, small("one:1", "1")))
	keep := func() {
		require.NoError(t, s.Keep(t.Context(), image.Kept{Name: "docker.io/library/two:1", Target: d}))
	}
	keep()
	require.NoError(t, s.Tag(t.Context(), "one:1", "two:1"))
	require.Empty(t, s.Kept())
	keep()
	_, err := s.Remove(t.Context(), "two:1", api.ImageRemoveOptions{}, nil)
	require.NoError(t, err)
	require.Empty(t, s.Kept())
	require.Contains(t, s.Names(), "docker.io/library/one:1")
}

// sweep runs the store until its first sweep is over.
func sweep(t *testing.T, s *image.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Run(ctx))
}
