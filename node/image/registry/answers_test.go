package registry_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/node/image/registry"
)

// FuzzAnswers lets a registry answer whatever it likes, to the question what a tag
// means, for a blob that is there in part, and for a manifest. Whatever it is, nothing
// gets into the store but what matches its digest.
func FuzzAnswers(f *testing.F) {
	truth := []byte(`{"schemaVersion":2}`)
	sum := digest.FromBytes(truth)
	f.Add(200, "", sum.String(), truth)
	f.Add(206, "bytes 5-18/19", sum.String(), truth[5:])
	f.Add(206, "bytes 5-19/*", "sha256:x", []byte("wrong"))
	f.Add(416, "bytes */19", "", []byte{})
	f.Add(401, "", "", []byte(`{"errors":[{"code":"UNAUTHORIZED"}]}`))
	f.Add(307, "", "", []byte{})
	var mu sync.Mutex
	var answer func(http.ResponseWriter)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer(w)
	}))
	f.Cleanup(s.Close)
	c, err := registry.New(registry.Config{Pause: time.Microsecond, Dial: dialer(s.Listener.Addr().String())})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	name, err := reference.ParseNormalizedNamed(s.Listener.Addr().String() + "/a")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, span, header string, body []byte) {
		if status < 200 || status > 599 {
			return
		}
		mu.Lock()
		answer = func(w http.ResponseWriter) {
			w.Header()["Content-Range"], w.Header()["Docker-Content-Digest"] = []string{span}, []string{header}
			w.Header()["Location"], w.Header()["Www-Authenticate"] = []string{header}, []string{span}
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}
		mu.Unlock()
		r := c.Repository(name, anonymous)
		if d, err := r.Resolve(t.Context(), "1"); err == nil && d.Digest.Validate() != nil {
			t.Fatalf("resolved to %q", d.Digest)
		}
		for _, want := range []ocispec.Descriptor{
			{Digest: sum, Size: int64(len(truth))}, {MediaType: ocispec.MediaTypeImageManifest, Digest: sum},
		} {
			dst := newStore()
			dst.left[sum] = truth[:5:5]
			err := r.Fetch(t.Context(), dst, want, nil)
			if got, ok := dst.blobs[sum]; ok != (err == nil) || ok && string(got) != string(truth) {
				t.Fatalf("fetched %q: %v", got, err)
			}
		}
	})
}
