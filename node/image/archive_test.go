package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/node/image"
)

func gz(t require.TestingT, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zst(t require.TestingT, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return w.EncodeAll(b, nil)
}

// layout is an OCI archive of one image whose layers are packed by pack. edit, which
// may be nil, changes the members before they are written.
func layout(t require.TestingT, ref string, pack func([]byte) []byte, mediaType string, edit func(map[string][]byte), layers ...[]byte) []byte {
	members := map[string][]byte{ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		members["blobs/sha256/"+d.Encoded()] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	asJSON := func(v any) []byte {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return b
	}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, put(mediaType, pack(l)))
	}
	m.Config = put(ocispec.MediaTypeImageConfig, asJSON(cfg))
	d := put(ocispec.MediaTypeImageManifest, asJSON(m))
	d.Annotations = map[string]string{"io.containerd.image.name": ref}
	index := ocispec.Index{Manifests: []ocispec.Descriptor{d}}
	index.SchemaVersion = 2
	members[ocispec.ImageIndexFile] = asJSON(index)
	if edit != nil {
		edit(members)
	}
	var entries []entry
	for name, b := range members {
		entries = append(entries, file(name, string(b)))
	}
	return tarOf(t, entries...)
}

func TestOCIArchiveKeepsItsDigests(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		pack      func([]byte) []byte
		mediaType string
	}{
		"plain": {func(b []byte) []byte { return b }, ocispec.MediaTypeImageLayer},
		"gzip":  {func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip},
		"zstd":  {func(b []byte) []byte { return zst(t, b) }, ocispec.MediaTypeImageLayerZstd},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			layer := tarOf(t, dir("etc/"), file("etc/x", "hello"))
			archive := layout(t, "docker.io/library/app:1", c.pack, c.mediaType, nil, layer)
			require.Equal(t, "Loaded image: app:1\n", load(t, s, archive))
			img := get(t, s, "app:1")
			require.Equal(t, digest.FromBytes(c.pack(layer)), img.Layers[0].Digest)
			for _, d := range []digest.Digest{img.Manifest.Digest, img.ID, img.Layers[0].Digest} {
				b, err := s.Open(ctx, d)
				require.NoError(t, err)
				body, err := io.ReadAll(b)
				require.NoError(t, err)
				require.NoError(t, b.Close())
				require.Equal(t, untar(t, archive)["blobs/sha256/"+d.Encoded()], body)
			}
			body, err := os.ReadFile(filepath.Join(mount(t, s, "c", img.ID).Path, "etc/x"))
			require.NoError(t, err)
			require.Equal(t, "hello", string(body))

			// And through Save into another store.
			other := open(t)
			require.Equal(t, "Loaded image: app:1\n", load(t, other, save(t, s, "app:1")))
			again := get(t, other, "app:1")
			require.Equal(t, []digest.Digest{img.ID, img.Manifest.Digest, img.Layers[0].Digest}, []digest.Digest{again.ID, again.Manifest.Digest, again.Layers[0].Digest})
		})
	}
}

func TestArchiveMayBeCompressedAndHaveManyImages(t *testing.T) {
	plain := archiveOf(t, small("a:1", "same", "a"), small("b:1", "same", "b"), small("", "c"))
	for name, b := range map[string][]byte{"plain": plain, "gzip": gz(t, plain), "zstd": zst(t, plain)} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			require.Equal(t, "Loaded image: a:1\nLoaded image: b:1\nLoaded image ID: "+idOf(t, small("", "c")).String()+"\n", load(t, s, b))
		})
	}
}

