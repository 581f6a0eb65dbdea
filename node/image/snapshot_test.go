package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// files lists a root file system but for the mount points every container gets.
func files(t require.TestingT, root string) []string {
	var names []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		switch strings.Split(rel, "/")[0] {
		case "dev", "proc", "sys", ".dockerenv":
			return nil
		}
		switch rel {
		case "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "etc":
			return nil
		}
		if d.IsDir() {
			rel += "/"
		}
		names = append(names, rel)
		return nil
	})
	require.NoError(t, err)
	return names
}

// drivers runs a test with overlay mounts and with copies.
func drivers(t *testing.T, f func(t *testing.T, s *image.Store)) {
	t.Run("overlay", func(t *testing.T) { f(t, open(t)) })
	t.Run("copies", func(t *testing.T) {
		var log bytes.Buffer
		s := open(t, func(c *image.Config) {
			c.Copy = true
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		require.Contains(t, log.String(), "every container gets a copy of its image")
		f(t, s)
	})
}

func TestWhiteouts(t *testing.T) {
	drivers(t, func(t *testing.T, s *image.Store) {
		lower := tarOf(t,
			file("gone", "1"), dir("dir/"), file("dir/gone", "1"), file("dir/kept", "1"),
			dir("opaque/"), file("opaque/old", "1"), dir("opaque/sub/"), file("opaque/sub/old", "1"),
			dir("swapped/"), file("swapped/old", "1"), dir("early/"), file("early/old", "1"), dir("file/"), file("file/old", "1"),
			dir("implicit/"), file("implicit/old", "1"),
		)
		upper := tarOf(t,
			file(".wh.gone", ""), file("dir/.wh.gone", ""), file("dir/.wh.never", ""),
			dir("opaque/"), file("opaque/new", "2"), file("opaque/.wh..wh..opq", ""),
			file(".wh.swapped", ""), dir("swapped/"), file("swapped/new", "2"),
			dir("early/"), file("early/new", "2"), file(".wh.early", ""),
			file(".wh.file", ""), file("file", "2"),
			file(".wh.implicit", ""), file("implicit/new", "2"),
			file(".wh..wh.plnk", ""), file(".wh..wh.aufs/x", ""),
		)
		load(t, s, layered(t, "app:1", lower, upper))
		root := mount(t, s, "c", get(t, s, "app:1").ID)
		require.Equal(t, []string{
			"dir/", "dir/kept", "early/", "early/new", "file", "implicit/", "implicit/new",
			"opaque/", "opaque/new", "swapped/", "swapped/new",
		}, files(t, root.Path))
	})
}

func TestOpaqueRootHidesAllBelow(t *testing.T) {
	drivers(t, func(t *testing.T, s *image.Store) {
		load(t, s, layered(t, "app:1", tarOf(t, file("old", "")), tarOf(t, file(".wh..wh..opq", ""), file("new", ""))))
		require.Equal(t, []string{"new"}, files(t, mount(t, s, "c", get(t, s, "app:1").ID).Path))
	})
}

// Both drivers show the same tree, and it is the one that layers mean: a model that
// knows nothing of file systems.
func TestLayersAddUp(t *testing.T) {
	root := tmpfs(t, "256m") // syncing is another test's
	overlay := reopen(t, filepath.Join(root, "overlay"))
	copies := reopen(t, filepath.Join(root, "copies"), func(c *image.Config) { c.Copy = true })
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		model := map[string]bool{} // path -> is a directory
		names := []string{"a", "b", "a/x", "a/y", "b/x", "a/x/p"}
		var layers [][]byte
		for range rapid.IntRange(1, 4).Draw(t, "layers") {
			layers = append(layers, drawLayer(t, names, model))
		}
		b := layered(t, "app:1", layers...)
		want := []string{}
		for p, isDir := range model {
			if isDir {
				p += "/"
			}
			want = append(want, p)
		}
		slices.Sort(want)
		for _, s := range []*image.Store{overlay, copies} {
			_, err := text(s.Load(context.Background(), bytes.NewReader(b), api.LoadOptions{Quiet: true}))
			require.NoError(t, err)
			img, err := s.Get(context.Background(), "app:1")
			require.NoError(t, err)
			id := fmt.Sprintf("c%d", n)
			require.NoError(t, s.Prepare(context.Background(), id, img.ID))
			root, err := s.Mount(context.Background(), id)
			require.NoError(t, err)
			got := files(t, root.Path)
			require.NoError(t, s.Discard(context.Background(), id))
			slices.Sort(got)
			require.Equal(t, want, append([]string{}, got...))
		}
	})
}

