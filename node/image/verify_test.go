package image_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// verified is what Verify says, by kind and digest, and which states there are.
func verified(t *testing.T, s *image.Store, refs ...string) (map[string]image.Checked, map[image.CheckState]int) {
	t.Helper()
	stream, err := s.Verify(t.Context(), refs)
	require.NoError(t, err)
	all, counts := map[string]image.Checked{}, map[image.CheckState]int{}
	for c, err := range api.All(stream) {
		require.NoError(t, err)
		require.NotContains(t, all, c.Kind+c.Digest.String(), "each thing once")
		all[c.Kind+c.Digest.String()] = c
		counts[c.State]++
	}
	return all, counts
}

func blobFile(root string, d digest.Digest) string {
	return filepath.Join(root, "blobs", "sha256", d.Encoded())
}

// flip changes one bit of a file without changing its size.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// pulled is a store that has pulled app:1 of two layers from another one, which it
// can ask again.
func pulled(t *testing.T, edit ...func(*image.Config)) (s *image.Store, root string, img image.Image, f *from) {
	t.Helper()
	src, img := twoLayers(t)
	f = &from{src: src}
	root = t.TempDir()
	s = open(t, append(edit, fetching(f), func(c *image.Config) { c.Root = root })...)
	_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	return s, root, img, f
}

func blobsOf(img image.Image) []digest.Digest {
	ds := []digest.Digest{img.Target.Digest, img.ID}
	for _, l := range img.Layers {
		ds = append(ds, l.Digest)
	}
	return ds
}

func TestVerifyIntact(t *testing.T) {
	s, root, img, f := pulled(t)
	calls := f.calls.Load()
	all, counts := verified(t, s)
	require.Equal(t, map[image.CheckState]int{image.CheckOK: len(blobsOf(img)) + 2}, counts, "blobs and two layers")
	for _, d := range blobsOf(img) {
		require.Equal(t, []string{"app:1"}, all[image.CheckBlob+d.String()].Images)
	}
	require.Equal(t, calls, f.calls.Load(), "what is right is not fetched")
	require.NoDirExists(t, filepath.Join(root, "quarantine"))
	_, err := s.Verify(t.Context(), []string{"nope:1"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, counts = verified(t, open(t))
	require.Empty(t, counts, "an empty store")
}

func TestVerifyMends(t *testing.T) {
	for what, damage := range map[string]func(t *testing.T, path string){
		"flipped": flip,
		"missing": func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"shorter": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 3)) },
		"empty":   func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"longer": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteString("x")
			require.NoError(t, err)
			require.NoError(t, f.Close())
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, root, img, _ := pulled(t)
			bad := blobsOf(img)
			for _, d := range bad {
				damage(t, blobFile(root, d))
			}
			all, counts := verified(t, s, "app:1")
			require.Equal(t, map[image.CheckState]int{image.CheckRepaired: len(bad), image.CheckOK: 2}, counts)
			for _, d := range bad {
				require.Contains(t, all[image.CheckBlob+d.String()].Why, "fetched again")
				b, err := os.ReadFile(blobFile(root, d))
				require.NoError(t, err)
				require.Equal(t, d, digest.FromBytes(b))
				if aside := filepath.Join(root, "quarantine", d.Encoded()); what == "missing" {
					require.NoFileExists(t, aside)
				} else {
					require.FileExists(t, aside)
				}
			}
			_, counts = verified(t, s)
			require.Equal(t, map[image.CheckState]int{image.CheckOK: len(bad) + 2}, counts)
			// Nothing was lost over a restart either.
			again := open(t, func(c *image.Config) { c.Root = root })
			require.Equal(t, img.ID, get(t, again, "app:1").ID)
			mount(t, again, "c1", img.ID)
		})
	}
}

