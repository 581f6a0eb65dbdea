package registry_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	authtypes "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/node/image/registry"
)

var anonymous authtypes.AuthConfig

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestResolve(t *testing.T) {
	s := serve(t)
	want := s.manifest("1", []byte(`{"a":1}`))
	r := repository(t, client(t), s.host()+"/a/b", anonymous)
	got, err := r.Resolve(t.Context(), "1")
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Zero(t, s.count("GET /v2/a"), "a HEAD says it all")

	_, err = r.Resolve(t.Context(), "2")
	require.EqualError(t, err, "manifest for "+s.host()+"/a/b:2 not found: manifest unknown: manifest unknown")
	require.True(t, errdefs.IsNotFound(err))

	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
		return r.Method == http.MethodHead
	}
	got, err = r.Resolve(t.Context(), "1")
	require.NoError(t, err, "without HEAD")
	require.Equal(t, want, got)
}

func TestRefusalsInDockersWords(t *testing.T) {
	for _, c := range []struct {
		status             int
		code, message, end string
	}{
		{403, "DENIED", "requested access to the resource is denied", "denied: requested access to the resource is denied"},
		{401, "UNAUTHORIZED", "authentication required", "unauthorized: authentication required"},
		{404, "NAME_UNKNOWN", "repository name not known to registry", "name unknown: repository name not known to registry"},
	} {
		s := serve(t)
		s.before = func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, c.status, c.code, c.message); return true }
		_, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
		require.EqualError(t, err, "pull access denied for "+s.host()+"/a, repository does not exist or may require 'docker login': "+c.end)
		require.True(t, errdefs.IsNotFound(err))
	}
	s := serve(t)
	s.before = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 429, "TOOMANYREQUESTS", "slow\x1b[31m down"+strings.Repeat("x", 1<<20))
		return true
	}
	_, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
	require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
}

func TestUnknownHost(t *testing.T) {
	dials := 0
	c := client(t, func(c *registry.Config) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	_, err := repository(t, c, "localhost:1/a", anonymous).Resolve(t.Context(), "1")
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "connection refused")
	require.Equal(t, 1, dials, "whom nobody knows is not asked again")
}

func TestPasswordsAndTokens(t *testing.T) {
	password := authtypes.AuthConfig{Username: "me", Password: "secret"}
	for name, auth := range map[string]authtypes.AuthConfig{
		"password": password, "encoded": {Auth: "bWU6c2VjcmV0"}, "identity": {IdentityToken: "identity"},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := serve(t), issue(t)
			s.before = k.guard
			want := s.manifest("1", []byte(`{}`))
			r := repository(t, client(t), s.host()+"/a/b", auth)
			for range 3 {
				got, err := r.Resolve(t.Context(), "1")
				require.NoError(t, err)
				require.Equal(t, want.Digest, got.Digest)
			}
			require.Equal(t, 1, k.given, "one token is good for all")
			require.Equal(t, "repository:a/b:pull", k.asked[0].Get("scope"))
			require.Equal(t, "the registry", k.asked[0].Get("service"))
			k.mu.Lock()
			k.valid = "" // it was revoked
			k.mu.Unlock()
			_, err := r.Resolve(t.Context(), "1")
			require.NoError(t, err)
			require.Equal(t, 2, k.given)
			r.Push("c/d")
			require.NoError(t, r.PutManifest(t.Context(), ocispec.MediaTypeImageManifest, []byte(`{}`), "2"))
			last := k.asked[len(k.asked)-1]
			require.Equal(t, "repository:a/b:pull,push repository:c/d:pull repository:a/b:pull", strings.Join(last["scope"], " "))
		})
	}
	t.Run("wrong", func(t *testing.T) {
		s, k := serve(t), issue(t)
		s.before = k.guard
		_, err := repository(t, client(t), s.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "guess"}).Resolve(t.Context(), "1")
		require.ErrorContains(t, err, "pull access denied")
		require.ErrorContains(t, err, "incorrect username or password")
	})
	t.Run("registry token", func(t *testing.T) {
		s, k := serve(t), issue(t)
		k.valid = "mine"
		s.before = k.guard
		s.manifest("1", []byte(`{}`))
		_, err := repository(t, client(t), s.host()+"/a/b", authtypes.AuthConfig{RegistryToken: "mine"}).Resolve(t.Context(), "1")
		require.NoError(t, err)
		require.Empty(t, k.asked)
	})
	t.Run("basic", func(t *testing.T) {
		s := serve(t)
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			user, pass, _ := r.BasicAuth()
			if user == "me" && pass == "secret" {
				return false
			}
			w.Header().Set("Www-Authenticate", `Basic realm="here"`)
			refuse(w, 401, "UNAUTHORIZED", "authentication required")
			return true
		}
		s.manifest("1", []byte(`{}`))
		_, err := repository(t, client(t), s.host()+"/a", password).Resolve(t.Context(), "1")
		require.NoError(t, err)
		_, err = repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
		require.ErrorContains(t, err, "no basic auth credentials")
		c := client(t)
		require.NoError(t, c.Login(t.Context(), authtypes.AuthConfig{Username: "me", Password: "secret", ServerAddress: "http://" + s.host() + "/v1/"}))
		err = c.Login(t.Context(), authtypes.AuthConfig{Username: "me", Password: "no", ServerAddress: s.host()})
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
	})
}

