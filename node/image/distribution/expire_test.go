package distribution

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/node/image"
)

// TestAbandoned drops uploads and holds that nobody touches, and no others.
func TestAbandoned(t *testing.T) {
	store, err := image.Open(image.Config{Root: t.TempDir()})
	require.NoError(t, err)
	defer store.Close()
	s := New(Config{Blobs: Over(store), Domain: "localhost:5000"})
	d := digest.FromString("held")
	s.hold(d)
	u, err := s.begin("app")
	require.NoError(t, err)
	now := time.Now()
	s.expire(now.Add(idle - time.Minute))
	require.Len(t, s.uploads, 1)
	require.Len(t, s.held, 1)
	require.Error(t, store.Free(t.Context(), d), "a held blob was removed")

	s.hold(d) // touched again
	s.held[d].touched = now.Add(time.Hour)
	s.expire(now.Add(idle + time.Minute))
	require.Empty(t, s.uploads)
	require.Len(t, s.held, 1)
	require.Error(t, u.take(t.Context()), "an upload outlived its end")
	s.expire(now.Add(2*holdFor + time.Minute))
	require.Empty(t, s.held)
	require.NoError(t, store.Free(t.Context(), d))
}