func TestVerifyWhatNobodyHas(t *testing.T) {
	s, root, img, f := pulled(t)
	box := mount(t, s, "c1", img.ID)
	flip(t, blobFile(root, img.Layers[0].Digest))
	had := f.src
	f.src = open(t) // which has nothing
	all, counts := verified(t, s)
	lost := all[image.CheckBlob+img.Layers[0].Digest.String()]
	require.Equal(t, image.CheckLost, lost.State)
	require.Contains(t, lost.Why, "its digest is sha256:")
	require.Equal(t, 1, counts[image.CheckLost])
	_, err := s.Open(t.Context(), img.Layers[0].Digest)
	require.ErrorIs(t, err, errdefs.ErrNotFound, "nobody is served what is damaged")
	// The image and its container go on: the layer was unpacked when it was whole.
	require.Equal(t, img.ID, get(t, s, "app:1").ID)
	_, err = os.Stat(filepath.Join(box.Path, "a"))
	require.NoError(t, err)
	mount(t, s, "c2", img.ID)

	f.src = had
	_, counts = verified(t, s)
	require.Zero(t, counts[image.CheckLost])
	require.Equal(t, 1, counts[image.CheckRepaired], "somebody came who has it")
}

func TestVerifyWithALiar(t *testing.T) {
	s, root, img, f := pulled(t)
	d := img.Layers[1].Digest
	flip(t, blobFile(root, d))
	f.spoil = true
	all, _ := verified(t, s)
	require.Equal(t, image.CheckLost, all[image.CheckBlob+d.String()].State)
	require.NoFileExists(t, blobFile(root, d), "what a peer sent wrong is not taken")
}

func TestVerifyWhatNothingNeeds(t *testing.T) {
	root := t.TempDir()
	s := open(t, func(c *image.Config) { c.Root, c.Keep = root, time.Nanosecond })
	blob := []byte("left over")
	d := storetest.Put(t, s, blob).Digest
	_, counts := verified(t, s)
	require.Equal(t, map[image.CheckState]int{image.CheckOK: 1}, counts)
	flip(t, blobFile(root, d))
	_, counts = verified(t, s)
	require.Equal(t, map[image.CheckState]int{image.CheckDropped: 1}, counts)
	aside := filepath.Join(root, "quarantine", d.Encoded())
	require.FileExists(t, aside)
	_, counts = verified(t, s)
	require.Empty(t, counts)
	require.FileExists(t, aside, "the only copy there is stays")
	storetest.Put(t, s, blob)
	verified(t, s)
	require.NoFileExists(t, aside, "held anew, and old")
}

func TestVerifyLayers(t *testing.T) {
	t.Run("images", func(t *testing.T) { verifyLayers(t, false) })
	t.Run("directories", func(t *testing.T) { verifyLayers(t, true) })
}

func verifyLayers(t *testing.T, directories bool) {
	s, root, img, f := pulled(t, func(c *image.Config) { c.Directories = directories })
	layers, err := filepath.Glob(filepath.Join(root, "layers", "*", "layer"))
	require.NoError(t, err)
	require.Len(t, layers, len(img.Layers))
	flip(t, layers[0])
	require.NoError(t, os.Remove(layers[1]))
	_, counts := verified(t, s, "app:1")
	require.Equal(t, 2, counts[image.CheckRepaired])
	for _, l := range layers {
		tree := filepath.Join(filepath.Dir(l), "image")
		if _, err := os.Stat(tree); err != nil {
			tree = filepath.Join(filepath.Dir(l), "fs")
		}
		require.NoError(t, os.RemoveAll(tree))
	}
	calls := f.calls.Load()
	_, counts = verified(t, s)
	require.Equal(t, 2, counts[image.CheckRepaired])
	require.Equal(t, calls, f.calls.Load(), "the blobs are here")
	_, counts = verified(t, s)
	require.Zero(t, counts[image.CheckRepaired])
	again := open(t, func(c *image.Config) { c.Root = root })
	box := mount(t, again, "c1", img.ID)
	b, err := os.ReadFile(filepath.Join(box.Path, "b"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
}

func TestVerifyEnds(t *testing.T) {
	s, _, _, _ := pulled(t)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.Verify(ctx, nil)
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	require.ErrorIs(t, err, context.Canceled)
	stream, err = s.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, s.Close(), "nobody reads, and it ends all the same")
	require.NoError(t, stream.Close())
	_, err = s.Verify(t.Context(), nil)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}