func TestTokenServersThatAreNotAsked(t *testing.T) {
	for _, realm := range []string{"http://198.51.100.1/token", "ftp://127.0.0.1/x", "", "https://a@127.0.0.1/", "%zz"} {
		s := serve(t)
		s.before = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Www-Authenticate", `Bearer realm="`+realm+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		_, err := repository(t, client(t), s.host()+"/a", authtypes.AuthConfig{Username: "me", Password: "secret"}).Resolve(t.Context(), "1")
		require.ErrorContains(t, err, "token server", realm)
	}
}

// TestRedirectsGetNoCredentials: neither another host nor another port of this one.
func TestRedirectsGetNoCredentials(t *testing.T) {
	cdn, s, k := serve(t), serve(t), issue(t)
	body := noise(1000)
	want := s.blob(body)
	cdn.blob(body)
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if k.guard(w, r) {
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, cdn.URL+r.URL.Path+"?signature=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	dst := newStore()
	r := repository(t, client(t), s.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "secret"})
	require.NoError(t, r.Fetch(t.Context(), dst, want, nil))
	require.Equal(t, body, dst.blobs[want.Digest])
	require.NotEmpty(t, cdn.seen)
	for _, r := range cdn.seen {
		require.Empty(t, r.Header.Get("Authorization"))
	}

	// One that asks for credentials itself gets none either.
	before := k.given
	cdn.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Www-Authenticate", `Basic realm="give"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	require.Error(t, r.Fetch(t.Context(), newStore(), want, nil))
	require.Equal(t, before, k.given)
	for _, r := range cdn.seen {
		require.Empty(t, r.Header.Get("Authorization"))
	}
}

func TestUnsafeRedirects(t *testing.T) {
	for _, to := range []string{"http://198.51.100.1/x", "file:///etc/passwd", "https://u:p@127.0.0.1/"} {
		s := serve(t)
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" {
				return false
			}
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return true
		}
		_, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
		require.ErrorContains(t, err, "not safe", to)
	}
	s := serve(t)
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}
	_, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
	require.ErrorContains(t, err, "redirects too often")
}

// cut breaks connections after n bytes of every blob's answer.
func cut(n int64, body []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256") {
			return false
		}
		var first int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(body)-1, len(body)))
			w.Header().Set("Content-Length", fmt.Sprint(int64(len(body))-first))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(body[first:min(first+n, int64(len(body)))])
		_ = http.NewResponseController(w).Flush()
		if first+n < int64(len(body)) {
			panic(http.ErrAbortHandler)
		}
		return true
	}
}