func TestSavedArchiveIsReadByDockerAndOCITools(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo")
	}
	for name, pack := range map[string]func([]byte) []byte{
		"plain": func(b []byte) []byte { return b },
		"zstd":  func(b []byte) []byte { return zst(t, b) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			mediaType := map[string]string{"plain": ocispec.MediaTypeImageLayer, "zstd": ocispec.MediaTypeImageLayerZstd}[name]
			load(t, s, layout(t, "docker.io/library/app:1", pack, mediaType, nil, tarOf(t, file("x", "hello")), tarOf(t, file("y", "there"))))
			img := get(t, s, "app:1")
			path := filepath.Join(t.TempDir(), "x.tar")
			require.NoError(t, os.WriteFile(path, save(t, s, "app:1"), 0o600))
			for _, transport := range []string{"docker-archive:" + path, "oci-archive:" + path} {
				to := filepath.Join(t.TempDir(), "out.tar")
				out, err := exec.Command("skopeo", "--insecure-policy", "copy", transport, "oci-archive:"+to+":app:1").CombinedOutput()
				require.NoError(t, err, "%s: %s", transport, out)
				b, err := os.ReadFile(to)
				require.NoError(t, err)
				other := open(t)
				require.Equal(t, "Loaded image: app:1\n", load(t, other, b))
				again := get(t, other, "app:1")
				require.Equal(t, img.DiffIDs, again.DiffIDs, transport)
				require.Equal(t, img.ID, again.ID, transport)
			}
		})
	}
}

func TestSaveTakesWholeRepositories(t *testing.T) {
	s := open(t)
	load(t, s, archiveOf(t, small("app:1", "one"), small("app:2", "two"), small("other:1", "x")))
	other := open(t)
	out := load(t, other, save(t, s, "app"))
	require.ElementsMatch(t, []string{"Loaded image: app:1", "Loaded image: app:2"}, strings.Split(strings.TrimSpace(out), "\n"))
	_, err := s.Save(context.Background(), []string{"app:1", "none"}, api.Platform{})
	require.EqualError(t, err, "No such image: none:latest")
	require.Equal(t, save(t, s, "app:1"), save(t, s, "app:1"), "equal images make equal archives")
	require.Equal(t, "Loaded image ID: "+idOf(t, small("", "one")).String()+"\n", load(t, open(t), save(t, s, idOf(t, small("", "one")).String())))
}

func TestSaveEndsWhenItsReaderLeaves(t *testing.T) {
	s := open(t)
	load(t, s, apitest.Busybox(t))
	r, err := s.Save(context.Background(), []string{"busybox"}, api.Platform{})
	require.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoError(t, s.Close(), "Close waits for the writer")
}

