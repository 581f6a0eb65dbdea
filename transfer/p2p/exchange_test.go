package p2p_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"iter"
	"net"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

type holder string

func (h holder) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) { yield(transfer.Peer{ID: string(h)}, nil) }
}

// TestBlobsOverHosts fetches a blob over real connections, to two nodes at once.
func TestBlobsOverHosts(t *testing.T) {
	hosts := make([]*p2p.Host, 3)
	for i := range hosts {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		hosts[i], err = p2p.New(p2p.Config{Key: key, Listen: []string{"127.0.0.1:0"}, Allow: func(string, string) bool { return true }})
		require.NoError(t, err)
		defer hosts[i].Close()
	}
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b {
				a.SetPeer(b.ID(), b.Addrs())
			}
		}
	}
	b, d := storetest.Blob(t, 20<<20+123)
	ctx, cancel := context.WithCancel(t.Context())
	var serving, fetching sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	for i, h := range hosts {
		store := storetest.Dir(t.TempDir())
		if i == 0 {
			storetest.Put(t, store, b)
		}
		peers := transfer.NewPeers(transfer.PeersConfig{
			Self:    h.ID(),
			Locator: holder(hosts[0].ID()),
			Dial: func(ctx context.Context, id string) (net.Conn, error) {
				return h.Dial(ctx, id, transfer.Protocol)
			},
		})
		l, err := h.Listen(transfer.Protocol)
		require.NoError(t, err)
		serving.Go(func() {
			if err := peers.Serve(ctx, l, store); err != nil {
				t.Error(err)
			}
		})
		if i > 0 {
			fetching.Go(func() {
				if err := peers.Fetch(ctx, store, d, nil); err != nil {
					t.Error(err)
					return
				}
				if got := storetest.Get(t, store, d.Digest); digest.FromBytes(got) != d.Digest {
					t.Error("other bytes")
				}
			})
		}
	}
	fetching.Wait()
}

// BenchmarkFetch is from memory to memory over one connection on loopback, verified.
func BenchmarkFetch(b *testing.B) {
	const size = 128 << 20
	var hosts [2]*p2p.Host
	for i := range hosts {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(b, err)
		hosts[i], err = p2p.New(p2p.Config{Key: key, Listen: []string{"127.0.0.1:0"}, Allow: func(string, string) bool { return true }})
		require.NoError(b, err)
		defer hosts[i].Close()
	}
	hosts[1].SetPeer(hosts[0].ID(), hosts[0].Addrs())
	from := storetest.Memory()
	content, d := storetest.Blob(b, size)
	storetest.Put(b, from, content)
	l, err := hosts[0].Listen(transfer.Protocol)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { transfer.NewPeers(transfer.PeersConfig{}).Serve(ctx, l, from) })
	peers := transfer.NewPeers(transfer.PeersConfig{
		Locator: holder(hosts[0].ID()),
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return hosts[1].Dial(ctx, id, transfer.Protocol)
		},
	})
	b.SetBytes(size)
	for b.Loop() {
		require.NoError(b, peers.Fetch(ctx, storetest.Memory(), d, nil))
	}
}
