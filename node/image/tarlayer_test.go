package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// openTars opens a store whose layers are tars where they come as such; the kernel
// must mount those.
func openTars(t testing.TB, root string, edit ...func(*image.Config)) *image.Store {
	t.Helper()
	var log bytes.Buffer
	s := openImages(t, root, append(edit, logged(&log))...)
	if strings.Contains(log.String(), "EROFS image can't refer to a tar") {
		t.Skip(log.String())
	}
	return s
}

// imageSizes are the sizes of the layers' image files.
func imageSizes(t testing.TB, root string) (sizes []int64) {
	t.Helper()
	for _, path := range fileNamed(t, root, "image") {
		fi, err := os.Stat(path)
		require.NoError(t, err)
		sizes = append(sizes, fi.Size())
	}
	return sizes
}

func contents(t testing.TB, root image.Root, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root.Path, name))
	require.NoError(t, err)
	return b
}

const tarBody = 3<<20 + 100

// tarImage has a file of noise, and one that was put into the tar as a sparse one is.
func tarLayer(t testing.TB) []byte {
	return tarOf(t, file("big", string(noise(1, tarBody))), dir("d/"), file("d/tiny", "x"), file("empty", ""))
}

// Contents are on the disk once, and are there after restarts.
func TestPlainLayersAreWrittenOnce(t *testing.T) {
	root := t.TempDir()
	s := openTars(t, root)
	load(t, s, layered(t, "app:1", tarLayer(t)))
	require.Len(t, imageSizes(t, root), 1)
	require.Less(t, imageSizes(t, root)[0], int64(16<<10))
	id := get(t, s, "app:1").ID
	look := func(s *image.Store, c string) {
		r := mount(t, s, c, id)
		require.True(t, bytes.Equal(noise(1, tarBody), contents(t, r, "big")))
		require.Equal(t, "x", string(contents(t, r, "d/tiny")))
		require.Empty(t, contents(t, r, "empty"))
		require.NoError(t, os.WriteFile(filepath.Join(r.Path, "big"), []byte("changed"), 0o600), "files are copied up")
		require.Equal(t, "changed", string(contents(t, r, "big")))
	}
	look(s, "c1")
	look(openTars(t, root), "c2") // the agent was killed
	require.NoError(t, s.Close())
	look(openTars(t, root), "c3")
}

func TestPlainLayersFromPeersAreWrittenOnce(t *testing.T) {
	src := open(t)
	load(t, src, layered(t, "app:1", tarLayer(t), tarOf(t, file("more", "y"))))
	img := get(t, src, "app:1")
	root := t.TempDir()
	s := openTars(t, root, fetching(&from{src: src}))
	_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	for _, n := range imageSizes(t, root) {
		require.Less(t, n, int64(16<<10))
	}
	r := mount(t, s, "c", img.ID)
	require.True(t, bytes.Equal(noise(1, tarBody), contents(t, r, "big")))
	require.Equal(t, "y", string(contents(t, r, "more")))
}

// What a tar has behind a file's contents is not for those who map the file.
func TestGarbageBehindContentsDoesNotShow(t *testing.T) {
	b := tarLayer(t)
	at := bytes.LastIndex(b, noise(1, tarBody)[tarBody-64:]) + 64
	b[at+3] = 'g'
	for name, get := range map[string]func(t *testing.T, root string) (*image.Store, digest.Digest){
		"load": func(t *testing.T, root string) (*image.Store, digest.Digest) {
			s := openTars(t, root)
			load(t, s, layered(t, "app:1", b))
			return s, get(t, s, "app:1").ID
		},
		"pull": func(t *testing.T, root string) (*image.Store, digest.Digest) {
			src := open(t)
			load(t, src, layered(t, "app:1", b))
			img := get(t, src, "app:1")
			s := openTars(t, root, fetching(&from{src: src}))
			_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
			require.NoError(t, err)
			return s, img.ID
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s, id := get(t, root)
			require.Greater(t, imageSizes(t, root)[0], int64(tarBody), "it is copied")
			r := mount(t, s, "c", id)
			require.True(t, bytes.Equal(noise(1, tarBody), contents(t, r, "big")))
			f, err := os.Open(filepath.Join(r.Path, "big"))
			require.NoError(t, err)
			defer f.Close()
			pages := (tarBody + 4095) &^ 4095
			m, err := unix.Mmap(int(f.Fd()), 0, pages, unix.PROT_READ, unix.MAP_SHARED)
			require.NoError(t, err)
			defer func() { require.NoError(t, unix.Munmap(m)) }()
			require.Equal(t, make([]byte, pages-tarBody), m[tarBody:])
			require.Empty(t, onDisk(t, root, "staging"))
		})
	}
}

// sparseTar has a file of 20 bytes, of which the first three and the last are in the
// tar, as GNU's tar writes it in the format 1.0.
func sparseTar(t testing.TB) []byte {
	t.Helper()
	body := fmt.Sprintf("%-512s", "2\n0\n3\n19\n1\n")
	body = strings.ReplaceAll(body, " ", "\x00") + "abcz"
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: int64(len(body)), Mode: 0o644, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"GNX.sparse.major": "1", "GNX.sparse.minor": "0", "GNX.sparse.name": "holes", "GNX.sparse.realsize": "20"}}))
	_, err := tw.Write([]byte(body))
	require.NoError(t, err)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "after", Size: 5, Mode: 0o644}))
	_, err = tw.Write([]byte("after"))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	// Go's writer refuses to write the records that its reader knows.
	return bytes.ReplaceAll(b.Bytes(), []byte(" GNX.sparse."), []byte(" GNU.sparse."))
}

