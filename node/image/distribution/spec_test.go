package distribution_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

const nobody = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func TestBase(t *testing.T) {
	h := newHost(t)
	for _, path := range []string{"/v2", "/v2/"} {
		w := h.must(http.StatusOK, "GET", path, nil)
		require.Equal(t, "registry/2.0", w.Header().Get("Docker-Distribution-Api-Version"))
		h.must(http.StatusOK, "HEAD", path, nil)
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t)
	a := newApp(t, "amd64", "x")
	h.pushApp("app", "1", a)
	d := h.push("app", []byte("blob"))
	sha512 := "sha512:" + strings.Repeat("0", 128)
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/", 404, "UNSUPPORTED"},
		{"GET", "/v1/", 404, "UNSUPPORTED"},
		{"GET", "/v2/app", 404, "UNSUPPORTED"},
		{"GET", "/v2/app/tags", 404, "UNSUPPORTED"},
		{"GET", "/v2//tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/APP/tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/a/../b/tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/" + strings.Repeat("a", 300) + "/tags/list", 400, "NAME_INVALID"},
		{"GET", "/v2/app/tags/list?ns=..", 400, "NAME_INVALID"},
		{"GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/app/tags/list?n=-1", 400, "UNSUPPORTED"},
		{"GET", "/v2/app/blobs/" + nobody, 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/app/blobs/sha256:short", 400, "DIGEST_INVALID"},
		{"GET", "/v2/app/blobs/" + sha512, 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/app/manifests/" + sha512, 404, "MANIFEST_UNKNOWN"},
		{"PUT", "/v2/app/manifests/" + sha512, 400, "DIGEST_INVALID"},
		{"DELETE", "/v2/app/blobs/" + string(d), 405, "UNSUPPORTED"},
		{"POST", "/v2/app/blobs/" + string(d), 405, "UNSUPPORTED"},
		{"GET", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"},
		{"POST", "/v2/App/blobs/uploads/", 400, "NAME_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?mount=x", 400, "DIGEST_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?digest=x", 400, "DIGEST_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?digest=" + nobody, 400, "DIGEST_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?ns=docker.io", 405, "DENIED"},
		{"GET", "/v2/app/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PATCH", "/v2/app/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PUT", "/v2/app/blobs/uploads/none?digest=" + nobody, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"DELETE", "/v2/app/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"GET", "/v2/app/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/manifests/.bad", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/manifests/" + nobody, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/manifests/" + string(d), 404, "MANIFEST_UNKNOWN"}, // a blob, but no manifest
		{"GET", "/v2/app/manifests/sha256:1", 400, "DIGEST_INVALID"},
		{"POST", "/v2/app/manifests/1", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/app/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{"DELETE", "/v2/app/manifests/" + nobody, 404, "MANIFEST_UNKNOWN"},
		{"DELETE", "/v2/app/manifests/1?ns=docker.io", 405, "DENIED"},
		{"GET", "/v2/app/referrers/x", 400, "DIGEST_INVALID"},
		{"PUT", "/v2/_catalog", 405, "UNSUPPORTED"},
	} {
		h.fails(c.status, c.code, c.method, c.path, nil)
	}
}

func TestManifestRefusals(t *testing.T) {
	h := newHost(t)
	a := newApp(t, "amd64", "x")
	var m ocispec.Manifest
	require.NoError(t, json.Unmarshal(a.manifest, &m))
	edit := func(f func(*ocispec.Manifest)) []byte {
		e := m
		e.Layers = append([]ocispec.Descriptor{}, m.Layers...)
		f(&e)
		return toJSON(t, e)
	}
	put := func(status int, code string, body []byte, headers ...string) {
		t.Helper()
		h.fails(status, code, "PUT", "/v2/app/manifests/1", body, headers...)
		h.must(http.StatusNotFound, "GET", "/v2/app/manifests/1", nil)
	}
	put(404, "MANIFEST_BLOB_UNKNOWN", a.manifest)
	for _, b := range a.blobs {
		h.push("app", b)
	}
	put(400, "MANIFEST_INVALID", nil)
	put(400, "MANIFEST_INVALID", []byte("{"))
	put(400, "MANIFEST_INVALID", []byte(`{"schemaVersion":2}`))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.SchemaVersion = 1 }))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.MediaType = "text/plain" }))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.Config.Digest = "sha256:1" }))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.Layers[0].Size++ }))
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }))
	put(404, "MANIFEST_BLOB_UNKNOWN", edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = nobody }))
	put(400, "MANIFEST_INVALID", a.manifest, "Content-Type", ocispec.MediaTypeImageIndex)
	put(400, "MANIFEST_INVALID", bytes.Replace(a.manifest, []byte(`{`), []byte(`{"manifests":[],`), 1))
	put(413, "SIZE_INVALID", bytes.Repeat([]byte(" "), 4<<20+1))
	h.fails(400, "DIGEST_INVALID", "PUT", "/v2/app/manifests/"+nobody, a.manifest)
	h.fails(400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/-bad", a.manifest)
	h.fails(405, "DENIED", "PUT", "/v2/app/manifests/1?ns=docker.io", a.manifest)
	many := make([]ocispec.Descriptor, 10_001)
	for i := range many {
		many[i] = m.Layers[0]
	}
	put(400, "MANIFEST_INVALID", edit(func(m *ocispec.Manifest) { m.Layers = many }))
	h.pushApp("app", "1", a) // the same blobs are still good
}

