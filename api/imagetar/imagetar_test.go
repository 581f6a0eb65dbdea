package imagetar

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func entries(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	got := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return got
		}
		require.NoError(t, err)
		require.NotContains(t, got, h.Name, "written twice")
		got[h.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
}

func TestArchiveAgreesWithItself(t *testing.T) {
	base := []File{{Name: "a", Body: []byte("1")}}
	one := Image{Refs: []string{"x", "host:5000/y/z:3"}, Layers: [][]File{base, {{Name: "b", Link: "a"}}}}
	two := Image{Refs: []string{"two"}, Layers: [][]File{base}}
	b, err := Bytes(one, two)
	require.NoError(t, err)
	got := entries(t, b)

	var manifest []manifestEntry
	require.NoError(t, json.Unmarshal(got["manifest.json"], &manifest))
	require.Len(t, manifest, 2)
	require.Equal(t, []string{"x:latest", "host:5000/y/z:3"}, manifest[0].RepoTags)
	require.Equal(t, manifest[0].Layers[0], manifest[1].Layers[0], "equal layers are one file")
	for n, m := range manifest {
		var c ocispec.Image
		require.NoError(t, json.Unmarshal(got[m.Config], &c))
		require.Len(t, m.Layers, len(c.RootFS.DiffIDs))
		for i, l := range m.Layers {
			require.Equal(t, c.RootFS.DiffIDs[i], digest.FromBytes(got[l]))
		}
		id, err := []Image{one, two}[n].ID()
		require.NoError(t, err)
		require.Equal(t, id, digest.FromBytes(got[m.Config]))
	}

	var repositories map[string]map[string]string
	require.NoError(t, json.Unmarshal(got["repositories"], &repositories))
	require.Contains(t, repositories["host:5000/y/z"], "3")
}

func TestLayerKeepsKindsAndModes(t *testing.T) {
	one := Image{Layers: [][]File{{
		{Name: "d/", Mode: 0o1777}, {Name: "d/f", Body: []byte("x"), Mode: 0o4755, UID: 7},
		{Name: "d/s", Link: "f"}, {Name: "d/h", HardLink: "d/f"},
		{Name: "cap", Xattrs: map[string]string{"security.capability": "c"}},
	}}}
	b, err := one.build()
	require.NoError(t, err)
	r := tar.NewReader(bytes.NewReader(b.layers[0]))
	want := []struct {
		kind byte
		mode int64
	}{{tar.TypeDir, 0o1777}, {tar.TypeReg, 0o4755}, {tar.TypeSymlink, 0o777}, {tar.TypeLink, 0o644}, {tar.TypeReg, 0o644}}
	for _, w := range want {
		h, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, w.kind, h.Typeflag, h.Name)
		require.Equal(t, w.mode, h.Mode, h.Name)
		if h.Name == "cap" {
			require.Equal(t, "c", h.PAXRecords["SCHILY.xattr.security.capability"])
		}
	}
}

func TestReferenceByDigestIsRefused(t *testing.T) {
	_, err := Bytes(Image{Refs: []string{"x@sha256:" + digest.FromString("x").Encoded()}})
	require.Error(t, err)
}

func TestBusyboxHasAShell(t *testing.T) {
	i, err := Busybox("/bin/busybox")
	if err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	names := map[string]bool{}
	for _, f := range i.Layers[0] {
		require.False(t, names[f.Name], f.Name)
		names[f.Name] = true
	}
	for _, n := range []string{"bin/sh", "bin/echo", "bin/cat", "bin/sleep", "bin/true", "bin/false"} {
		require.Contains(t, names, n)
	}
}
