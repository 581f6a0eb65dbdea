package agent

import (
	"context"
	"encoding/json"
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/node/image"
)

// maxSources bounds how many blobs' sources are remembered until a pull asks.
const maxSources = 1024

// sources remembers which nodes the last blobs came from, and those under way come from.
type sources struct {
	mu sync.Mutex
	m  map[string]map[string]int64 // bytes by node ID, by what progress calls a blob
}

// shortBlob is what lines of progress call a blob.
func shortBlob(d digest.Digest) string { return d.Encoded()[:12] }

// count notes bytes of a blob that is being fetched.
func (s *sources) count(d digest.Digest, peer string, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	short := shortBlob(d)
	if s.m[short] == nil {
		s.put(short, map[string]int64{})
	}
	s.m[short][peer] += bytes
}

// add notes where all of a blob came from, in place of what was counted.
func (s *sources) add(d digest.Digest, byPeer map[string]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(shortBlob(d), maps.Clone(byPeer))
}

// put is called with mu held.
func (s *sources) put(short string, byPeer map[string]int64) {
	if s.m == nil || len(s.m) >= maxSources && s.m[short] == nil {
		s.m = map[string]map[string]int64{} // what nobody asked for by now nobody will
	}
	s.m[short] = byPeer
}

// of is where a blob comes from, as far as it has come.
func (s *sources) of(short string) map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m[short])
}

// take says once where a blob came from.
func (s *sources) take(short string) map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer delete(s.m, short)
	return s.m[short]
}

// witness is an image store whose pulls on behalf of the cluster tell which nodes
// the blobs came from.
type witness struct {
	*image.Store
	sources *sources
}

// Pull is the store's. Only routers name a digest; other clients don't expect more
// than Docker says.
func (w witness) Pull(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	s, err := w.Store.Pull(ctx, o)
	if err != nil || o.Digest == "" {
		return s, err
	}
	return attribute(s, w.sources), nil
}

// attributed adds to the lines about bytes what came from where, summed over the blobs
// of the pull.
type attributed struct {
	api.Stream[api.Progress]
	sources *sources
	from    map[string]map[string]int64 // bytes by node ID, by blob
}

func attribute(s api.Stream[api.Progress], from *sources) *attributed {
	return &attributed{s, from, map[string]map[string]int64{}}
}

// Recv implements api.Stream.
func (a *attributed) Recv() (api.Progress, error) {
	p, err := a.Stream.Recv()
	if err != nil {
		return p, err
	}
	switch p.Status {
	case "Downloading":
		a.from[p.ID] = a.sources.of(p.ID)
	case "Download complete":
		a.from[p.ID] = a.sources.take(p.ID)
	default:
		return p, nil
	}
	sums := map[string]int64{}
	for _, byPeer := range a.from {
		for id, n := range byPeer {
			sums[id] += n
		}
	}
	if len(sums) == 0 {
		return p, nil
	}
	raw, err := json.Marshal(cluster.CopyDetail{Peers: sums})
	p.Aux = (*json.RawMessage)(&raw)
	return p, err
}