// TestBrokenLayer pushes an image whose layer doesn't unpack to what its config says.
func TestBrokenLayer(t *testing.T) {
	h := newHost(t)
	layer := []byte("not a tar at all, but as long as somebody may think one could be")
	config := toJSON(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	m := toJSON(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: descriptor(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	})
	h.push("app", layer)
	h.push("app", config)
	w := h.must(http.StatusCreated, "PUT", "/v2/app/manifests/1", m)
	require.Contains(t, w.Header().Get("Warning"), "299 - ")
	require.Equal(t, m, h.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil).Body.Bytes())
	_, err := h.store.Get(t.Context(), "localhost:5000/app:1")
	require.Error(t, err, "what can't be unpacked is kept, but no image")
}

func TestManifestsByTagAndDigest(t *testing.T) {
	h := newHost(t)
	a := newApp(t, "amd64", "x")
	h.pushApp("team/app", "1", a)
	for _, ref := range []string{"1", a.digest().String()} {
		w := h.must(http.StatusOK, "GET", "/v2/team/app/manifests/"+ref, nil)
		require.Equal(t, a.manifest, w.Body.Bytes())
		require.Equal(t, ocispec.MediaTypeImageManifest, w.Header().Get("Content-Type"))
		require.Equal(t, a.digest().String(), w.Header().Get("Docker-Content-Digest"))
		w = h.must(http.StatusOK, "HEAD", "/v2/team/app/manifests/"+ref, nil)
		require.Equal(t, fmt.Sprint(len(a.manifest)), w.Header().Get("Content-Length"))
		require.Empty(t, w.Body.Bytes())
	}
	img, err := h.store.Get(t.Context(), "localhost:5000/team/app:1")
	require.NoError(t, err)
	require.Equal(t, a.digest(), img.Target.Digest)
	b := newApp(t, "amd64", "y")
	h.pushApp("team/app", "1", b)
	require.Equal(t, b.manifest, h.must(http.StatusOK, "GET", "/v2/team/app/manifests/1", nil).Body.Bytes())
}

func TestBlobRanges(t *testing.T) {
	h := newHost(t)
	d := h.push("app", []byte("0123456789"))
	path := "/v2/app/blobs/" + d.String()
	w := h.must(http.StatusOK, "GET", path, nil)
	require.Equal(t, "0123456789", w.Body.String())
	require.Equal(t, d.String(), w.Header().Get("Docker-Content-Digest"))
	w = h.must(http.StatusOK, "HEAD", path, nil)
	require.Equal(t, "10", w.Header().Get("Content-Length"))
	for text, want := range map[string]string{"bytes=2-4": "234", "bytes=7-": "789", "bytes=-2": "89", "bytes=0-99": "0123456789"} {
		w = h.must(http.StatusPartialContent, "GET", path, nil, "Range", text)
		require.Equal(t, want, w.Body.String(), text)
	}
	h.must(http.StatusRequestedRangeNotSatisfiable, "GET", path, nil, "Range", "bytes=10-")
	h.must(http.StatusNotModified, "GET", path, nil, "If-None-Match", `"`+d.String()+`"`)
}