// A tar stays as long as a layer needs it whose image came with another blob.
func TestATarStaysForTheLayerThatStandsOnIt(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	s := openTars(t, root, func(c *image.Config) { c.Keep = time.Nanosecond })
	layer := tarLayer(t)
	tarPath := filepath.Join(root, "blobs/sha256", digest.FromBytes(layer).Encoded())
	load(t, s, layout(t, "plain:1", func(b []byte) []byte { return b }, ocispec.MediaTypeImageLayer, func(m map[string][]byte) { m["x"] = nil }, layer))
	load(t, s, layout(t, "packed:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil, layer))
	packed := get(t, s, "packed:1")
	_, err := s.Remove(ctx, "plain:1", api.ImageRemoveOptions{Force: true}, nil)
	require.NoError(t, err)
	sweep(t, s)
	require.FileExists(t, tarPath)
	again := openTars(t, root, func(c *image.Config) { c.Keep = time.Nanosecond })
	sweep(t, again)
	require.FileExists(t, tarPath)
	require.NoError(t, again.Prepare(ctx, "c", packed.ID))
	_, err = again.Remove(ctx, packed.ID.String(), api.ImageRemoveOptions{Force: true}, nil)
	require.NoError(t, err)
	r, err := again.Mount(ctx, "c")
	require.NoError(t, err, "a container keeps it, too")
	require.True(t, bytes.Equal(noise(1, tarBody), contents(t, r, "big")))
	require.NoError(t, again.Discard(ctx, "c"))
	require.Empty(t, onDisk(t, root, "blobs"))
	require.Empty(t, fileNamed(t, root, "image"))
}

// A tar that is damaged is damage to its layer: containers that start later see what
// was fetched again, and none starts before.
func TestVerifyMendsATarUnderItsLayer(t *testing.T) {
	ctx := t.Context()
	src := open(t)
	load(t, src, layered(t, "app:1", tarLayer(t)))
	img := get(t, src, "app:1")
	f := &from{src: src}
	root := t.TempDir()
	s := openTars(t, root, fetching(f))
	_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	running := mount(t, s, "c1", img.ID)
	d := img.Layers[0].Digest
	flip(t, blobFile(root, d))
	f.src = open(t) // nobody has it
	all, _ := verified(t, s)
	require.Equal(t, image.CheckLost, all[image.CheckBlob+d.String()].State)
	require.Contains(t, all[image.CheckBlob+d.String()].Why, "1 running containers see what is damaged")
	require.Error(t, s.Prepare(ctx, "c2", img.ID), "what is damaged is not shown to anybody else")
	require.Len(t, contents(t, running, "big"), tarBody, "and who runs, runs")

	f.src = src
	all, _ = verified(t, s)
	require.Equal(t, image.CheckRepaired, all[image.CheckBlob+d.String()].State)
	r := mount(t, s, "c3", img.ID)
	require.True(t, bytes.Equal(noise(1, tarBody), contents(t, r, "big")))
	require.NoError(t, s.Unmount(ctx, "c1"))
	again, err := s.Mount(ctx, "c1")
	require.NoError(t, err)
	require.True(t, bytes.Equal(noise(1, tarBody), contents(t, again, "big")))
}

// A layer whose tar went is none: at the next start it is dropped, and made again once
// the blob is back.
func TestALayerWithoutItsTarIsDropped(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	s := openTars(t, root)
	layer := tarLayer(t)
	load(t, s, layered(t, "app:1", layer))
	id := get(t, s, "app:1").ID
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(blobFile(root, digest.FromBytes(layer))))
	s = openTars(t, root)
	require.Empty(t, fileNamed(t, root, "image"))
	require.ErrorContains(t, s.Prepare(ctx, "c", id), "is not here")
	load(t, s, layered(t, "app:1", layer))
	require.True(t, bytes.Equal(noise(1, tarBody), contents(t, mount(t, s, "c", id), "big")))
}

// A tar that shrank under its layer is found before anybody reads from it.
func TestATarThatIsTooShort(t *testing.T) {
	root := t.TempDir()
	s := openTars(t, root)
	layer := tarLayer(t)
	load(t, s, layered(t, "app:1", layer))
	id := get(t, s, "app:1").ID
	require.NoError(t, s.Close())
	require.NoError(t, os.Truncate(blobFile(root, digest.FromBytes(layer)), 1<<20))
	s = openTars(t, root)
	require.Error(t, s.Prepare(t.Context(), "c", id))
	_, err := os.Stat(blobFile(root, digest.FromBytes(layer)))
	require.NotErrorIs(t, err, fs.ErrNotExist)
}

func TestSparseFilesOfATar(t *testing.T) {
	root := t.TempDir()
	s := openTars(t, root)
	load(t, s, layered(t, "app:1", sparseTar(t)))
	r := mount(t, s, "c", get(t, s, "app:1").ID)
	require.Equal(t, "abc"+strings.Repeat("\x00", 16)+"z", string(contents(t, r, "holes")))
	require.Equal(t, "after", string(contents(t, r, "after")))
}
