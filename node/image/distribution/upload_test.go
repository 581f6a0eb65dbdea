package distribution_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// begin starts an upload and returns where it goes on.
func (h *host) begin() string {
	h.t.Helper()
	w := h.must(http.StatusAccepted, "POST", "/v2/app/blobs/uploads/", nil)
	require.NotEmpty(h.t, w.Header().Get("Docker-Upload-UUID"))
	require.Equal(h.t, "0-0", w.Header().Get("Range"))
	return w.Header().Get("Location")
}

func TestChunks(t *testing.T) {
	h := newHost(t)
	at := h.begin()
	w := h.must(http.StatusAccepted, "PATCH", at, []byte("01234"), "Content-Range", "0-4")
	require.Equal(t, "0-4", w.Header().Get("Range"))
	for _, r := range []string{"0-4", "6-9", "4-8"} { // not where it goes on
		h.fails(416, "BLOB_UPLOAD_INVALID", "PATCH", at, []byte("56789"), "Content-Range", r)
	}
	h.fails(400, "SIZE_INVALID", "PATCH", at, []byte("56"), "Content-Range", "5-9")
	for _, r := range []string{"5", "9-5", "-5", "x-y", "5-", "5-99999999999999999999"} {
		h.fails(400, "BLOB_UPLOAD_INVALID", "PATCH", at, []byte("56789"), "Content-Range", r)
	}
	w = h.must(http.StatusNoContent, "GET", at, nil)
	require.Equal(t, "0-4", w.Header().Get("Range"))
	h.must(http.StatusAccepted, "PATCH", at, []byte("567"), "Content-Range", "5-7")
	h.must(http.StatusAccepted, "PATCH", at, []byte("8")) // without a range: at the end
	d := digest.FromString("0123456789")
	h.fails(400, "DIGEST_INVALID", "PUT", at, nil)
	h.must(http.StatusCreated, "PUT", at+"?digest="+d.String(), []byte("9"), "Content-Range", "9-9")
	require.Equal(t, "0123456789", h.must(http.StatusOK, "GET", "/v2/app/blobs/"+d.String(), nil).Body.String())
	h.fails(404, "BLOB_UPLOAD_UNKNOWN", "GET", at, nil)
	require.Empty(t, h.unfinished())
}

func TestWrongDigestLeavesNothing(t *testing.T) {
	h := newHost(t)
	wrong := digest.FromString("something else").String()
	at := h.begin()
	h.fails(400, "DIGEST_INVALID", "PUT", at+"?digest="+wrong, []byte("body"))
	h.fails(404, "BLOB_UPLOAD_UNKNOWN", "GET", at, nil)
	h.fails(400, "DIGEST_INVALID", "POST", "/v2/app/blobs/uploads/?digest="+wrong, []byte("body"))
	h.fails(404, "BLOB_UNKNOWN", "GET", "/v2/app/blobs/"+wrong, nil)
	h.fails(404, "BLOB_UNKNOWN", "GET", "/v2/app/blobs/"+digest.FromString("body").String(), nil)
	require.Empty(t, h.unfinished())
}

func TestCancel(t *testing.T) {
	h := newHost(t)
	at := h.begin()
	h.must(http.StatusAccepted, "PATCH", at, []byte("body"))
	require.Len(t, h.unfinished(), 1)
	h.fails(404, "BLOB_UPLOAD_UNKNOWN", "DELETE", "/v2/other"+at[len("/v2/app"):], nil)
	h.must(http.StatusNoContent, "DELETE", at, nil)
	h.fails(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", at, nil)
	require.Empty(t, h.unfinished())
}

func TestMount(t *testing.T) {
	h := newHost(t)
	d := h.push("app", []byte("shared"))
	w := h.must(http.StatusCreated, "POST", "/v2/other/blobs/uploads/?mount="+d.String()+"&from=app", nil)
	require.Equal(t, "/v2/other/blobs/"+d.String(), w.Header().Get("Location"))
	h.must(http.StatusCreated, "POST", "/v2/other/blobs/uploads/?mount="+d.String(), nil)
	w = h.must(http.StatusAccepted, "POST", "/v2/other/blobs/uploads/?mount="+nobody+"&from=app", nil)
	h.must(http.StatusNoContent, "DELETE", w.Header().Get("Location"), nil)
}

// broken fails after its bytes, as the body of a client that goes away.
type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// TestResume loses a connection in the middle of a chunk, and goes on.
func TestResume(t *testing.T) {
	h := newHost(t)
	at := h.begin()
	r := httptest.NewRequest("PATCH", at, broken{bytes.NewReader([]byte("0123"))})
	r.ContentLength = 10
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "0-3", h.must(http.StatusNoContent, "GET", at, nil).Header().Get("Range"))
	h.must(http.StatusAccepted, "PATCH", at, []byte("456789"), "Content-Range", "4-9")
	h.must(http.StatusCreated, "PUT", at+"?digest="+digest.FromString("0123456789").String(), nil)
}

// TestManyAtOnce pushes the same and other blobs from many clients, and one upload by two.
func TestManyAtOnce(t *testing.T) {
	h := newHost(t)
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			body := bytes.Repeat(fmt.Append(nil, i%4), 100_000)
			at := h.begin()
			var halves sync.WaitGroup
			for range 2 {
				halves.Go(func() { h.must(http.StatusAccepted, "PATCH", at, body) })
			}
			halves.Wait()
			both := append(bytes.Clone(body), body...)
			h.must(http.StatusCreated, "PUT", at+"?digest="+digest.FromBytes(both).String(), nil)
			require.Equal(t, both, h.must(http.StatusOK, "GET", "/v2/app/blobs/"+digest.FromBytes(both).String(), nil).Body.Bytes())
		})
	}
	clients.Wait()
	require.Empty(t, h.unfinished())
}

func TestTooManyUploads(t *testing.T) {
	h := newHost(t)
	for range 256 {
		h.begin()
	}
	h.fails(429, "TOOMANYREQUESTS", "POST", "/v2/app/blobs/uploads/", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, h.Run(ctx)) // its end drops all that is unfinished
	require.Empty(t, h.unfinished())
	h.begin()
}
