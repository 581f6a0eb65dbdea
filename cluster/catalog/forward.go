package catalog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// Bounds of what a follower may have the leader do at a time, and of how long its
// stream may take to swallow an answer.
const (
	maxCalls     = 256
	answerWithin = 10 * time.Second
)

// serve answers the followers.
func (c *Catalog) serve(ctx context.Context) error {
	l, err := c.cfg.Wire.Listen(CatalogProtocol)
	if err != nil {
		return fmt.Errorf("listen for the catalog's followers: %w", err)
	}
	var open conns
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close() // Accept returns
		open.closeAll()
	})
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a follower: %w", err)
		}
		conn = open.add(conn)
		tasks.Go(func() { c.serveConn(ctx, conn) })
	}
}

// serveConn answers one follower's requests, several at a time, until the stream ends.
func (c *Catalog) serveConn(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	var write sync.Mutex
	slots := make(chan struct{}, maxCalls)
	for {
		frame, err := readFrame(conn)
		if err != nil {
			return
		}
		req, err := decodeRequest(frame)
		if err != nil {
			c.log.Warn("follower sent what is no request", "peer", conn.RemoteAddr(), "error", err)
			return
		}
		slots <- struct{}{}
		tasks.Go(func() {
			defer func() { <-slots }()
			a := c.answerTo(ctx, req)
			write.Lock()
			defer write.Unlock()
			err := conn.SetWriteDeadline(time.Now().Add(answerWithin))
			if err = errors.Join(err, writeFrame(conn, a.encode())); err != nil {
				_ = conn.Close() // ends the reading above
			}
		})
	}
}

// answerTo answers as leader or says to ask elsewhere: a request is never passed on
// a second time.
func (c *Catalog) answerTo(ctx context.Context, req request) answer {
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	var batch []entry
	if req.op == opPropose {
		var err error
		if batch, err = decodeBatch(req.payload); err != nil {
			return answerOf(req.id, Result{}, api.InvalidArgument("%w", err))
		}
	}
	if !c.leading() {
		return answerOf(req.id, Result{}, errNotLeading)
	}
	res, err := c.answer(ctx, req.op, batch)
	return answerOf(req.id, res, err)
}

// links keeps one stream to the leader, with many requests on it at a time.
type links struct {
	wire  Wire
	tasks sync.WaitGroup // readers

	mu      sync.Mutex
	closed  bool
	current *link
}

// link is a stream to one node.
type link struct {
	peer string
	conn net.Conn

	mu      sync.Mutex // guards next, waiting and writing
	next    uint64
	waiting map[uint64]chan<- answer
	err     error // set once the stream has ended
}

// call sends a request and waits for its answer.
func (s *links) call(ctx context.Context, peer string, r request) (answer, error) {
	l, err := s.to(ctx, peer)
	if err != nil {
		return answer{}, err
	}
	got := make(chan answer, 1)
	id, err := l.send(r, got)
	if err != nil {
		return answer{}, err
	}
	select {
	case a, ok := <-got:
		if !ok {
			return answer{}, api.Unavailable("the stream to the leader ended")
		}
		return a, nil
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.waiting, id)
		l.mu.Unlock()
		return answer{}, context.Cause(ctx)
	}
}

// to is the link to a peer, dialled if there is none. Only one link is kept, since
// only the leader is asked.
func (s *links) to(ctx context.Context, peer string) (*link, error) {
	s.mu.Lock()
	l, closed := s.current, s.closed
	s.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if l != nil && l.peer == peer && l.ended() == nil {
		return l, nil
	}
	conn, err := s.wire.Dial(ctx, peer, CatalogProtocol)
	if err != nil {
		return nil, fmt.Errorf("ask the leader: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	if now := s.current; now != nil && now != l && now.peer == peer && now.ended() == nil {
		return now, conn.Close() // another caller was faster
	}
	if l := s.current; l != nil {
		_ = l.conn.Close() // its reader tells the callers
	}
	s.current = &link{peer: peer, conn: conn, waiting: map[uint64]chan<- answer{}}
	s.tasks.Go(s.current.read)
	return s.current, nil
}

func (s *links) close() {
	s.mu.Lock()
	s.closed = true
	if s.current != nil {
		_ = s.current.conn.Close() // its reader tells the callers
	}
	s.mu.Unlock()
	s.tasks.Wait()
}

func (l *link) ended() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *link) send(r request, got chan<- answer) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.next++
	r.id = l.next
	err := l.conn.SetWriteDeadline(time.Now().Add(answerWithin))
	if err = errors.Join(err, writeFrame(l.conn, r.encode())); err != nil {
		_ = l.conn.Close() // its reader tells the other callers
		return 0, fmt.Errorf("ask the leader: %w", err)
	}
	l.waiting[r.id] = got
	return r.id, nil
}

// read hands out answers until the stream ends, and then its end.
func (l *link) read() {
	for {
		frame, err := readFrame(l.conn)
		var a answer
		if err == nil {
			a, err = decodeAnswer(frame)
		}
		l.mu.Lock()
		if err != nil {
			l.err = fmt.Errorf("the stream to the leader ended: %w", err)
			for _, got := range l.waiting {
				close(got)
			}
			clear(l.waiting)
			l.mu.Unlock()
			_ = l.conn.Close() // nothing more is to be had from it
			return
		}
		if got := l.waiting[a.id]; got != nil {
			got <- a
			delete(l.waiting, a.id)
		}
		l.mu.Unlock()
	}
}
