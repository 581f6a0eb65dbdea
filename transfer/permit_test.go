package transfer_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer/storetest"
)

// permits is an Allow whose mind can change.
type permits struct {
	mu     sync.Mutex
	denied map[string]bool // peers
	asked  int
}

func (p *permits) allow(_ context.Context, peer string, _ digest.Digest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.denied[peer] {
		return errors.New("not for " + peer)
	}
	return nil
}

func (p *permits) deny(peer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.denied == nil {
		p.denied = map[string]bool{}
	}
	p.denied[peer] = true
}

// TestDeniedPeerGetsNothing: neither bytes nor size, by whatever kind of session, and it
// can't tell that there is anything; others get all of it.
func TestDeniedPeerGetsNothing(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
		p := &permits{}
		p.deny("c")
		c.nodes["a"].allow = p.allow
		b, d := storetest.Blob(t, 3<<20)
		storetest.Put(t, c.nodes["a"].store, b)
		old := append(b[:2<<20:2<<20], b[:1<<20]...) // so alike that it is asked for as a delta
		storetest.Put(t, c.nodes["c"].store, old)
		c.seeds = []string{"a"}
		require.ErrorIs(t, c.nodes["c"].fetch(d), errdefs.ErrNotFound)
		require.ErrorIs(t, c.nodes["c"].fetch(ocispec.Descriptor{Digest: d.Digest}), errdefs.ErrNotFound)
		require.GreaterOrEqual(t, p.asked, 3, "delta, want and ask")
		require.NoError(t, c.nodes["b"].fetch(d))
		c.seeds = []string{"b"}
		require.NoError(t, c.nodes["c"].fetch(d), "b has nothing against it")
	})
}

// TestReviewEndsSessions: a change of mind takes effect in the middle of a blob, and only
// for whom it is about.
func TestReviewEndsSessions(t *testing.T) {
	bubble(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
		p := &permits{}
		c.nodes["a"].allow = p.allow
		const rate = 4 << 20
		c.net.Shape("a", rate, time.Millisecond)
		b, d := storetest.Blob(t, 16<<20)
		storetest.Put(t, c.nodes["a"].store, b)
		other, od := storetest.Blob(t, 8<<20)
		storetest.Put(t, c.nodes["a"].store, other)
		c.seeds = []string{"a"}
		ended := make(chan error, 1)
		var got atomic.Int64
		begun := make(chan struct{})
		var once sync.Once
		go func() {
			ended <- c.nodes["c"].peers.Fetch(t.Context(), c.nodes["c"].store, d, func(n int64) {
				got.Store(n)
				if n > 1<<20 {
					once.Do(func() { close(begun) })
				}
			})
		}()
		done := make(chan error, 1)
		go func() { done <- c.nodes["b"].fetch(od) }()
		<-begun
		p.deny("c")
		c.nodes["a"].peers.Review(t.Context())
		require.Error(t, <-ended)
		require.Less(t, got.Load(), int64(4<<20), "what is under way at most, of 16 MiB")
		require.NoError(t, <-done, "the other one goes on")
		require.ErrorIs(t, c.nodes["c"].fetch(d), errdefs.ErrNotFound)
	})
}
