package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// bigLayer is a tar of about 200 MB in 4,000 files whose contents compress by half.
func bigLayer(b *testing.B) []byte {
	b.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	var entries []entry
	for d := range 40 {
		entries = append(entries, dir(fmt.Sprintf("usr/d%d/", d)))
		for f := range 100 {
			body := make([]byte, 10_000+rnd.IntN(80_000))
			for i := range len(body) / 2 {
				body[i] = byte(rnd.Uint32())
			}
			entries = append(entries, file(fmt.Sprintf("usr/d%d/f%d", d, f), string(body)))
		}
	}
	return tarOf(b, entries...)
}

// Every load has a store of its own, and all are removed at the end: for seconds after
// files were deleted, ext4 is several times slower at making new ones.
func BenchmarkLoad(b *testing.B) {
	needsRoot(b)
	roots := b.TempDir()
	layer := bigLayer(b)
	plain := func(x []byte) []byte { return x }
	for _, c := range []struct {
		name, mediaType string
		pack            func([]byte) []byte
	}{
		{"plain", ocispec.MediaTypeImageLayer, plain},
		{"gzip", ocispec.MediaTypeImageLayerGzip, func(x []byte) []byte { return gz(b, x) }},
		{"zstd", ocispec.MediaTypeImageLayerZstd, func(x []byte) []byte { return zst(b, x) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			archive := layout(b, "app:1", c.pack, c.mediaType, nil, layer)
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				b.StopTimer()
				root, err := os.MkdirTemp(roots, "")
				require.NoError(b, err)
				s := reopen(b, root)
				b.StartTimer()
				_, err = text(s.Load(context.Background(), bytes.NewReader(archive), api.LoadOptions{Quiet: true}))
				require.NoError(b, err)
			}
		})
	}
}

func BenchmarkPrepareMountDiscard(b *testing.B) {
	s := open(b)
	var layers [][]byte
	for i := range 10 {
		layers = append(layers, tarOf(b, file(fmt.Sprint(i), "x")))
	}
	load(b, s, layered(b, "app:1", layers...))
	id := get(b, s, "app:1").ID
	ctx := context.Background()
	n := 0
	for b.Loop() {
		n++
		c := fmt.Sprintf("c%d", n)
		require.NoError(b, s.Prepare(ctx, c, id))
		_, err := s.Mount(ctx, c)
		require.NoError(b, err)
		require.NoError(b, s.Discard(ctx, c))
	}
}

// BenchmarkRead reads all files of a layer through a container, from memory and from
// the disk.
func BenchmarkRead(b *testing.B) {
	needsRoot(b)
	ctx := context.Background()
	layer := bigLayer(b)
	packed := layout(b, "app:1", func(x []byte) []byte { return gz(b, x) }, ocispec.MediaTypeImageLayerGzip, nil, layer)
	for _, c := range []struct {
		name    string
		archive []byte
		edit    []func(*image.Config)
	}{
		{"tar", layered(b, "app:1", layer), nil},
		{"image", packed, nil},
		{"directory", packed, []func(*image.Config){directories}},
	} {
		root := b.TempDir()
		s := reopen(b, root, c.edit...)
		load(b, s, c.archive)
		require.NoError(b, s.Prepare(ctx, "c", get(b, s, "app:1").ID))
		for _, cold := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/cold=%t", c.name, cold), func(b *testing.B) {
				b.SetBytes(int64(len(layer)))
				for b.Loop() {
					b.StopTimer()
					if cold {
						forgetPages(b, root)
					}
					r, err := s.Mount(ctx, "c")
					require.NoError(b, err)
					b.StartTimer()
					readAll(b, r.Path)
					b.StopTimer()
					if cold { // what is mounted keeps pages
						require.NoError(b, s.Unmount(ctx, "c"))
						require.NoError(b, s.Close())
						s = reopen(b, root, c.edit...)
					}
					b.StartTimer()
				}
			})
		}
		require.NoError(b, s.Discard(ctx, "c"))
	}
}

// forgetPages has the page cache drop what a store has on disk.
func forgetPages(b *testing.B, root string) {
	unix.Sync()
	for _, dir := range []string{"blobs", "layers"} {
		for _, name := range onDisk(b, root, dir) {
			f, err := os.Open(filepath.Join(root, name))
			require.NoError(b, err)
			require.NoError(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
			require.NoError(b, f.Close())
		}
	}
}

func readAll(b *testing.B, root string) {
	buf := make([]byte, 128<<10)
	require.NoError(b, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		for err == nil {
			_, err = f.Read(buf)
		}
		if err == io.EOF {
			err = nil
		}
		return err
	}))
}