func TestBlobGoesOnWhereItBroke(t *testing.T) {
	s := serve(t)
	body := noise(1 << 20)
	want := s.blob(body)
	s.before = cut(100_000, body)
	dst := newStore()
	var last int64
	r := repository(t, client(t), s.host()+"/a", anonymous)
	require.NoError(t, r.Fetch(t.Context(), dst, want, func(n int64) { last = n }))
	require.Equal(t, body, dst.blobs[want.Digest])
	require.EqualValues(t, len(body), last)
	require.Equal(t, 11, s.count("GET /v2/a/blobs"), "each goes on where the last one broke")

	// A registry that knows no ranges sends all of it again; what is here is skipped.
	plain := serve(t)
	plain.before = func(w http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }
	plain.blob(body)
	dst = newStore()
	dst.left[want.Digest] = bytes.Clone(body[:5000])
	require.NoError(t, repository(t, client(t), plain.host()+"/a", anonymous).Fetch(t.Context(), dst, want, nil))
	require.Equal(t, body, dst.blobs[want.Digest])
}

func TestNoProgressEnds(t *testing.T) {
	s := serve(t)
	want := s.blob(noise(1000))
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	err := repository(t, client(t), s.host()+"/a", anonymous).Fetch(t.Context(), newStore(), want, nil)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Equal(t, 5, s.count("GET /v2/a/blobs"))
}

// TestWhatWasThereMayBeWrong: an earlier attempt, or a peer, left bytes of something
// else.
func TestWhatWasThereMayBeWrong(t *testing.T) {
	s := serve(t)
	body := noise(10_000)
	want := s.blob(body)
	dst := newStore()
	dst.left[want.Digest] = noise(4000)
	require.NoError(t, repository(t, client(t), s.host()+"/a", anonymous).Fetch(t.Context(), dst, want, nil))
	require.Equal(t, body, dst.blobs[want.Digest])
}

func TestWrongBytesAreRefused(t *testing.T) {
	body := noise(1000)
	want := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: 1000}
	for name, wrong := range map[string][]byte{
		"flipped": append([]byte{body[0] ^ 1}, body[1:]...), "short": body[:999], "long": append(bytes.Clone(body), 1), "none": nil,
	} {
		s := serve(t)
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				_, _ = w.Write(wrong)
				return true
			}
			return false
		}
		dst := newStore()
		err := repository(t, client(t), s.host()+"/a", anonymous).Fetch(t.Context(), dst, want, nil)
		require.True(t, errdefs.IsDataLoss(err), "%s: %v", name, err)
		require.ErrorContains(t, err, want.Digest.String())
		require.ErrorContains(t, err, s.host())
		require.Empty(t, dst.blobs)
		require.Empty(t, dst.left, "nothing of it is gone on with")
	}
	s := serve(t) // one that answers with more of a manifest than there can be
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = io.CopyN(w, zeros{}, 64<<20)
			return true
		}
		return false
	}
	unsized := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: want.Digest}
	err := repository(t, client(t), s.host()+"/a", anonymous).Fetch(t.Context(), newStore(), unsized, nil)
	require.True(t, errdefs.IsDataLoss(err), "%v", err)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestPatience(t *testing.T) {
	for _, status := range []int{500, 502, 503, 504, 429} {
		s := serve(t)
		want := s.manifest("1", []byte(`{}`))
		var n atomic.Int32
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/v2/a") && n.Add(1) < 4 {
				w.WriteHeader(status)
				return true
			}
			return false
		}
		got, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
		require.NoError(t, err, status)
		require.Equal(t, want.Digest, got.Digest)
	}
}

func TestMirrors(t *testing.T) {
	good, bad, own := serve(t), serve(t), serve(t)
	body := noise(1000)
	want := own.blob(body)
	m := own.manifest("1", []byte(`{"v":1}`))
	good.blob(body)
	bad.blob(body)
	bad.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			_, _ = w.Write(noise(1000))
			return true
		}
		return false
	}
	k := issue(t)
	own.before = k.guard
	c := client(t, func(c *registry.Config) {
		c.Mirrors = map[string][]string{own.host(): {"http://localhost:1", bad.URL, good.host()}}
	})
	r := repository(t, c, own.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "secret"})
	dst := newStore()
	require.NoError(t, r.Fetch(t.Context(), dst, want, nil))
	require.Equal(t, body, dst.blobs[want.Digest])
	require.Zero(t, own.count("GET"), "a mirror had it")
	got, err := r.Resolve(t.Context(), "1")
	require.NoError(t, err, "no mirror knows the tag, the registry does")
	require.Equal(t, m.Digest, got.Digest)
	for _, s := range []*server{good, bad} {
		for _, r := range s.seen {
			require.Empty(t, r.Header.Get("Authorization"))
		}
	}
}

