package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"archive/tar"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

func fuzzStore(f *testing.F) *Store {
	f.Helper()
	needsRoot(f)
	s, err := Open(Config{Root: f.TempDir(), Limits: Limits{LayerBytes: 1 << 20, ArchiveBytes: 1 << 22, LayerEntries: 1000, Members: 1000}})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, s.Close()) })
	return s
}

func FuzzLoad(f *testing.F) {
	s := fuzzStore(f)
	layer := writeTar(f, tar.Header{Name: "x"})
	f.Add(writeTar(f, tar.Header{Name: "manifest.json"}))
	f.Add(writeTar(f, tar.Header{Name: "blobs/sha256/" + digest.FromBytes(layer).Encoded()}))
	f.Add([]byte{0x1f, 0x8b, 0x08})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := s.Load(context.Background(), bytes.NewReader(b), api.LoadOptions{})
		if err == nil {
			for _, err := range api.All(st) {
				_ = err // any error will do: what counts is what stays behind
			}
		}
		for _, d := range []string{"ingest", "staging"} {
			left, err := os.ReadDir(s.path(d))
			require.NoError(t, err)
			require.Empty(t, left)
		}
	})
}

func FuzzExtract(f *testing.F) {
	needsRoot(f)
	f.Add(writeTar(f, tar.Header{Name: "a/b"}, tar.Header{Name: "a/.wh.b"}, tar.Header{Name: ".wh..wh..opq"}))
	f.Add(writeTar(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/"}, tar.Header{Name: "a/etc/x"}))
	f.Add(writeTar(f, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "../x"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		p, err := newDirPlace(filepath.Join(parent, "fs"))
		require.NoError(t, err)
		_, _, _ = unpackTo(context.Background(), bytes.NewReader(b), p, Limits{LayerBytes: 1 << 20, LayerEntries: 1000}, true, nil)
		require.NoError(t, p.Close())
		left, err := os.ReadDir(parent)
		require.NoError(t, err)
		require.Len(t, left, 1, "nothing beside the layer")
	})
}

// An archive is refused by both kinds of places or by none, and what is written of it
// is a whole image.
func FuzzExtractToImage(f *testing.F) {
	needsRoot(f)
	f.Add(writeTar(f, tar.Header{Name: "a/b"}, tar.Header{Name: "a/.wh.b"}, tar.Header{Name: ".wh..wh..opq"}))
	f.Add(writeTar(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/"}, tar.Header{Name: "a/etc/x"}))
	f.Add(writeTar(f, tar.Header{Name: "x"}, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "x"}, tar.Header{Name: "x"}))
	f.Add(writeTar(f, tar.Header{Typeflag: tar.TypeDir, Name: "d"}, tar.Header{Name: "d/x"}, tar.Header{Name: "d"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		var room room
		img, err := newImagePlace(filepath.Join(dir, "image"), room.share(false), false)
		require.NoError(t, err)
		limits := Limits{LayerBytes: 1 << 20, LayerEntries: 1000}
		out, _, err := unpackTo(context.Background(), bytes.NewReader(b), img, limits, true, nil)
		if err == nil {
			require.NoError(t, settle(img, lowers{}, out))
			require.NoError(t, img.finish())
			fi, err := os.Stat(filepath.Join(dir, "image"))
			require.NoError(t, err)
			require.Zero(t, fi.Size()%4096)
			require.NoError(t, tryMount(filepath.Join(dir, "image")))
		}
		require.NoError(t, img.Close())
		require.Zero(t, room.used)
	})
}

// A tree that refers to the tar shows what one with copies shows, and is refused when
// that is.
func FuzzTreeOfATar(f *testing.F) {
	needsRoot(f)
	f.Add(writeTar(f, tar.Header{Name: "a/b"}, tar.Header{Name: "a/.wh.b"}, tar.Header{Name: ".wh..wh..opq"}))
	f.Add(writeTar(f, tar.Header{Name: "x"}, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "x"}, tar.Header{Name: "x"}))
	f.Add(writeTar(f, tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, tar.Header{Name: "y"}))
	f.Add(writeTar(f, tar.Header{Name: "x"})[:513])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name) }
		require.NoError(t, os.WriteFile(at("tar"), b, 0o600))
		limits := Limits{LayerBytes: 1 << 20, LayerEntries: 1000}
		shown := func(name string, isTree bool) ([]string, error) {
			img, err := newImagePlace(at(name), new(room).share(false), isTree)
			require.NoError(t, err)
			defer img.Close()
			var out extracted
			if isTree {
				out, _, err = unpackTree(context.Background(), newRawTar(bytes.NewReader(b), limits.tarBytes()), img, limits, true, nil)
			} else {
				out, _, err = unpackTo(context.Background(), bytes.NewReader(b), img, limits, true, nil)
			}
			if err != nil {
				return nil, err
			}
			require.NoError(t, settle(img, lowers{}, out))
			require.NoError(t, img.finish())
			blob := ""
			if img.needsTar {
				blob = at("tar")
			}
			require.NoError(t, os.Mkdir(at(name+".fs"), 0o755))
			if err := mountImage(at(name), blob, at(name+".fs")); err != nil {
				t.Skip(err)
			}
			defer func() { require.NoError(t, unix.Unmount(at(name+".fs"), 0)) }()
			return listed(t, at(name+".fs")), nil
		}
		if head := b[:min(len(b), magicSize)]; detect(head) != plain {
			return
		}
		copied, err := shown("copied", false)
		tree, treeErr := shown("tree", true)
		if errors.Is(treeErr, errPadding) {
			require.NoError(t, err)
			return
		}
		require.Equal(t, err == nil, treeErr == nil, "%v, but %v", err, treeErr)
		require.Equal(t, copied, tree)
	})
}

