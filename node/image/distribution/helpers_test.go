package distribution_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/image/distribution"
	"github.com/shoal-engine/shoal/transfer"
)

const domain = "localhost:5000"

// cluster is what several nodes mean by names, and where they find blobs.
type cluster struct {
	mu    sync.Mutex
	names map[string]digest.Digest // normalized
	nodes []*host
	gate  chan struct{} // if not nil, blobs of a known size wait for it in their middle
	spoil bool          // blobs of a known size come with a wrong byte
}

// host is a node: a store, and the registry over it.
type host struct {
	t     testing.TB
	c     *cluster
	root  string
	store *image.Store
	*distribution.Server
}

func newCluster(t testing.TB, nodes int) *cluster {
	t.Helper()
	c := &cluster{names: map[string]digest.Digest{}}
	for range nodes {
		h := &host{t: t, c: c, root: t.TempDir()}
		var err error
		h.store, err = image.Open(image.Config{Root: h.root, Fetchers: []transfer.Fetcher{others{h}}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, h.store.Close()) })
		h.Server = distribution.New(distribution.Config{Blobs: distribution.Over(h.store), Names: names{h}, Domain: domain})
		c.nodes = append(c.nodes, h)
	}
	return c
}

func newHost(t testing.TB) *host { return newCluster(t, 1).nodes[0] }

// names are the cluster's, as one node changes them.
type names struct{ h *host }

func (n names) Resolve(_ context.Context, name reference.NamedTagged) (digest.Digest, error) {
	n.h.c.mu.Lock()
	defer n.h.c.mu.Unlock()
	if d, ok := n.h.c.names[name.String()]; ok {
		return d, nil
	}
	return "", api.NotFound("no such image: %s", name)
}

func (n names) List(context.Context) ([]distribution.Name, error) {
	n.h.c.mu.Lock()
	defer n.h.c.mu.Unlock()
	var out []distribution.Name
	for name, d := range n.h.c.names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, err
		}
		out = append(out, distribution.Name{Name: named.(reference.NamedTagged), Target: d})
	}
	return out, nil
}

func (n names) Put(ctx context.Context, name reference.NamedTagged, target digest.Digest, parts []digest.Digest) (note string, err error) {
	if n.h.store.IsImage(ctx, target) {
		s, err := n.h.store.Pull(ctx, api.PullOptions{Ref: name.String(), Digest: target.String()})
		if err == nil {
			for _, err = range api.All(s) {
				if err != nil {
					break
				}
			}
		}
		if err != nil {
			note = err.Error()
		}
	}
	if err := n.h.store.Keep(ctx, image.Kept{Name: name.String(), Target: target, Blobs: parts}); err != nil {
		return "", err
	}
	n.h.c.mu.Lock()
	defer n.h.c.mu.Unlock()
	n.h.c.names[name.String()] = target
	return note, nil
}

func (n names) Drop(ctx context.Context, name reference.NamedTagged) error {
	if _, err := n.h.store.Remove(ctx, name.String(), api.ImageRemoveOptions{}, nil); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	n.h.c.mu.Lock()
	delete(n.h.c.names, name.String())
	n.h.c.mu.Unlock()
	return n.h.store.Unkeep(ctx, name.String(), "")
}

// others fetches from the other nodes.
type others struct{ h *host }

func (o others) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	for _, h := range o.h.c.nodes {
		if h == o.h {
			continue
		}
		b, err := h.store.Open(ctx, want.Digest)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		defer b.Close()
		return o.copy(ctx, dst, want, b, progress)
	}
	return api.NotFound("no other node has %s", want.Digest)
}

func (o others) copy(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, b io.Reader, progress func(int64)) error {
	body, err := io.ReadAll(b)
	if err != nil {
		return err
	}
	w, err := dst.Ingest(ctx, want)
	if err != nil {
		return err
	}
	defer w.Close()
	half := len(body) / 2
	if o.h.c.spoil && want.Size > 0 {
		body[len(body)-1] ^= 1
	}
	if _, err := w.Write(body[w.Offset():half]); err != nil {
		return err
	}
	progress(int64(half))
	if o.h.c.gate != nil && want.Size > 0 {
		select {
		case <-o.h.c.gate:
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

// ask makes one request. Headers are pairs.
func (h *host) ask(method, path string, body []byte, headers ...string) *httptest.ResponseRecorder {
	h.t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// must is ask with the status that must come.
func (h *host) must(status int, method, path string, body []byte, headers ...string) *httptest.ResponseRecorder {
	h.t.Helper()
	w := h.ask(method, path, body, headers...)
	require.Equal(h.t, status, w.Code, "%s %s: %s", method, path, w.Body)
	return w
}

// fails is must with the error's code.
func (h *host) fails(status int, code, method, path string, body []byte, headers ...string) {
	h.t.Helper()
	w := h.must(status, method, path, body, headers...)
	var e struct {
		Errors []struct{ Code, Message string }
	}
	require.NoError(h.t, json.Unmarshal(w.Body.Bytes(), &e), w.Body.String())
	require.Len(h.t, e.Errors, 1)
	require.Equal(h.t, code, e.Errors[0].Code, e.Errors[0].Message)
	require.NotEmpty(h.t, e.Errors[0].Message)
	require.Equal(h.t, "application/json", w.Header().Get("Content-Type"))
}

// push sends a blob in one piece.
func (h *host) push(repo string, b []byte) digest.Digest {
	h.t.Helper()
	d := digest.FromBytes(b)
	w := h.must(http.StatusCreated, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), b)
	require.Equal(h.t, "/v2/"+repo+"/blobs/"+d.String(), w.Header().Get("Location"))
	return d
}

// unfinished lists what the store has of blobs that are arriving.
func (h *host) unfinished() []string {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.root, "ingest"))
	require.NoError(h.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// app is an image: its manifest, and the blobs it leads to.
type app struct {
	manifest []byte
	blobs    [][]byte
}

func (a app) digest() digest.Digest { return digest.FromBytes(a.manifest) }

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}

// newApp is an image for a platform, with one layer of one file.
func newApp(t testing.TB, arch, body string) app {
	t.Helper()
	layer, err := imagetar.Layer(time.Unix(0, 0), imagetar.File{Name: "a", Body: []byte(body)})
	require.NoError(t, err)
	config := toJSON(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	return app{toJSON(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: descriptor(ocispec.MediaTypeImageConfig, config),
		Layers: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	}), [][]byte{config, layer}}
}

// pushApp sends an image under a tag or its digest.
func (h *host) pushApp(repo, ref string, a app) {
	h.t.Helper()
	for _, b := range a.blobs {
		h.push(repo, b)
	}
	w := h.must(http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+ref, a.manifest, "Content-Type", ocispec.MediaTypeImageManifest)
	require.Equal(h.t, a.digest().String(), w.Header().Get("Docker-Content-Digest"))
	require.Equal(h.t, "/v2/"+repo+"/manifests/"+a.digest().String(), w.Header().Get("Location"))
}

// listOf is what an answer lists under a key.
func listOf(t testing.TB, w *httptest.ResponseRecorder, key string) []string {
	t.Helper()
	var m map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &m))
	var list []string
	require.NoError(t, json.Unmarshal(m[key], &list), w.Body.String())
	return list
}

// next is the path that a Link header leads to.
func next(w *httptest.ResponseRecorder) string {
	path, _, _ := strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
	return path
}
