package catalog

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Protocols of the catalog's streams.
const (
	RaftProtocol    = "/shoal/raft/1"
	CatalogProtocol = "/shoal/catalog/1"
)

// Wire opens and accepts streams between nodes that have proven their IDs.
type Wire interface {
	ID() string
	Listen(protocol string) (net.Listener, error)
	Dial(ctx context.Context, peerID, protocol string) (net.Conn, error)
}

// streams is raft's view of a Wire: a server's address is its peer ID. It knows all
// accepted streams, since raft's handlers end only when their streams do.
type streams struct {
	net.Listener
	wire Wire
	ctx  context.Context // the life of the replica; dialling ends with it
	open conns
}

func (s *streams) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.open.add(c), nil
}

func (s *streams) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.wire.Dial(ctx, string(a), RaftProtocol)
	if err != nil {
		return nil, err
	}
	return s.open.add(c), nil
}

func (s *streams) Close() error {
	err := s.Listener.Close()
	s.open.closeAll()
	return err
}

// conns is a set of open connections that end together.
type conns struct {
	mu     sync.Mutex
	closed bool
	set    map[*tracked]struct{}
}

type tracked struct {
	net.Conn
	set *conns
}

// add tracks a connection; after closeAll it is closed at once.
func (s *conns) add(c net.Conn) net.Conn {
	t := &tracked{c, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close() // the caller finds it closed
		return t
	}
	if s.set == nil {
		s.set = map[*tracked]struct{}{}
	}
	s.set[t] = struct{}{}
	return t
}

func (t *tracked) Close() error {
	t.set.mu.Lock()
	delete(t.set.set, t)
	t.set.mu.Unlock()
	return t.Conn.Close()
}

func (s *conns) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := s.set
	s.set = nil
	s.mu.Unlock()
	for t := range open {
		_ = t.Conn.Close() // whoever uses it sees the error
	}
}
