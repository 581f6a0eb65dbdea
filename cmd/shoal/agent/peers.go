package agent

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/supervisor"
	"github.com/shoal-engine/shoal/transfer"
)

// peerSource fetches from the cluster's nodes, as long as there is a cluster.
type peerSource struct {
	now atomic.Pointer[transfer.Peers]
}

// Fetch implements transfer.Fetcher.
func (s *peerSource) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	p := s.now.Load()
	if p == nil {
		return api.NotFound("this host is in no cluster that could have %s", want.Digest)
	}
	return p.Fetch(ctx, dst, want, progress)
}

// through makes of a registry one that the cluster's nodes ask in turns.
func (s *peerSource) through(registry transfer.Fetcher) transfer.Fetcher {
	if p := s.now.Load(); p != nil {
		return p.Through(registry)
	}
	return registry
}

// early is how containers start before their images are here; nil if they wait.
func (a *Agent) early() *image.Early {
	if !a.cfg.Images.StartEarly {
		return nil
	}
	return &image.Early{
		Program: supervisor.Program,
		Vouch: func(ctx context.Context, want ocispec.Descriptor) (*transfer.Vouched, error) {
			p := a.peers.now.Load()
			if p == nil {
				return nil, api.NotFound("this host is in no cluster that could have %s", want.Digest)
			}
			return p.Vouch(ctx, want)
		},
		Wanted: func(d digest.Digest, at, end int64) {
			if p := a.peers.now.Load(); p != nil {
				p.Wanted(d, at, end)
			}
		},
		Arrived: func(d digest.Digest, at, end int64) {
			if p := a.peers.now.Load(); p != nil {
				p.Arrived(d, at, end)
			}
		},
	}
}

// members are the nodes that seem alive, this one among them; none if it is in no cluster.
func (a *Agent) members() []string {
	var ids []string
	for _, n := range a.front.View().Nodes() {
		if !n.Down {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// locator finds holders in the catalog.
type locator struct {
	reader catalog.Reader
	// sync brings what reader shows up to date.
	sync func(ctx context.Context) error
}

// behindTime is how long a fetch waits for the catalog's latest state where what is here
// names nobody: an image that was loaded elsewhere a moment ago is found all the same.
const behindTime = time.Second

// Find implements transfer.Locator: who holds the image that the blob is part of, in
// random order, so that many fetchers don't all begin with the same one.
func (l locator) Find(ctx context.Context, d digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) {
		whole := transfer.Whole(ctx)
		found := holders(l.reader.View(), d, whole)
		if len(found) == 0 {
			late, cancel := context.WithTimeout(ctx, behindTime)
			_ = l.sync(late) // without the others, what is here must do
			cancel()
			found = holders(l.reader.View(), d, whole)
		}
		for _, i := range rand.Perm(len(found)) {
			n := found[i]
			if !n.Down && !yield(transfer.Peer{ID: n.ID, Addrs: n.Bulk}, nil) {
				return
			}
		}
	}
}

// holders are the nodes to ask for a blob, which may be part of a whole.
func holders(v catalog.View, d, whole digest.Digest) []catalog.Node {
	found := v.Holders(string(d))
	if len(found) == 0 && whole != "" {
		found = v.Holders(string(whole))
	}
	if len(found) == 0 && named(v, d, whole) {
		found = v.Nodes() // no image, or one that nobody has reported yet
	}
	return found
}

// named says whether a name of the cluster means one of the digests.
func named(v catalog.View, ds ...digest.Digest) bool {
	return slices.ContainsFunc(refsOf(v), func(r catalog.Ref) bool { return slices.Contains(ds, digest.Digest(r.Digest)) })
}

// resolveImage says which manifest the cluster means by a name.
func (a *Agent) resolveImage(_ context.Context, name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", api.InvalidArgument("%w", err)
	}
	familiar := reference.FamiliarString(reference.TagNameOnly(named))
	ref, ok := a.front.View().Ref(familiar)
	if !ok {
		return "", api.NotFound("no node has %s", familiar)
	}
	return ref.Digest, nil
}
