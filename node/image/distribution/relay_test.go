package distribution_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPullThrough reads on one node what another was sent.
func TestPullThrough(t *testing.T) {
	c := newCluster(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	a := newApp(t, "amd64", "x")
	one.pushApp("app", "1", a)
	layer := a.blobs[1]
	path := "/v2/app/blobs/" + descriptor("", layer).Digest.String()
	two.fails(404, "BLOB_UNKNOWN", "GET", path, nil) // its manifest wasn't asked for
	require.Equal(t, a.manifest, two.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil).Body.Bytes())

	require.Equal(t, http.StatusOK, two.ask("HEAD", path, nil).Code)
	_, err := two.store.Stat(t.Context(), descriptor("", layer).Digest)
	require.Error(t, err, "a question about a blob fetches nothing")
	w := two.must(http.StatusOK, "GET", path, nil)
	require.Equal(t, layer, w.Body.Bytes())
	_, err = two.store.Stat(t.Context(), descriptor("", layer).Digest)
	require.NoError(t, err)
	config := descriptor("", a.blobs[0]).Digest.String()
	require.Equal(t, a.blobs[0][2:5], two.must(http.StatusPartialContent, "GET", "/v2/app/blobs/"+config, nil, "Range", "bytes=2-4").Body.Bytes())
	list, err := two.store.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list, "whoever passes an image on does not have it")
}

// TestPassedOnWhileItComes reads the first bytes of a blob whose last have not come.
func TestPassedOnWhileItComes(t *testing.T) {
	c := newCluster(t, 2)
	c.gate = make(chan struct{})
	one, two := c.nodes[0], c.nodes[1]
	a := newApp(t, "amd64", string(make([]byte, 1<<20)))
	one.pushApp("app", "1", a)
	two.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil)
	srv := httptest.NewServer(two)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/v2/app/blobs/" + descriptor("", a.blobs[1]).Digest.String())
	require.NoError(t, err)
	defer resp.Body.Close()
	first := make([]byte, 1000)
	_, err = resp.Body.Read(first)
	require.NoError(t, err)
	close(c.gate)
}

// TestWrongBytesAreNotPassedOnWhole cuts the connection before the last of them.
func TestWrongBytesAreNotPassedOnWhole(t *testing.T) {
	c := newCluster(t, 2)
	c.spoil, c.gate = true, make(chan struct{})
	one, two := c.nodes[0], c.nodes[1]
	a := newApp(t, "amd64", string(make([]byte, 1<<20)))
	one.pushApp("app", "1", a)
	two.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil)
	srv := httptest.NewServer(two)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/v2/app/blobs/" + descriptor("", a.blobs[1]).Digest.String())
	require.NoError(t, err)
	defer resp.Body.Close()
	got := make([]byte, len(a.blobs[1]))
	n, err := resp.Body.Read(got)
	require.NoError(t, err)
	close(c.gate)
	rest, err := io.ReadFull(resp.Body, got[n:])
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Less(t, n+rest, len(got))
	require.Empty(t, two.unfinished())
}

// TestPushOfWhatAnotherNodeHas pushes a manifest again under a new tag, to a node that
// lacks its layers.
func TestPushOfWhatAnotherNodeHas(t *testing.T) {
	c := newCluster(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	a := newApp(t, "amd64", "x")
	one.pushApp("app", "1", a)
	two.must(http.StatusOK, "GET", "/v2/app/manifests/1", nil)
	two.must(http.StatusCreated, "PUT", "/v2/app/manifests/2", a.manifest)
	_, err := two.store.Get(t.Context(), "localhost:5000/app:2")
	require.NoError(t, err)
}
