package agent

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestSourcesOfAPull(t *testing.T) {
	var s sources
	d := digest.FromString("x")
	s.add(d, map[string]int64{"a": 5, "b": 7})
	stream, send, finish := api.Pipe[api.Progress](t.Context())
	go func() {
		for _, p := range []api.Progress{{ID: shortBlob(d), Status: "Downloading"}, {ID: shortBlob(d), Status: "Download complete"}, {ID: "other", Status: "Download complete"}, {Status: "end"}} {
			if send(p) != nil {
				return
			}
		}
		finish(nil)
	}()
	var seen []string
	for p, err := range api.All[api.Progress](&attributed{Stream: stream, sources: &s, from: map[string]int64{}}) {
		require.NoError(t, err)
		if p.Aux != nil {
			seen = append(seen, string(*p.Aux))
			continue
		}
		seen = append(seen, p.Status)
	}
	require.Equal(t, []string{"Downloading", "Download complete", `{"peers":{"a":5,"b":7}}`, "Download complete", "end"}, seen)
	require.Empty(t, s.take(shortBlob(d)), "told once")
	for i := range 2 * maxSources {
		s.add(digest.FromBytes([]byte{byte(i), byte(i >> 8)}), map[string]int64{"a": 1})
	}
	require.LessOrEqual(t, len(s.m), maxSources)
}