// TestNames goes over what a path means: docs/registry.md.
func TestNames(t *testing.T) {
	h := newHost(t)
	box, mine, quay := newApp(t, "amd64", "box"), newApp(t, "amd64", "mine"), newApp(t, "amd64", "quay")
	for name, a := range map[string]app{"docker.io/library/busybox:1": box, "quay.io/team/x:2": quay, "reg.example:5001/y:3": quay} {
		h.pushApp("tmp", "t", a) // so that its blobs are here
		h.c.names[name] = a.digest()
	}
	delete(h.c.names, "localhost:5000/tmp:t")
	got := func(path string) []byte { return h.must(http.StatusOK, "GET", path, nil).Body.Bytes() }
	for path, want := range map[string]app{
		"/v2/busybox/manifests/1": box, "/v2/library/busybox/manifests/1": box, "/v2/docker.io/library/busybox/manifests/1": box,
		"/v2/library/busybox/manifests/1?ns=docker.io": box, "/v2/quay.io/team/x/manifests/2": quay,
		"/v2/team/x/manifests/2?ns=quay.io": quay, "/v2/y/manifests/3?ns=reg.example:5001": quay,
	} {
		require.Equal(t, want.manifest, got(path), path)
	}
	h.pushApp("busybox", "1", mine)
	require.Equal(t, mine.manifest, got("/v2/busybox/manifests/1"))
	require.Equal(t, mine.manifest, got("/v2/busybox/manifests/1?ns=localhost:5000"))
	require.Equal(t, box.manifest, got("/v2/library/busybox/manifests/1"))
	require.Equal(t, box.digest(), h.c.names["docker.io/library/busybox:1"], "a push replaced what it must not")
	require.Equal(t, []string{"busybox", "quay.io/team/x"}, listOf(t, h.must(http.StatusOK, "GET", "/v2/_catalog", nil), "repositories"))

	h.must(http.StatusAccepted, "DELETE", "/v2/busybox/manifests/1", nil)
	require.Equal(t, box.manifest, got("/v2/busybox/manifests/1"))
	h.fails(405, "UNSUPPORTED", "DELETE", "/v2/busybox/manifests/1", nil)
}

func TestPages(t *testing.T) {
	h := newHost(t)
	for _, tag := range []string{"b", "A", "c", "B", "10", "a"} {
		h.c.names["localhost:5000/app:"+tag] = nobody
		h.c.names["docker.io/library/app:"+tag] = nobody // counts once
	}
	all := []string{"10", "A", "a", "B", "b", "c"}
	require.Equal(t, all, listOf(t, h.must(http.StatusOK, "GET", "/v2/app/tags/list", nil), "tags"))
	require.Equal(t, []string{}, listOf(t, h.must(http.StatusOK, "GET", "/v2/app/tags/list?n=0", nil), "tags"))
	require.Equal(t, []string{"b", "c"}, listOf(t, h.must(http.StatusOK, "GET", "/v2/app/tags/list?last=B", nil), "tags"))
	require.Equal(t, []string{}, listOf(t, h.must(http.StatusOK, "GET", "/v2/app/tags/list?last=z", nil), "tags"))
	var got []string
	for path := "/v2/app/tags/list?n=4"; path != ""; {
		w := h.must(http.StatusOK, "GET", path, nil)
		got = append(got, listOf(t, w, "tags")...)
		path = next(w)
	}
	require.Equal(t, all, got)
	h.c.names["localhost:5000/z/y:1"] = nobody
	w := h.must(http.StatusOK, "GET", "/v2/_catalog?n=1", nil)
	require.Equal(t, []string{"app"}, listOf(t, w, "repositories"))
	w = h.must(http.StatusOK, "GET", next(w), nil)
	require.Equal(t, []string{"z/y"}, listOf(t, w, "repositories"))
	require.Empty(t, w.Header().Get("Link"))
}

