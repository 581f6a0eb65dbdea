package agent

import (
	"context"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/node"
	"github.com/shoal-engine/shoal/node/image/distribution"
	"github.com/shoal-engine/shoal/transfer"
)

// mayHold says whether this node may hold an image; in no cluster it may hold all.
func (a *Agent) mayHold(_ context.Context, target digest.Digest) error {
	if !a.cluster.Member() {
		return nil
	}
	return a.policy.Image(a.id, target, "")
}

// mayServe says whether another node may have a blob.
func (a *Agent) mayServe(_ context.Context, peer string, d digest.Digest) error {
	return a.policy.Serve(peer, d)
}

// callerKey is where the context of another node's call keeps its ID.
type callerKey struct{}

// peerHandler serves this node's engine to other nodes.
func (a *Agent) peerHandler() http.Handler {
	h := a.handlerOf(guarded{a.node, a}, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The wire has proven whose stream it is.
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, r.RemoteAddr)))
	})
}

// guarded is this node as others may use it: what is private to nodes leaves it in no
// other way either.
type guarded struct {
	*node.Node
	a *Agent
}

// SaveImages implements api.Archives.
func (g guarded) SaveImages(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error) {
	caller, _ := ctx.Value(callerKey{}).(string)
	may := func() error {
		for _, ref := range refs {
			img, err := g.a.images.Get(ctx, ref)
			if err != nil {
				return err
			}
			if err := g.a.policy.Image(caller, img.Target.Digest, img.ID); err != nil {
				return err
			}
		}
		return nil
	}
	if err := may(); err != nil {
		return nil, err
	}
	archive, err := g.Node.SaveImages(ctx, refs, p)
	if err != nil {
		return nil, err
	}
	return revocable{archive, may}, nil
}

// revocable ends when its permission does.
type revocable struct {
	io.ReadCloser
	may func() error
}

func (r revocable) Read(b []byte) (int, error) {
	if err := r.may(); err != nil {
		return 0, err
	}
	return r.ReadCloser.Read(b)
}

// lent are this node's blobs as its registry shows them: to clients of this host as far
// as the node may have them, to others as far as anybody may.
type lent struct {
	distribution.Blobs
	a    *Agent
	node string // whose right counts: this one's ID or access.Outside
}

func (l lent) blob(d digest.Digest) error {
	if l.a.cluster.Member() && l.a.policy.Blob(l.node, d) != nil {
		return api.NotFound("blob %s is not here", d)
	}
	return nil
}

func (l lent) image(target digest.Digest) error {
	if !l.a.cluster.Member() {
		return nil
	}
	return l.a.policy.Image(l.node, target, "")
}

// Stat implements distribution.Blobs, as do the methods below.
func (l lent) Stat(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	if err := l.blob(d); err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.Blobs.Stat(ctx, d)
}

func (l lent) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	if err := l.blob(d); err != nil {
		return nil, err
	}
	return l.Blobs.Open(ctx, d)
}

func (l lent) Fetch(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) error {
	if err := l.image(whole); err != nil {
		return err
	}
	return l.Blobs.Fetch(ctx, want, whole)
}

func (l lent) Relay(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) (io.ReadCloser, error) {
	if err := l.image(whole); err != nil {
		return nil, err
	}
	return l.Blobs.Relay(ctx, want, whole)
}

// registryClient is whose right counts at this node's registry.
func (a *Agent) registryClient() string {
	if a.cfg.Distribution.Cert != "" {
		return access.Outside
	}
	return a.id
}
