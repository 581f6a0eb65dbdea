package node

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// lateSession is a session with a container that is not started yet. It is
// connected after the container's task was made and before its process runs, so
// that it misses nothing; what is written before is kept until then.
type lateSession struct {
	streams runtime.Streams
	drop    func() // forgets the session; called once at its close

	ready chan struct{} // closed: under or err is set
	mu    sync.Mutex
	under api.Duplex
	err   error // why it will never be connected
	early bytes.Buffer
	ended bool // CloseWrite came early

	flush sync.Mutex // what was written early goes first
	once  sync.Once
}

// maxEarly is how much may be written to a container before it starts.
const maxEarly = 64 << 10

func newLateSession(s runtime.Streams, drop func()) *lateSession {
	return &lateSession{streams: s, drop: drop, ready: make(chan struct{})}
}

// connect gives the session what it waits for: d, or err for why there will
// never be anything. Only the first call counts; d is closed if it came too late.
func (s *lateSession) connect(d api.Duplex, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under != nil || s.err != nil {
		if d != nil {
			d.Close()
		}
		return
	}
	s.under, s.err = d, err
	close(s.ready)
	if d == nil || s.early.Len() == 0 && !s.ended {
		return
	}
	early, ended := bytes.Clone(s.early.Bytes()), s.ended
	s.flush.Lock()
	go func() {
		defer s.flush.Unlock()
		if _, err := d.Write(early); err == nil && ended {
			_ = d.CloseWrite() // the reading side tells of a broken connection
		}
	}()
}

// get waits for the connection.
func (s *lateSession) get() (api.Duplex, error) {
	<-s.ready
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.under, s.err
}

func (s *lateSession) Read(p []byte) (int, error) {
	d, err := s.get()
	if err != nil {
		return 0, err
	}
	return d.Read(p)
}

func (s *lateSession) Write(p []byte) (int, error) {
	s.mu.Lock()
	if s.under == nil && s.err == nil && s.early.Len()+len(p) <= maxEarly {
		defer s.mu.Unlock()
		return s.early.Write(p)
	}
	s.mu.Unlock()
	d, err := s.get()
	if err != nil {
		return 0, err
	}
	s.flush.Lock()
	defer s.flush.Unlock()
	return d.Write(p)
}

func (s *lateSession) CloseWrite() error {
	s.mu.Lock()
	if s.under == nil && s.err == nil {
		defer s.mu.Unlock()
		s.ended = true
		return nil
	}
	s.mu.Unlock()
	d, err := s.get()
	if err != nil {
		return err
	}
	s.flush.Lock()
	defer s.flush.Unlock()
	return d.CloseWrite()
}

func (s *lateSession) Close() error {
	s.once.Do(s.drop)
	s.connect(nil, io.EOF)
	if d, err := s.get(); err == nil {
		return d.Close()
	}
	return nil
}

// attachLater registers a session for the next start.
func (c *ctr) attachLater(s runtime.Streams) *lateSession {
	var late *lateSession
	late = newLateSession(s, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pending, late)
	})
	c.pending[late] = struct{}{}
	return late
}

// takePending hands over the sessions that wait for a start.
func (c *ctr) takePending() map[*lateSession]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.pending
	c.pending = map[*lateSession]struct{}{}
	return all
}

// connectPending connects them with a task that was not started yet.
func (c *ctr) connectPending(ctx context.Context, task runtime.Task) {
	for late := range c.takePending() {
		s, err := task.Attach(ctx, late.streams)
		late.connect(s.Duplex, err)
	}
}

// dropPending ends them: there will be nothing to see.
func (c *ctr) dropPending() {
	for late := range c.takePending() {
		late.connect(nil, io.EOF)
	}
}

// defaultDetachKeys are Docker's: ctrl-p, ctrl-q.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseKeys reads a detach sequence: single characters, or ctrl- and one of a-z
// @ [ \ ] ^ _, separated by commas.
func parseKeys(s string) ([]byte, error) {
	if s == "" {
		s = defaultDetachKeys
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		ctrl, ok := strings.CutPrefix(k, "ctrl-")
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
		case ok && len(ctrl) == 1 && ctrl[0] >= 'a' && ctrl[0] <= 'z':
			keys = append(keys, ctrl[0]-'a'+1)
		case ok && len(ctrl) == 1 && strings.Contains("@[\\]^_", ctrl):
			keys = append(keys, ctrl[0]-'@')
		default:
			return nil, api.InvalidArgument("Invalid detach keys (%s) provided", s)
		}
	}
	return keys, nil
}

// detachable ends a session when its user types the detach sequence.
type detachable struct {
	api.Duplex
	keys     []byte
	onDetach func()

	mu       sync.Mutex
	matched  int // how many of the keys were typed so far
	detached bool
}

func (d *detachable) Read(p []byte) (int, error) {
	n, err := d.Duplex.Read(p)
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.detached {
			return n, io.EOF
		}
	}
	return n, err
}

func (d *detachable) Write(p []byte) (int, error) {
	d.mu.Lock()
	if d.detached {
		d.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	out, n := d.scan(p)
	detached := d.detached
	d.mu.Unlock()
	if len(out) > 0 {
		if _, err := d.Duplex.Write(out); err != nil {
			return 0, err
		}
	}
	if detached {
		d.onDetach()
		return n, d.Duplex.Close()
	}
	return n, nil
}

// scan takes what was typed and returns what goes on to the process, and how much
// of p it used.
func (d *detachable) scan(p []byte) (out []byte, n int) {
	for i, b := range p {
		if b != d.keys[d.matched] {
			out = append(out, d.keys[:d.matched]...)
			d.matched = 0
		}
		if b != d.keys[d.matched] {
			out = append(out, b)
			continue
		}
		if d.matched++; d.matched == len(d.keys) {
			d.detached = true
			return out, i + 1
		}
	}
	return out, len(p)
}