// listed is a tree with its files' contents.
func listed(t *testing.T, root string) (all []string) {
	require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		fi, err := d.Info()
		require.NoError(t, err)
		line := fmt.Sprint(strings.TrimPrefix(p, root), fi.Mode(), fi.ModTime(), fi.Sys().(*syscall.Stat_t).Nlink)
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			line += fmt.Sprintf("%q", b)
		}
		all = append(all, line)
		return nil
	}))
	return all
}

// tryMount has the kernel look at an image, if it can.
func tryMount(path string) error {
	fd, err := openImage(path, "")
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func FuzzDecodeDocument(f *testing.F) {
	d := digest.FromString("x").String()
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + d + `","size":1},"layers":[{"digest":"` + d + `","size":2}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + d + `","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		doc, err := decodeDocument(b)
		if err != nil {
			return
		}
		if doc.index != nil {
			require.Nil(t, doc.manifest)
			if m, err := choose(doc.index, api.Platform{OS: "linux", Architecture: "amd64"}); err == nil {
				require.NoError(t, checkDigest(m.Digest))
			}
			return
		}
		require.NotNil(t, doc.manifest)
		for _, l := range doc.manifest.Layers {
			require.NoError(t, checkDescriptor(l))
		}
	})
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","config":{"Cmd":["x"],"Healthcheck":{"Test":["NONE"]}},"rootfs":{"diff_ids":["` + digest.FromString("x").String() + `"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfig(b)
		if err != nil {
			return
		}
		require.Len(t, chains(c.RootFS.DiffIDs), len(c.RootFS.DiffIDs))
	})
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := encodeRecord(nameRecord{Name: "x"})
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r nameRecord
		if decodeRecord(b, &r) == nil {
			again, err := encodeRecord(r)
			require.NoError(t, err)
			var same nameRecord
			require.NoError(t, decodeRecord(again, &same))
			require.Equal(t, r, same)
		}
	})
}

func FuzzFind(f *testing.F) {
	s := fuzzStore(f)
	for _, ref := range []string{"busybox", "a@sha256:" + strings.Repeat("0", 64), "abc", "localhost:5000/x:1", strings.Repeat("f", 64), ""} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		_, err := s.Get(context.Background(), ref)
		require.Error(t, err)
		require.Contains(t, []int{400, 404}, api.Status(err))
	})
}

func FuzzCleanName(f *testing.F) {
	for _, n := range []string{"a/b", "./a", "/", "../a", "a/../../b", ".wh.x", "a/.wh..wh..opq", "a\x00b", "a//b/"} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := cleanName(name)
		if err != nil {
			return
		}
		require.True(t, filepath.IsLocal(clean), clean)
		require.Equal(t, path.Clean(clean), clean)
		kind, target := whiteout(clean)
		if kind == removed || kind == opaque {
			require.True(t, filepath.IsLocal(target), target)
			require.True(t, kind == opaque || !slices.Contains([]string{".", ".."}, path.Base(target)))
		}
	})
}

func FuzzChanges(f *testing.F) {
	for _, c := range []string{`CMD ["a"]`, "ENV a=b c='d e'", "ENV a b", "EXPOSE 1-3/udp", "LABEL a=\"b", "VOLUME /x", "WORKDIR x", "USER", "ENV =", `LABEL \ =`} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var c dockerspec.DockerOCIImageConfig
		if err := applyChanges(&c, []string{line}); err != nil {
			require.Equal(t, 400, api.Status(err))
		}
		require.LessOrEqual(t, len(c.ExposedPorts), 1<<17)
		for _, e := range c.Env {
			require.Contains(t, e, "=")
		}
	})
}
