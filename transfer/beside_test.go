package transfer_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// shaped is a connection that takes a while for each read, or breaks after some bytes.
type shaped struct {
	net.Conn
	pause time.Duration
	left  int // -1: as many as come
}

func (c *shaped) Read(b []byte) (int, error) {
	if c.pause > 0 {
		time.Sleep(c.pause) // in fake time: what the link takes
	}
	if c.left == 0 {
		c.Close()
		return 0, errors.New("broken")
	}
	n, err := c.Conn.Read(b[:min(len(b), 64<<10)])
	if c.left > 0 {
		c.left -= min(n, c.left)
	}
	return n, err
}

// A large blob that one peer gives fast comes over connections of their own; losing these,
// or not getting them, costs nothing.
func TestDialBeside(t *testing.T) {
	const fast = 50 * time.Microsecond // for 64 KiB at most; it lets further connections begin
	for name, test := range map[string]struct {
		pause  time.Duration // of the usual connection
		left   int
		refuse bool
		size   int
		others []string // who holds it, too
		asked  int32
		came   bool // something over these connections
	}{
		"fast":             {pause: fast, left: -1, size: 40 << 20, asked: 2, came: true},
		"lost":             {pause: fast, left: 3_000_000, size: 40 << 20, asked: 2, came: true},
		"lost at once":     {pause: fast, left: 0, size: 40 << 20, asked: 2},
		"refused":          {pause: fast, refuse: true, size: 40 << 20, asked: 2},
		"slow":             {pause: time.Millisecond, left: -1, size: 40 << 20},
		"small":            {pause: fast, left: -1, size: 30 << 20},
		"more who hold it": {pause: fast, left: -1, size: 40 << 20, others: []string{"c"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
				b, d := storetest.Blob(t, test.size)
				for _, id := range append(test.others, "a") {
					storetest.Put(t, c.nodes[id].store, b)
				}
				c.seeds = append([]string{"a"}, test.others...)
				var asked, came atomic.Int32
				dial := func(ctx context.Context, peer string) (net.Conn, error) {
					return c.nodes["b"].host.Dial(ctx, peer, transfer.Protocol)
				}
				var from map[string]int64
				peers := transfer.NewPeers(transfer.PeersConfig{
					Self: "b", Locator: c,
					Dial: func(ctx context.Context, peer string) (net.Conn, error) {
						conn, err := dial(ctx, peer)
						return &shaped{conn, test.pause, -1}, err
					},
					DialBeside: func(ctx context.Context, peer string) (net.Conn, error) {
						asked.Add(1)
						if test.refuse {
							return nil, errors.New("refused")
						}
						conn, err := dial(ctx, peer)
						return &counting{&shaped{conn, 0, test.left}, &came}, err
					},
					OnFetched: func(_ digest.Digest, _ int64, by map[string]int64, _ time.Duration) { from = by },
				})
				require.NoError(t, peers.Fetch(t.Context(), c.nodes["b"].store, d, nil))
				require.Equal(t, d.Digest, digest.FromBytes(storetest.Get(t, c.nodes["b"].store, d.Digest)))
				require.Equal(t, test.asked, asked.Load())
				require.Equal(t, test.came, came.Load() > 1_000_000, "%d bytes over connections of their own", came.Load())
				total := int64(0)
				for _, n := range from {
					total += n
				}
				require.EqualValues(t, test.size, total, "each piece counts once: %v", from)
			})
		})
	}
}

// flipping is a connection that changes one byte of what is read.
type flipping struct {
	net.Conn
	at int
}

func (c *flipping) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if 0 <= c.at && c.at < n {
		b[c.at] ^= 1
	}
	c.at -= n
	return n, err
}

// Of a peer that alone gives a blob pieces aren't summed; who gave wrong ones is known all
// the same.
func TestWrongBytesBeside(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		b, d := storetest.Blob(t, 40<<20)
		storetest.Put(t, c.nodes["a"].store, b)
		c.seeds = []string{"a"}
		dial := func(ctx context.Context, peer string) (net.Conn, error) {
			return c.nodes["b"].host.Dial(ctx, peer, transfer.Protocol)
		}
		blamed := map[string]bool{}
		peers := transfer.NewPeers(transfer.PeersConfig{
			Self: "b", Locator: c,
			Dial: func(ctx context.Context, peer string) (net.Conn, error) {
				conn, err := dial(ctx, peer)
				return &shaped{conn, 50 * time.Microsecond, -1}, err
			},
			DialBeside: func(ctx context.Context, peer string) (net.Conn, error) {
				conn, err := dial(ctx, peer)
				return &flipping{conn, 1_000_000}, err
			},
			OnWrongBytes: func(peer string, _ digest.Digest, proven bool) { blamed[peer] = proven },
		})
		require.NoError(t, peers.Fetch(t.Context(), c.nodes["b"].store, d, nil))
		require.Equal(t, d.Digest, digest.FromBytes(storetest.Get(t, c.nodes["b"].store, d.Digest)))
		require.Equal(t, map[string]bool{"a": true}, blamed)
	})
}

// counting adds up what is read.
type counting struct {
	net.Conn
	n *atomic.Int32
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int32(n))
	return n, err
}
