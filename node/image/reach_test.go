package image_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

func TestWhatAnImageIsMadeOf(t *testing.T) {
	s, img := twoLayers(t)
	blobs := []digest.Digest{img.Target.Digest, img.ID, img.Layers[0].Digest, img.Layers[1].Digest}
	parts, whole := s.Parts(img.Target.Digest)
	require.True(t, whole)
	require.Equal(t, blobs, parts)
	parts, whole = s.Parts(img.ID)
	require.True(t, whole)
	require.Equal(t, []digest.Digest{img.ID}, parts, "it leads to nothing")
	parts, whole = s.Parts(digest.FromString("not here"))
	require.False(t, whole)
	require.Empty(t, parts)
	_, whole = s.Parts("nonsense")
	require.False(t, whole)

	require.False(t, s.Needed(img.ID))
	release := s.Hold(img.ID)
	require.True(t, s.Needed(img.ID))
	release()
	require.False(t, s.Needed(img.ID))

	index := ocispec.Index{Manifests: []ocispec.Descriptor{img.Manifest, img.Manifest, {Digest: digest.FromString("other"), Size: 1}}}
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	require.NoError(t, err)
	put(t, s, b)
	parts, whole = s.Parts(digest.FromBytes(b))
	require.False(t, whole, "one platform's manifest is elsewhere")
	require.Equal(t, append(append([]digest.Digest{digest.FromBytes(b)}, blobs...), digest.FromString("other")), parts)

	require.NoError(t, s.Keep(t.Context(), image.Kept{Name: "docker.io/library/chart:1", Target: digest.FromBytes(b), Blobs: blobs}))
	found := map[digest.Digest][]digest.Digest{}
	s.EachImage(func(target, id digest.Digest, list []digest.Digest) bool {
		found[target] = list
		if target == img.Target.Digest {
			require.Equal(t, img.ID, id)
		}
		return true
	})
	require.Len(t, found, 2)
	require.Subset(t, found[img.Target.Digest], blobs)
	require.Subset(t, found[digest.FromBytes(b)], append(blobs, digest.FromBytes(b)))
}

// TestForbiddenImage: what this host may not hold it asks nobody for.
func TestForbiddenImage(t *testing.T) {
	src, img := twoLayers(t)
	f := &from{src: src}
	s := open(t, fetching(f), func(c *image.Config) {
		c.Allow = func(_ context.Context, d digest.Digest) error {
			if d == img.Target.Digest {
				return api.Errorf(errdefs.ErrPermissionDenied, "image app:1 is private to others")
			}
			return nil
		}
	})
	_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.ErrorContains(t, err, "image app:1 is private to others")
	for _, whole := range []digest.Digest{img.Target.Digest, ""} {
		require.ErrorIs(t, s.Fetch(t.Context(), img.Target, whole), errdefs.ErrPermissionDenied)
		_, err := s.Relay(t.Context(), img.Target, whole)
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	}
	require.Zero(t, f.calls.Load())
}
