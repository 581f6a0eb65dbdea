package scale

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p/memory"
)

// run is many nodes that fetch one blob from one.
type run struct {
	nodes   int
	size    int
	rate    int64 // bytes a second, each way
	latency time.Duration
}

// figures are what came of it.
type figures struct {
	took     []time.Duration // by each node, sorted
	source   int64           // bytes the source gave
	frames   [256]int64      // sent by anybody, by kind
	sessions int64
}

// What the protocol says: the kind of frames that carry content, and the size of a piece
// of a blob of the size used here.
const (
	kindData  = 19
	pieceSize = 32 << 10
)

// TestSwarm: nodes that all begin at once have the blob from one source in at most 1.5
// times what the links need for it, and the source gives no more than two copies.
// SWARM_NODES is how many there are; a thousand take a minute on two idle cores.
func TestSwarm(t *testing.T) {
	nodes := 80
	if s := os.Getenv("SWARM_NODES"); s != "" {
		var err error
		nodes, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	r := run{nodes: nodes, size: 16 << 20, rate: 12_500_000, latency: 500 * time.Microsecond}
	f := r.do(t)
	limit := time.Duration(float64(r.size) / float64(r.rate) * float64(time.Second))
	times := func(percent int) float64 { return float64(f.took[(len(f.took)-1)*percent/100]) / float64(limit) }
	copies := float64(f.source) / float64(r.size)
	pieces := float64(r.nodes) * float64(r.size/pieceSize)
	t.Logf("%d nodes: half are done after %.2f, 99 %% after %.2f, all after %.2f x size/rate; the source gave %.2f copies; each node tried %.1f sessions",
		r.nodes, times(50), times(99), times(100), copies, float64(f.sessions)/float64(r.nodes))
	var messages int64
	for kind, n := range f.frames {
		if n > 0 {
			t.Logf("frames of kind %2d: %.3f per piece and node", kind, float64(n)/pieces)
		}
		if kind != kindData {
			messages += n
		}
	}
	t.Logf("%.2f messages per piece and node, besides %.2f of data", float64(messages)/pieces, float64(f.frames[kindData])/pieces)
	require.Less(t, times(100), 1.5)
	require.Less(t, copies, 2.0)
	require.Less(t, float64(messages)/pieces, 10.0)
}

func (r run) do(t *testing.T) (f figures) {
	synctest.Test(t, func(t *testing.T) { f = r.inBubble(t) })
	return f
}

func id(n int) string { return fmt.Sprintf("12D3KooW%044d", n) } // as long as real ones

func (r run) inBubble(t *testing.T) (f figures) {
	b := make([]byte, r.size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	c := &content{bytes: b, desc: ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(r.size)}}
	network := memory.NewNetwork()
	count := &counter{}
	ctx, cancel := context.WithCancel(t.Context())
	var serving, fetching sync.WaitGroup
	var mu sync.Mutex
	nodes := make([]*transfer.Peers, r.nodes+1)
	stores := make([]*store, r.nodes+1)
	for i := range nodes {
		host := network.Host(id(i))
		network.Shape(id(i), r.rate, r.latency)
		nodes[i] = transfer.NewPeers(transfer.PeersConfig{
			Self: id(i), Locator: seeds{id(0)},
			Dial: func(ctx context.Context, peer string) (net.Conn, error) {
				host.SetPeer(peer, []string{"/memory/" + peer})
				conn, err := host.Dial(ctx, peer, transfer.Protocol)
				count.sessions.Add(1)
				return counted{conn, count}, err
			},
			OnFetched: func(_ digest.Digest, _ int64, by map[string]int64, took time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				f.took = append(f.took, took)
				f.source += by[id(0)]
			},
		})
		stores[i] = &store{c: c, writes: map[int64]bool{}, whole: i == 0}
		l, err := host.Listen(transfer.Protocol)
		require.NoError(t, err)
		serving.Go(func() { nodes[i].Serve(ctx, countedListener{l, count}, stores[i]) })
	}
	for i := 1; i < len(nodes); i++ {
		fetching.Go(func() {
			if err := nodes[i].Fetch(ctx, stores[i], c.desc, nil); err != nil {
				t.Error(i, err)
			}
		})
	}
	fetching.Wait()
	cancel()
	serving.Wait()
	slices.Sort(f.took)
	require.Len(t, f.took, r.nodes)
	for kind := range count.frames {
		f.frames[kind] = count.frames[kind].Load()
	}
	f.sessions = count.sessions.Load()
	return f
}

// seeds is a locator that knows the source.
type seeds []string

func (s seeds) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) {
		for _, id := range s {
			if !yield(transfer.Peer{ID: id}, nil) {
				return
			}
		}
	}
}

// counter counts frames by their kind. Each is written with one Write.
type counter struct {
	frames   [256]atomic.Int64
	sessions atomic.Int64
}

type counted struct {
	net.Conn
	c *counter
}

func (c counted) Write(b []byte) (int, error) {
	c.c.frames[b[0]].Add(1)
	return c.Conn.Write(b)
}

type countedListener struct {
	net.Listener
	c *counter
}

func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return counted{conn, l.c}, nil
}