// TestIndex pushes an image for two platforms, of which this host runs one, and deletes it.
func TestIndex(t *testing.T) {
	h := newHost(t)
	here, there := newApp(t, "amd64", "x"), newApp(t, "s390x", "y")
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for arch, a := range map[string]app{"amd64": here, "s390x": there} {
		d := descriptor(ocispec.MediaTypeImageManifest, a.manifest)
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	b := toJSON(t, index)
	h.pushApp("app", here.digest().String(), here)
	h.fails(404, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/app/manifests/1", b)
	h.pushApp("app", there.digest().String(), there)
	h.must(http.StatusCreated, "PUT", "/v2/app/manifests/1", b, "Content-Type", ocispec.MediaTypeImageIndex)
	w := h.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil)
	require.Equal(t, ocispec.MediaTypeImageIndex, w.Header().Get("Content-Type"))
	img, err := h.store.Get(t.Context(), "localhost:5000/app:1")
	require.NoError(t, err)
	require.Equal(t, digest.FromBytes(b), img.Target.Digest)
	require.Len(t, h.store.Kept()[0].Blobs, 6)
	child := "/v2/app/manifests/" + there.digest().String()
	h.fails(405, "UNSUPPORTED", "DELETE", child, nil) // the index needs it

	h.must(http.StatusAccepted, "DELETE", "/v2/app/manifests/"+digest.FromBytes(b).String(), nil)
	h.must(http.StatusNotFound, "GET", "/v2/app/manifests/1", nil)
	h.must(http.StatusNotFound, "GET", "/v2/app/manifests/"+digest.FromBytes(b).String(), nil)
	_, err = h.store.Get(t.Context(), "localhost:5000/app:1")
	require.Error(t, err)
	require.Empty(t, h.store.Kept())
	h.must(http.StatusAccepted, "DELETE", child, nil)
	h.fails(404, "MANIFEST_UNKNOWN", "GET", child, nil)
}

// TestArtefacts keeps what is no image, and lists what refers to an image.
func TestArtefacts(t *testing.T) {
	h := newHost(t)
	a := newApp(t, "amd64", "x")
	h.pushApp("app", "1", a)
	subject := descriptor(ocispec.MediaTypeImageManifest, a.manifest)
	require.Empty(t, referrers(t, h, subject.Digest, ""))
	for _, kind := range []string{"application/vnd.a", "application/vnd.b"} {
		body := []byte("signature of " + kind)
		h.push("app", body)
		h.push("app", []byte("{}"))
		m := toJSON(t, ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind,
			Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{descriptor("text/plain", body)},
			Subject: &subject, Annotations: map[string]string{"k": kind},
		})
		for range 2 { // again changes nothing
			w := h.must(http.StatusCreated, "PUT", "/v2/app/manifests/"+digest.FromBytes(m).String(), m)
			require.Equal(t, subject.Digest.String(), w.Header().Get("OCI-Subject"))
		}
	}
	all := referrers(t, h, subject.Digest, "")
	require.Len(t, all, 2)
	require.Equal(t, map[string]string{"k": "application/vnd.a"}, all[0].Annotations)
	some := referrers(t, h, subject.Digest, "application/vnd.b")
	require.Len(t, some, 1)
	require.Equal(t, "application/vnd.b", some[0].ArtifactType)
	list, err := h.store.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1, "artefacts are no images")
	for left := range all {
		path := "/v2/app/manifests/" + all[left].Digest.String()
		h.must(http.StatusOK, "GET", path, nil)
		h.must(http.StatusAccepted, "DELETE", path, nil)
		h.must(http.StatusNotFound, "GET", path, nil)
		require.Len(t, referrers(t, h, subject.Digest, ""), 1-left)
	}
}

func referrers(t *testing.T, h *host, d digest.Digest, kind string) []ocispec.Descriptor {
	t.Helper()
	w := h.must(http.StatusOK, "GET", "/v2/app/referrers/"+d.String()+"?artifactType="+kind, nil)
	require.Equal(t, ocispec.MediaTypeImageIndex, w.Header().Get("Content-Type"))
	require.Equal(t, kind != "", w.Header().Get("OCI-Filters-Applied") == "artifactType")
	var i ocispec.Index
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &i))
	require.NotNil(t, i.Manifests)
	return i.Manifests
}
