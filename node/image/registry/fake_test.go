package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	authtypes "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/node/image/registry"
	"github.com/shoal-engine/shoal/transfer"
)

// server is a registry in memory that can be made to misbehave.
type server struct {
	*httptest.Server
	// before, if set, may answer a request itself; it then returns true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte          // by digest
	manifests map[string][]byte          // by tag and digest
	uploads   map[string][]byte          // by number
	homes     map[string]map[string]bool // digests by repository
	seen      []*http.Request
}

func serve(t *testing.T) *server {
	t.Helper()
	s := unstarted()
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func unstarted() *server {
	return &server{blobs: map[string][]byte{}, manifests: map[string][]byte{}, uploads: map[string][]byte{}, homes: map[string]map[string]bool{}}
}

// host is how images name the registry.
func (s *server) host() string { return s.Listener.Addr().String() }

func (s *server) blob(b []byte) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(b)
	s.blobs[d.String()] = b
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
}

func (s *server) manifest(tag string, b []byte) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(b)
	s.manifests[tag], s.manifests[d.String()] = b, b
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(b))}
}

// count says how many requests there were whose method and path begin like that.
func (s *server) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.seen {
		if strings.HasPrefix(r.Method+" "+r.URL.Path, prefix) {
			n++
		}
	}
	return n
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Clone(context.Background()))
	s.mu.Unlock()
	if s.before != nil && s.before(w, r) {
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	_, what, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
	if ok {
		s.serveManifest(w, r, what)
		return
	}
	var repo string
	if repo, what, ok = strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/"); ok {
		s.serveUpload(w, r, repo, what)
		return
	}
	if _, what, ok = strings.Cut(r.URL.Path, "/blobs/"); ok {
		s.mu.Lock()
		b, ok := s.blobs[what]
		s.mu.Unlock()
		if !ok {
			refuse(w, 404, "BLOB_UNKNOWN", "blob unknown to registry")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

func (s *server) serveManifest(w http.ResponseWriter, r *http.Request, ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPut {
		b, _ := io.ReadAll(r.Body)
		s.manifests[ref], s.manifests[digest.FromBytes(b).String()] = b, b
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		w.WriteHeader(http.StatusCreated)
		return
	}
	b, ok := s.manifests[ref]
	if !ok {
		refuse(w, 404, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(b)
	}
}

func (s *server) serveUpload(w http.ResponseWriter, r *http.Request, repo, id string) {
	body, err := io.ReadAll(r.Body) // what came before a break counts
	s.mu.Lock()
	defer s.mu.Unlock()
	if from := r.URL.Query().Get("from"); r.Method == http.MethodPost && s.homes[from][r.URL.Query().Get("mount")] {
		w.WriteHeader(http.StatusCreated)
		return
	}
	if r.Method == http.MethodPost {
		id = strconv.Itoa(len(s.uploads))
		s.uploads[id] = nil
	}
	have, ok := s.uploads[id]
	if !ok {
		refuse(w, 404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
		return
	}
	have = append(have, body...)
	s.uploads[id] = have
	w.Header().Set("Location", r.URL.EscapedPath()+strings.Repeat(id, map[bool]int{true: 1}[r.Method == http.MethodPost])+"?state=a%2Bb")
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(have)-1)))
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case r.Method == http.MethodGet:
		w.WriteHeader(http.StatusNoContent)
	case r.Method != http.MethodPut:
		w.WriteHeader(http.StatusAccepted)
	case digest.FromBytes(have).String() != r.URL.Query().Get("digest") || r.URL.Query().Get("state") != "a+b":
		refuse(w, 400, "DIGEST_INVALID", "provided digest did not match uploaded content")
	default:
		s.blobs[digest.FromBytes(have).String()] = have
		delete(s.uploads, id)
		w.WriteHeader(http.StatusCreated)
	}
}

// client reaches registries without long pauses.
func client(t *testing.T, change ...func(*registry.Config)) *registry.Client {
	t.Helper()
	cfg := registry.Config{Pause: time.Millisecond}
	for _, f := range change {
		f(&cfg)
	}
	c, err := registry.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func repository(t *testing.T, c *registry.Client, name string, auth authtypes.AuthConfig) *registry.Repository {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(name)
	require.NoError(t, err)
	return c.Repository(n, auth)
}

// store keeps blobs in memory.
type store struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	left  map[digest.Digest][]byte // by interrupted writers
}

func newStore() *store {
	return &store{blobs: map[digest.Digest][]byte{}, left: map[digest.Digest][]byte{}}
}

func (s *store) Stat(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errdefs.ErrNotFound
}

func (s *store) Open(context.Context, digest.Digest) (transfer.Blob, error) {
	return nil, errdefs.ErrNotFound
}

func (s *store) Ingest(_ context.Context, want ocispec.Descriptor) (transfer.Writer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.blobs[want.Digest]; ok {
		return nil, errdefs.ErrAlreadyExists
	}
	return &writer{s: s, want: want, b: bytes.Clone(s.left[want.Digest]), found: int64(len(s.left[want.Digest]))}, nil
}

type writer struct {
	s     *store
	want  ocispec.Descriptor
	b     []byte
	found int64
	done  bool
}

func (w *writer) Write(b []byte) (int, error) { return w.WriteAt(b, int64(len(w.b))) }

func (w *writer) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], b), nil
}

func (w *writer) ReadAt(b []byte, off int64) (int, error) { return bytes.NewReader(w.b).ReadAt(b, off) }
func (w *writer) Offset() int64                           { return w.found }

func (w *writer) Commit(context.Context) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.done = true
	delete(w.s.left, w.want.Digest)
	if digest.FromBytes(w.b) != w.want.Digest {
		return fmt.Errorf("blob %s is another: %w", w.want.Digest, errdefs.ErrDataLoss)
	}
	w.s.blobs[w.want.Digest] = w.b
	return nil
}

func (w *writer) Close() error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if !w.done {
		w.s.left[w.want.Digest] = w.b
	}
	w.done = true
	return nil
}

func (w *writer) Abort() error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.done = true
	delete(w.s.left, w.want.Digest)
	return nil
}

// memory is a blob to push.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// tokens is a token server for one user.
type tokens struct {
	*httptest.Server
	mu    sync.Mutex
	asked []url.Values
	auth  []string
	given int
	valid string // the token that is good now
}

func issue(t *testing.T) *tokens {
	t.Helper()
	s := &tokens{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked, s.auth = append(s.asked, r.Form), append(s.auth, r.Header.Get("Authorization"))
		user, password, _ := r.BasicAuth()
		if r.Form.Get("refresh_token") != "identity" && (user != "me" || password != "secret") {
			refuse(w, 401, "UNAUTHORIZED", "incorrect username or password")
			return
		}
		s.given++
		s.valid = fmt.Sprintf("token-%d", s.given)
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": s.valid, "expires_in": 300})
	}))
	t.Cleanup(s.Close)
	return s
}

// guard lets nobody in without a good token.
func (s *tokens) guard(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.valid != "" && r.Header.Get("Authorization") == "Bearer "+s.valid {
		return false
	}
	w.Header().Set("Www-Authenticate", `Bearer realm="`+s.URL+`/token",service="the registry",scope="repository:a/b:pull"`)
	refuse(w, 401, "UNAUTHORIZED", "authentication required")
	return true
}

var errCut = errors.New("cut")

// dialer leads everywhere to one address.
func dialer(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}