func TestBadArchivesLeaveNothing(t *testing.T) {
	good := archiveOf(t, small("app:1", "hello"))
	oci := func(edit func(map[string][]byte)) []byte {
		return layout(t, "app:1", func(b []byte) []byte { return b }, ocispec.MediaTypeImageLayer, edit, tarOf(t, file("x", "hello")))
	}
	layerOf := func(m map[string][]byte) string {
		for name, b := range m {
			if bytes.Contains(b, []byte("ustar")) {
				return name
			}
		}
		t.Fatal("no layer")
		return ""
	}
	for name, c := range map[string]struct {
		archive []byte
		is      func(error) bool
		says    string
	}{
		"empty":        {nil, errdefs.IsInvalidArgument, "neither manifest.json nor index.json"},
		"noise":        {bytes.Repeat([]byte("noise"), 1000), errdefs.IsInvalidArgument, "invalid tar header"},
		"cut":          {good[:len(good)/2], errdefs.IsInvalidArgument, "unexpected EOF"},
		"cut gzip":     {gz(t, good)[:300], errdefs.IsInvalidArgument, "unexpected EOF"},
		"cut zstd":     {zst(t, good)[:300], errdefs.IsInvalidArgument, ""},
		"no config":    {tarOf(t, file("manifest.json", `[{"Config":"c","Layers":[]}]`)), errdefs.IsInvalidArgument, `no member "c"`},
		"bad JSON":     {tarOf(t, file("manifest.json", `[{`)), errdefs.IsInvalidArgument, "manifest.json"},
		"traversal":    {tarOf(t, file("manifest.json", `[{"Config":"../../etc/passwd"}]`)), errdefs.IsInvalidArgument, "leads out"},
		"outside":      {tarOf(t, file("../x", "y")), errdefs.IsInvalidArgument, "leads out"},
		"absolute":     {tarOf(t, file("/etc/x", "y")), errdefs.IsInvalidArgument, "absolute"},
		"twice":        {tarOf(t, file("x", "1"), file("./x", "2")), errdefs.IsInvalidArgument, "twice"},
		"looping link": {tarOf(t, symlink("c", "d"), symlink("d", "c"), file("manifest.json", `[{"Config":"c"}]`)), errdefs.IsInvalidArgument, `no member "c"`},
		"bad tag":      {tarOf(t, file("manifest.json", `[{"Config":"c","RepoTags":["UPPER:1"]}]`)), errdefs.IsInvalidArgument, "invalid tag"},
		"layers missing": {tarOf(t, file("c", `{"rootfs":{"diff_ids":["`+digest.FromString("x").String()+`"]}}`), file("manifest.json", `[{"Config":"c"}]`)),
			errdefs.IsInvalidArgument, "layers length mismatch"},
		"windows":                  {tarOf(t, file("c", `{"os":"windows"}`), file("manifest.json", `[{"Config":"c"}]`)), errdefs.IsInvalidArgument, "cannot load windows image on linux"},
		"blob that isn't its name": {oci(func(m map[string][]byte) { m[layerOf(m)][600] ^= 1 }), errdefs.IsDataLoss, "what came has digest"},
		"blob missing":             {oci(func(m map[string][]byte) { delete(m, layerOf(m)) }), errdefs.IsInvalidArgument, "no member"},
		"blob name":                {tarOf(t, file("blobs/sha256/xyz", "")), errdefs.IsInvalidArgument, "invalid digest"},
		"layer that isn't the config's": {func() []byte {
			a := layout(t, "app:1", func([]byte) []byte { return gz(t, tarOf(t, file("x", "other"))) }, ocispec.MediaTypeImageLayerGzip, nil, tarOf(t, file("x", "hello")))
			return a
		}(), errdefs.IsDataLoss, "invalid diffID for layer 0"},
		"layer that is no tar": {layered(t, "app:1", bytes.Repeat([]byte("noise"), 1000)), errdefs.IsInvalidArgument, "invalid tar header"},
		"xz":                   {append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, good...), errdefs.IsInvalidArgument, "xz"},
		"index that is a manifest, too": {oci(func(m map[string][]byte) {
			var i ocispec.Index
			require.NoError(t, json.Unmarshal(m["index.json"], &i))
			b := []byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`)
			i.Manifests[0].Digest, i.Manifests[0].Size = digest.FromBytes(b), int64(len(b))
			m["blobs/sha256/"+digest.FromBytes(b).Encoded()] = b
			m["index.json"], _ = json.Marshal(i)
		}), errdefs.IsInvalidArgument, "both a manifest and an index"},
	} {
		t.Run(name, func(t *testing.T) {
			needsRoot(t)
			root := t.TempDir()
			s := reopen(t, root)
			before := onDisk(t, root, ".")
			_, err := text(s.Load(context.Background(), bytes.NewReader(c.archive), api.LoadOptions{}))
			require.Error(t, err)
			require.ErrorContains(t, err, c.says)
			require.True(t, c.is(err), "class of %v", err)
			list, err := s.List(context.Background())
			require.NoError(t, err)
			require.Empty(t, list)
			require.Empty(t, onDisk(t, root, "ingest"))
			require.Empty(t, onDisk(t, root, "staging"))
			require.Subset(t, append(before, onDisk(t, root, "blobs")...), onDisk(t, root, "."), "nothing but blobs that a sweep takes")
		})
	}
}

func TestLimitsOfArchives(t *testing.T) {
	many := make([]entry, 20)
	for i := range many {
		many[i] = dir(strings.Repeat("d", i+1))
	}
	limits := func(l image.Limits) func(*image.Config) { return func(c *image.Config) { c.Limits = l } }
	for name, c := range map[string]struct {
		limits  image.Limits
		archive []byte
		says    string
	}{
		"members":       {image.Limits{Members: 10}, tarOf(t, many...), "more than 10 entries"},
		"archive bytes": {image.Limits{ArchiveBytes: 4096}, gz(t, tarOf(t, file("x", strings.Repeat("x", 1<<20)))), "larger than allowed"},
		"layer entries": {image.Limits{LayerEntries: 10}, layered(t, "a:1", tarOf(t, many...)), "layer has more than 10 entries"},
		"layer bytes":   {image.Limits{LayerBytes: 1 << 10}, layered(t, "a:1", tarOf(t, file("x", strings.Repeat("x", 1<<11)))), "layer has more than 1024 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := text(open(t, limits(c.limits)).Load(context.Background(), bytes.NewReader(c.archive), api.LoadOptions{}))
			require.ErrorContains(t, err, c.says)
			require.True(t, errdefs.IsInvalidArgument(err))
		})
	}
}

func TestConcurrentLoadsOfOneImage(t *testing.T) {
	s := open(t)
	b := apitest.Busybox(t)
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			_, err := text(s.Load(context.Background(), bytes.NewReader(b), api.LoadOptions{}))
			return err
		})
	}
	require.NoError(t, g.Wait())
	list, err := s.List(context.Background())
	require.NoError(t, err)
	require.Len(t, list, 1)
}

func TestCancelledLoadStops(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := text(s.Load(ctx, r, api.LoadOptions{}))
		ended <- err
	}()
	b := archiveOf(t, small("app:1", strings.Repeat("x", 1<<20)))
	_, err := w.Write(b[:len(b)/2])
	require.NoError(t, err)
	cancel()
	w.CloseWithError(io.ErrUnexpectedEOF)
	require.Error(t, <-ended)
	require.NoError(t, s.Close())
	require.Empty(t, onDisk(t, root, "ingest"))
}

func TestImport(t *testing.T) {
	ctx := context.Background()
	rootfs := tarOf(t, dir("bin/"), file("bin/app", "hello"))
	for name, b := range map[string][]byte{"plain": rootfs, "gzip": gz(t, rootfs), "zstd": zst(t, rootfs)} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			out, err := text(s.Import(ctx, bytes.NewReader(b), api.ImportOptions{
				Ref: "app", Changes: []string{`CMD ["/bin/app"]`, "ENV A=1 B='two words'", "EXPOSE 80", "workdir /srv"},
			}))
			require.NoError(t, err)
			img := get(t, s, "app:latest")
			require.Equal(t, ": "+img.ID.String()+"\n", out)
			require.Equal(t, []digest.Digest{digest.FromBytes(rootfs)}, img.DiffIDs)
			require.Equal(t, []string{"/bin/app"}, img.Config.Cmd)
			require.Equal(t, []string{"A=1", "B=two words"}, img.Config.Env)
			require.Equal(t, "/srv", img.Config.WorkingDir)
			require.Contains(t, img.Config.ExposedPorts, "80/tcp")
			h, err := s.History(ctx, "app")
			require.NoError(t, err)
			require.Equal(t, "Imported from -", h[0].Comment)
			require.FileExists(t, filepath.Join(mount(t, s, "c", img.ID).Path, "bin/app"))
		})
	}
	_, err := open(t).Import(ctx, bytes.NewReader(rootfs), api.ImportOptions{Changes: []string{"RUN rm -rf /"}})
	require.EqualError(t, err, "RUN is not a valid change command")
}

func TestSparseArchiveCannotFillTheDisk(t *testing.T) {
	// The header promises far more than the archive has.
	h := tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 1 << 50}
	var b bytes.Buffer
	require.NoError(t, tar.NewWriter(&b).WriteHeader(&h))
	_, err := text(open(t).Load(context.Background(), bytes.NewReader(layered(t, "a:1", b.Bytes())), api.LoadOptions{}))
	require.ErrorContains(t, err, "layer has more than")
}
