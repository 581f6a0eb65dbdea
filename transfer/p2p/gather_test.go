package p2p

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/stretchr/testify/require"
)

// counted is a connection that notes the writes to it.
type counted struct {
	net.Conn

	mu    sync.Mutex
	sizes []int // of writes since they were last asked for
}

func (c *counted) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.sizes = append(c.sizes, len(b))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *counted) taken() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sizes
	c.sizes = nil
	return s
}

// security is a transport of a fresh identity.
func security(t testing.TB) (sec.SecureTransport, peer.ID) {
	_, raw, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	key, err := crypto.UnmarshalEd25519PrivateKey(raw)
	require.NoError(t, err)
	id, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	s, err := libp2ptls.New(libp2ptls.ID, key, nil)
	require.NoError(t, err)
	return gathering{s}, id
}

// secured is a connection from one side to the other, whose writes are counted below TLS.
func secured(t testing.TB) (from, to sec.SecureConn, below *counted) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	x, _ := security(t)
	y, id := security(t)
	accepted := make(chan sec.SecureConn, 1)
	go func() {
		defer close(accepted)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		s, err := y.SecureInbound(context.Background(), c, "")
		if err != nil {
			t.Error(err)
			return
		}
		accepted <- s
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	below = &counted{Conn: c}
	from, err = x.SecureOutbound(t.Context(), below, id)
	require.NoError(t, err)
	to = <-accepted
	require.NotNil(t, to)
	t.Cleanup(func() {
		from.Close()
		to.Close()
	})
	return from, to, below
}

func TestRecordsAreGathered(t *testing.T) {
	from, to, below := secured(t)
	body := make([]byte, 1<<20)
	_, _ = rand.Read(body) // never fails
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(to, int64(len(body)+5)))
		got <- b
	}()
	below.taken()
	n, err := from.Write(body)
	require.NoError(t, err)
	require.Len(t, body, n)
	sizes := below.taken()
	require.LessOrEqual(t, len(sizes), len(body)/gatherSize+2, "few writes: %v", sizes)
	n, err = from.Write([]byte("small"))
	require.NoError(t, err)
	require.Equal(t, 5, n)
	require.Len(t, below.taken(), 1, "what is small goes at once")
	require.True(t, bytes.Equal(append(body, "small"...), <-got))
}

// Writes from many sides at once arrive whole, and none stays behind.
func TestGatheredWritesAtOnce(t *testing.T) {
	from, to, _ := secured(t)
	var wg sync.WaitGroup
	total := 0
	for i := range 8 {
		size := recordSize/2 + i*recordSize
		total += 20 * size
		wg.Go(func() {
			b := bytes.Repeat([]byte{byte(i)}, size)
			for range 20 {
				if _, err := from.Write(b); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	n, err := io.CopyN(io.Discard, to, int64(total))
	require.NoError(t, err)
	require.EqualValues(t, total, n)
	wg.Wait()
}

// A peer that reads nothing holds up neither Close nor a deadline.
func TestGatheredWriteEnds(t *testing.T) {
	ends := map[string]func(sec.SecureConn) error{
		"close":    func(c sec.SecureConn) error { return c.Close() },
		"deadline": func(c sec.SecureConn) error { return c.SetWriteDeadline(time.Now()) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			from, _, below := secured(t)
			failed := make(chan error, 1)
			go func() {
				b := make([]byte, 1<<20)
				for {
					if _, err := from.Write(b); err != nil {
						failed <- err
						return
					}
				}
			}()
			begun := false
			require.Eventually(t, func() bool {
				n := len(below.taken())
				begun = begun || n > 0
				return begun && n == 0
			}, time.Minute, 50*time.Millisecond, "the pipe is full")
			_ = end(from) // a close may tell of the write that it broke
			require.Error(t, <-failed)
			_, err := from.Write([]byte("more"))
			require.Error(t, err, "part of the stream is lost")
		})
	}
}
