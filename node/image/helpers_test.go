package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/transfer"
)

// archiveOf is a docker-save archive of images.
func archiveOf(t testing.TB, images ...imagetar.Image) []byte {
	t.Helper()
	b, err := imagetar.Bytes(images...)
	require.NoError(t, err)
	return b
}

// small is an image with one file a layer.
func small(ref string, bodies ...string) imagetar.Image {
	i := imagetar.Image{Config: ocispec.ImageConfig{Cmd: []string{"/a"}}}
	if ref != "" {
		i.Refs = []string{ref}
	}
	for n, b := range bodies {
		i.Layers = append(i.Layers, []imagetar.File{{Name: string(rune('a' + n)), Body: []byte(b)}})
	}
	return i
}

func idOf(t testing.TB, i imagetar.Image) digest.Digest {
	t.Helper()
	id, err := i.ID()
	require.NoError(t, err)
	return id
}

// get is an image that must be there.
func get(t testing.TB, s *image.Store, ref string) image.Image {
	t.Helper()
	i, err := s.Get(context.Background(), ref)
	require.NoError(t, err)
	return i
}

// mount prepares and mounts a container over an image and undoes it at the end.
func mount(t testing.TB, s *image.Store, id string, img digest.Digest) image.Root {
	t.Helper()
	ctx := context.Background()
	require.NoError(t, s.Prepare(ctx, id, img))
	t.Cleanup(func() { require.NoError(t, s.Discard(ctx, id)) })
	root, err := s.Mount(ctx, id)
	require.NoError(t, err)
	return root
}

func save(t testing.TB, s *image.Store, refs ...string) []byte {
	t.Helper()
	r, err := s.Save(context.Background(), refs, api.Platform{})
	require.NoError(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// entry is a member of a tar.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func symlink(name, to string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}

func tarOf(t require.TestingT, entries ...entry) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, tw.WriteHeader(&e.Header))
		_, err := io.WriteString(tw, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

func untar(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	members := map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return members
		}
		require.NoError(t, err)
		members[h.Name], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
}

// layered is a docker-save archive of layers that are given as tars.
func layered(t require.TestingT, ref string, layers ...[]byte) []byte {
	var names []string
	var members []entry
	seen := map[string]bool{}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		sum := sha256.Sum256(l)
		name := hex.EncodeToString(sum[:]) + "/layer.tar"
		if !seen[name] {
			members = append(members, file(name, string(l)))
		}
		seen[name] = true
		names = append(names, name)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
	}
	c, err := json.Marshal(cfg)
	require.NoError(t, err)
	m, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": names}})
	require.NoError(t, err)
	return tarOf(t, append(members, file("config.json", string(c)), file("manifest.json", string(m)))...)
}

// onDisk lists the files below a directory of a store, by their path in it. What goes
// meanwhile is left out.
func onDisk(t testing.TB, root, dir string) []string {
	t.Helper()
	var names []string
	require.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, p)
			names = append(names, rel)
		}
		if errors.Is(err, fs.ErrNotExist) && p != filepath.Join(root, dir) {
			return nil
		}
		return err
	}))
	return names
}

// tmpfs mounts one of a size and unmounts it at the end.
func tmpfs(t testing.TB, size string) string {
	t.Helper()
	needsRoot(t)
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() {
		// Lazily: what simulates a killed process has files open.
		out, err := exec.Command("umount", "--lazy", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return dir
}

// from fetches from another store, as a host would from a peer.
type from struct {
	src   transfer.Store
	calls atomic.Int64
	gate  chan struct{} // if not nil, a layer's second half waits until it is closed
	spoil bool          // every blob comes with a wrong byte
}

func (f *from) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	b, err := f.src.Open(ctx, want.Digest)
	if err != nil {
		return err
	}
	defer b.Close()
	f.calls.Add(1)
	w, err := dst.Ingest(ctx, want)
	if err != nil {
		return err
	}
	defer w.Close()
	body, err := io.ReadAll(b)
	if err != nil {
		return err
	}
	if f.spoil {
		body[len(body)/2] ^= 1
	}
	// All of it may be there already: an earlier fetch was stopped before the commit.
	off := w.Offset()
	half := max(off, int64(len(body)/2))
	if _, err := w.Write(body[off:half]); err != nil {
		return err
	}
	progress(half)
	if f.gate != nil && want.Size > 0 {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if _, err := w.Write(body[half:]); err != nil {
		return err
	}
	progress(int64(len(body)))
	return w.Commit(ctx)
}
