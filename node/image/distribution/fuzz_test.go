package distribution

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParsePath(f *testing.F) {
	for _, p := range []string{"/v2/", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/blobs/blobs/blobs", "/v2/a/b/tags/list", "/v2/a/manifests/sha256:0", "/v2//", "/v2/a/../manifests/x", "/v2x"} {
		f.Add(p, "docker.io")
	}
	s := New(Config{Domain: "localhost:5000"})
	f.Fuzz(func(t *testing.T, path, ns string) {
		to, err := parsePath(path)
		if err != nil || to.name == "" {
			return
		}
		require.True(t, strings.HasPrefix(path, "/v2/"+to.name+"/"))
		require.NotContains(t, to.last, "/")
		repo, err := s.repository(to.name, ns)
		if err != nil {
			return
		}
		require.NotEmpty(t, repo.read)
		for _, n := range repo.read {
			require.NotContains(t, n.Name(), "..")
		}
		if repo.own != nil {
			require.Equal(t, "localhost:5000/"+to.name, repo.own.Name(), "a push reaches other names")
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, r := range []string{"0-0", "5-9", "bytes 0-9/10", "9-5", "-", "+1-2", "0-9223372036854775807", "1--2"} {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, err := parseRange(text)
		if err == nil {
			require.GreaterOrEqual(t, first, int64(0))
			require.Positive(t, last-first+1)
		}
	})
}

func FuzzDecodeDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"subject":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decodeDocument(b)
		if err != nil {
			return
		}
		require.NotEmpty(t, d.mediaType)
		for _, r := range d.refs {
			require.NoError(t, r.Digest.Validate())
			require.GreaterOrEqual(t, r.Size, int64(0))
		}
	})
}
