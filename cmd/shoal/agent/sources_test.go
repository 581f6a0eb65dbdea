package agent

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestSourcesOfAPull(t *testing.T) {
	var s sources
	x, y := digest.FromString("x"), digest.FromString("y")
	downloading := func(d digest.Digest) api.Progress { return api.Progress{ID: shortBlob(d), Status: "Downloading"} }
	complete := func(d digest.Digest) api.Progress {
		return api.Progress{ID: shortBlob(d), Status: "Download complete"}
	}
	lines := make(chan api.Progress)
	stream, send, finish := api.Pipe[api.Progress](t.Context())
	go func() {
		for p := range lines {
			if send(p) != nil {
				break
			}
		}
		finish(nil)
	}()
	a := attribute(stream, &s)
	said := func(p api.Progress) string {
		lines <- p
		got, err := a.Recv()
		require.NoError(t, err)
		require.Equal(t, p.Status, got.Status)
		if got.Aux == nil {
			return ""
		}
		return string(*got.Aux)
	}
	require.Empty(t, said(api.Progress{Status: "Pulling from x"}))
	require.Empty(t, said(downloading(x)), "nothing came yet")
	s.count(x, "a", 3)
	s.count(x, "b", 1)
	require.Equal(t, `{"peers":{"a":3,"b":1}}`, said(downloading(x)))
	s.count(y, "a", 10)
	require.Equal(t, `{"peers":{"a":13,"b":1}}`, said(downloading(y)), "the sum of all blobs")
	s.count(x, "b", 1)
	s.add(x, map[string]int64{"a": 5, "b": 7}) // what is known at the end is the truth
	require.Equal(t, `{"peers":{"a":15,"b":7}}`, said(complete(x)))
	require.Equal(t, `{"peers":{"a":15,"b":7}}`, said(complete(digest.FromString("of nobody"))))
	require.Empty(t, said(api.Progress{Status: "end"}))
	close(lines)
	require.Empty(t, s.take(shortBlob(x)), "told once")
	for i := range 2 * maxSources {
		s.add(digest.FromBytes([]byte{byte(i), byte(i >> 8)}), map[string]int64{"a": 1})
		s.count(digest.FromBytes([]byte{byte(i), byte(i >> 8), 1}), "a", 1)
	}
	require.LessOrEqual(t, len(s.m), maxSources)
}