func TestPushBlob(t *testing.T) {
	s := serve(t)
	body := noise(300_000)
	d := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	r := repository(t, client(t), s.host()+"/a", anonymous)
	var last int64
	how, err := r.PutBlob(t.Context(), d, memory{bytes.NewReader(body)}, nil, func(n int64) { last = n })
	require.NoError(t, err)
	require.Equal(t, registry.Pushed{}, how)
	require.Equal(t, body, s.blobs[d.Digest.String()])
	require.Equal(t, d.Size, last)
	how, err = r.PutBlob(t.Context(), d, memory{bytes.NewReader(body)}, nil, func(int64) {})
	require.NoError(t, err)
	require.True(t, how.Exists)
	require.Equal(t, 1, s.count("POST"))

	empty := ocispec.Descriptor{Digest: digest.FromBytes(nil)}
	_, err = r.PutBlob(t.Context(), empty, memory{bytes.NewReader(nil)}, nil, func(int64) {})
	require.NoError(t, err)

	one := noise(10)
	d = ocispec.Descriptor{Digest: digest.FromBytes(one), Size: 10}
	s.homes["x/y"] = map[string]bool{d.Digest.String(): true}
	how, err = r.PutBlob(t.Context(), d, memory{bytes.NewReader(one)}, []string{"x/y"}, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, "x/y", how.From)
	_, sent := s.blobs[d.Digest.String()]
	require.False(t, sent)
	how, err = r.PutBlob(t.Context(), d, memory{bytes.NewReader(one)}, []string{"z"}, func(int64) {})
	require.NoError(t, err, "what can't be mounted is sent")
	require.Empty(t, how.From)
	require.Equal(t, one, s.blobs[d.Digest.String()])
}

// short cuts the body of the first upload.
type short struct {
	io.ReadCloser
	left int
}

func (s *short) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, errCut
	}
	n, err := s.ReadCloser.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

func TestUploadGoesOnWhereItBroke(t *testing.T) {
	for name, forgets := range map[string]bool{"goes on": false, "begins anew": true} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			body := noise(1 << 20)
			d := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
			var puts, rest atomic.Int64
			s.before = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Method == http.MethodPut && puts.Add(1) == 1:
					r.Body = &short{r.Body, 300_000}
					s.serveUpload(httptest.NewRecorder(), r, "a", r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
					panic(http.ErrAbortHandler)
				case r.Method == http.MethodGet && forgets && strings.Contains(r.URL.Path, "uploads"):
					refuse(w, 404, "BLOB_UPLOAD_UNKNOWN", "")
					return true
				case r.Method == http.MethodPatch:
					rest.Store(r.ContentLength)
				}
				return false
			}
			_, err := repository(t, client(t), s.host()+"/a", anonymous).PutBlob(t.Context(), d, memory{bytes.NewReader(body)}, nil, func(int64) {})
			require.NoError(t, err)
			require.Equal(t, body, s.blobs[d.Digest.String()])
			if !forgets {
				require.EqualValues(t, len(body)-300_000, rest.Load())
			}
		})
	}
}

func TestPushIsRefused(t *testing.T) {
	s := serve(t)
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost || r.Method == http.MethodPut {
			refuse(w, 403, "DENIED", "requested access to the resource is denied")
			return true
		}
		return false
	}
	r := repository(t, client(t), s.host()+"/a", anonymous)
	_, err := r.PutBlob(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}, memory{bytes.NewReader([]byte("x"))}, nil, func(int64) {})
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.ErrorContains(t, err, "denied: requested access to the resource is denied")
	require.Equal(t, 1, s.count("POST"))
	require.Error(t, r.PutManifest(t.Context(), ocispec.MediaTypeImageManifest, []byte("{}"), "1"))
}