// drawLayer draws a layer and applies it to the model: whiteouts first, as they
// concern what is below only.
func drawLayer(t *rapid.T, names []string, model map[string]bool) []byte {
	removeTree := func(p string, self bool) {
		for q := range model {
			if self && q == p || strings.HasPrefix(q, p+"/") {
				delete(model, q)
			}
		}
	}
	var entries []entry
	own := map[string]bool{}
	for _, p := range names {
		d := filepath.Dir(p)
		if d != "." && !own[d] { // only below directories of this layer
			continue
		}
		switch rapid.SampledFrom([]string{"", "file", "dir", "whiteout", "opaque dir", "whiteout and dir"}).Draw(t, p) {
		case "file":
			entries = append(entries, file(p, "x"))
			removeTree(p, true)
			model[p] = false
		case "dir":
			entries = append(entries, dir(p+"/"))
			if !model[p] {
				removeTree(p, true)
			}
			model[p], own[p] = true, true
		case "whiteout":
			entries = append(entries, file(filepath.Join(d, ".wh."+filepath.Base(p)), ""))
			removeTree(p, true)
		case "opaque dir":
			entries = append(entries, dir(p+"/"), file(p+"/.wh..wh..opq", ""))
			removeTree(p, true)
			model[p], own[p] = true, true
		case "whiteout and dir":
			entries = append(entries, dir(p+"/"), file(filepath.Join(d, ".wh."+filepath.Base(p)), ""))
			removeTree(p, true)
			model[p], own[p] = true, true
		}
	}
	return tarOf(t, entries...)
}

func TestManyLayers(t *testing.T) {
	var layers [][]byte
	for i := range 200 {
		layers = append(layers, tarOf(t, file(fmt.Sprintf("f%03d", i), "x")))
	}
	s := open(t)
	load(t, s, layered(t, "app:1", layers...))
	require.Len(t, files(t, mount(t, s, "c", get(t, s, "app:1").ID).Path), 200)
}

func TestMountPointsAreThere(t *testing.T) {
	drivers(t, func(t *testing.T, s *image.Store) {
		load(t, s, layered(t, "app:1", tarOf(t, dir("etc/"), symlink("etc/resolv.conf", "../run/stub"), file("etc/hosts", "mine"), file("x", ""))))
		root := mount(t, s, "c", get(t, s, "app:1").ID).Path
		for _, d := range []string{"dev", "dev/pts", "dev/shm", "proc", "sys"} {
			require.DirExists(t, filepath.Join(root, d))
		}
		for _, f := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console"} {
			fi, err := os.Lstat(filepath.Join(root, f))
			require.NoError(t, err)
			require.True(t, fi.Mode().IsRegular(), f)
		}
		b, err := os.ReadFile(filepath.Join(root, "etc/hosts"))
		require.NoError(t, err)
		require.Equal(t, "mine", string(b))
		n, err := s.Usage(context.Background(), "c")
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

func TestImageWithoutLayers(t *testing.T) {
	drivers(t, func(t *testing.T, s *image.Store) {
		load(t, s, layered(t, "scratch:1"))
		require.Empty(t, files(t, mount(t, s, "c", get(t, s, "scratch:1").ID).Path))
	})
}

func TestMountsOutliveTheStore(t *testing.T) {
	needsRoot(t)
	ctx := context.Background()
	dir := t.TempDir()
	s := reopen(t, dir)
	load(t, s, archiveOf(t, small("app:1", "x")))
	root := mount(t, s, "c", get(t, s, "app:1").ID)
	require.NoError(t, os.WriteFile(filepath.Join(root.Path, "mine"), []byte("1"), 0o600))
	require.NoError(t, s.Close())

	again := reopen(t, dir)
	got, err := again.Mount(ctx, "c")
	require.NoError(t, err)
	require.Equal(t, root, got)
	require.FileExists(t, filepath.Join(root.Path, "mine"))
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(mounts), root.Path+" "), "mounted once")
	_, err = again.Remove(ctx, "app:1", api.ImageRemoveOptions{Force: true}, nil)
	require.NoError(t, err)
	require.NoError(t, again.Unmount(ctx, "c"))
	got, err = again.Mount(ctx, "c")
	require.NoError(t, err, "a container needs no image record")
	require.FileExists(t, filepath.Join(got.Path, "mine"))
	require.FileExists(t, filepath.Join(got.Path, "a"))
	require.NoError(t, again.Discard(ctx, "c"))
}

func TestContainersOfNothing(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	err := s.Prepare(ctx, "c", digest.FromString("none"))
	require.True(t, errdefs.IsNotFound(err))
	_, err = s.Mount(ctx, "c")
	require.True(t, errdefs.IsNotFound(err))
	for _, id := range []string{"", "../x", "a/b", ".", ".."} {
		require.True(t, errdefs.IsInvalidArgument(s.Prepare(ctx, id, digest.FromString("none"))), id)
		require.True(t, errdefs.IsInvalidArgument(s.Discard(ctx, id)), id)
	}
	load(t, s, archiveOf(t, small("a:1", "x"), small("b:1", "y")))
	require.NoError(t, s.Prepare(ctx, "c", get(t, s, "a:1").ID))
	require.True(t, errdefs.IsConflict(s.Prepare(ctx, "c", get(t, s, "b:1").ID)))
}

func TestUsage(t *testing.T) {
	drivers(t, func(t *testing.T, s *image.Store) {
		ctx := context.Background()
		load(t, s, layered(t, "app:1", tarOf(t, file("old", "12345"))))
		root := mount(t, s, "c", get(t, s, "app:1").ID).Path
		require.NoError(t, os.WriteFile(filepath.Join(root, "new"), make([]byte, 1000), 0o600))
		require.NoError(t, os.Link(filepath.Join(root, "new"), filepath.Join(root, "same")))
		n, err := s.Usage(ctx, "c")
		require.NoError(t, err)
		require.EqualValues(t, 1000, n)
	})
}
