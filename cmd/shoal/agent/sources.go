package agent

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/node/image"
)

// maxSources bounds how many blobs' sources are remembered until a pull asks.
const maxSources = 1024

// sources remembers which nodes the last blobs came from.
type sources struct {
	mu sync.Mutex
	m  map[string]map[string]int64 // bytes by node ID, by what progress calls a blob
}

// shortBlob is what lines of progress call a blob.
func shortBlob(d digest.Digest) string { return d.Encoded()[:12] }

func (s *sources) add(d digest.Digest, byPeer map[string]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil || len(s.m) >= maxSources {
		s.m = map[string]map[string]int64{} // what nobody asked for by now nobody will
	}
	s.m[shortBlob(d)] = byPeer
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
	return &attributed{Stream: s, sources: w.sources, from: map[string]int64{}}, nil
}

// attributed adds to the lines of a pull the sums of what came from where.
type attributed struct {
	api.Stream[api.Progress]
	sources *sources
	from    map[string]int64
	due     bool // from is to be told before anything else
}

// Recv implements api.Stream.
func (a *attributed) Recv() (api.Progress, error) {
	if a.due {
		a.due = false
		raw, err := json.Marshal(cluster.CopyDetail{Peers: a.from})
		return api.Progress{Aux: (*json.RawMessage)(&raw)}, err
	}
	p, err := a.Stream.Recv()
	if err == nil && p.Status == "Download complete" {
		for id, n := range a.sources.take(p.ID) {
			a.from[id] += n
			a.due = true
		}
	}
	return p, err
}