func TestCertificates(t *testing.T) {
	s := unstarted()
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	s.manifest("1", []byte(`{}`))
	// Loopback needs no certificate that anybody vouches for.
	_, err := repository(t, client(t), s.host()+"/a", anonymous).Resolve(t.Context(), "1")
	require.NoError(t, err)
	// Other hosts do, unless they are called insecure.
	elsewhere := func(c *registry.Config) { c.Dial = dialer(s.host()) }
	_, err = repository(t, client(t, elsewhere), "example.com/a", anonymous).Resolve(t.Context(), "1")
	require.ErrorContains(t, err, "certificate")
	_, err = repository(t, client(t, elsewhere, func(c *registry.Config) { c.Insecure = []string{"example.com"} }), "example.com/a", anonymous).Resolve(t.Context(), "1")
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	_, err = repository(t, client(t, elsewhere, func(c *registry.Config) { c.Roots = roots }), "example.com/a", anonymous).Resolve(t.Context(), "1")
	require.NoError(t, err)

	plain := serve(t)
	plain.manifest("1", []byte(`{}`))
	elsewhere = func(c *registry.Config) { c.Dial = dialer(plain.host()) }
	_, err = repository(t, client(t, elsewhere), "example.com:5000/a", anonymous).Resolve(t.Context(), "1")
	require.ErrorContains(t, err, "server gave HTTP response to HTTPS client")
	require.Empty(t, plain.seen, "nothing goes there in plain text")
	_, err = repository(t, client(t, elsewhere, func(c *registry.Config) { c.Insecure = []string{"EXAMPLE.com:5000"} }), "example.com:5000/a", anonymous).Resolve(t.Context(), "1")
	require.NoError(t, err)
}

func TestManyShareAToken(t *testing.T) {
	s, k := serve(t), issue(t)
	s.before = k.guard
	s.manifest("1", []byte(`{}`))
	r := repository(t, client(t), s.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "secret"})
	var g errgroup.Group
	for range 8 {
		g.Go(func() error { _, err := r.Resolve(t.Context(), "1"); return err })
	}
	require.NoError(t, g.Wait())
	require.Equal(t, 1, k.given)
	require.Zero(t, s.count("GET /v2/a"), "each HEAD was answered at the second attempt")
}

// TestMirrorsGetNoCredentials: not even those that ask for them.
func TestMirrorsGetNoCredentials(t *testing.T) {
	own, mirror, k := serve(t), serve(t), issue(t)
	own.manifest("1", []byte(`{}`))
	mirror.before = k.guard
	c := client(t, func(c *registry.Config) { c.Mirrors = map[string][]string{own.host(): {mirror.host()}} })
	_, err := repository(t, c, own.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "secret"}).Resolve(t.Context(), "1")
	require.NoError(t, err)
	require.NotZero(t, mirror.count("HEAD"))
	require.Equal(t, []string{""}, k.auth, "it was asked as nobody")
}

// TestUploadsElsewhereGetNoCredentials: a registry may want uploads at another host.
func TestUploadsElsewhereGetNoCredentials(t *testing.T) {
	s, other, k := serve(t), serve(t), issue(t)
	other.uploads["0"] = nil
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if k.guard(w, r) {
			return true
		}
		if r.Method == http.MethodPost {
			w.Header().Set("Location", other.URL+"/v2/a/b/blobs/uploads/0?state=a%2Bb")
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	}
	body := noise(100)
	d := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: 100}
	r := repository(t, client(t), s.host()+"/a/b", authtypes.AuthConfig{Username: "me", Password: "secret"})
	_, err := r.PutBlob(t.Context(), d, memory{bytes.NewReader(body)}, nil, func(int64) {})
	require.NoError(t, err)
	require.Equal(t, body, other.blobs[d.Digest.String()])
	for _, r := range other.seen {
		require.Empty(t, r.Header.Get("Authorization"))
	}
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			w.Header().Set("Location", "http://198.51.100.1/upload")
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	}
	_, err = repository(t, client(t), s.host()+"/a/b", anonymous).PutBlob(t.Context(), d, memory{bytes.NewReader(body)}, nil, func(int64) {})
	require.ErrorContains(t, err, "not safe")
}
