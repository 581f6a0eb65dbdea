package dns

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Config of a server.
type Config struct {
	Reader catalog.Reader
	Self   string // this node's ID; its name signs answers of non-existence
	Domain string // "shoal" if empty
	// Upstream servers, "ADDRESS" or "ADDRESS:PORT", are asked in this order for
	// what isn't ours. Without any, such names don't exist.
	Upstream []string
	// Dial reaches upstream servers; net.Dialer's if nil.
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Logger *slog.Logger
}

// Server answers questions. Its methods may be called concurrently.
type Server struct {
	reader   catalog.Reader
	self     string
	domain   string                   // lower case, with the final dot
	upstream atomic.Pointer[[]string] // Serve leaves out our own sockets
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	log      *slog.Logger

	current    atomic.Pointer[index]
	building   sync.Mutex // held while current is replaced
	flights    singleflight.Group
	forwarding chan struct{} // holds a token for every question that waits for upstream
}

const (
	maxForwarding = 512              // questions that wait for upstream at a time
	maxConns      = 256              // TCP connections at a time and listener
	idleConn      = 10 * time.Second // after which a silent TCP connection is closed
	maxRest       = 250 * time.Millisecond
)

// New makes a server. It answers Handle at once and packets once Serve runs.
func New(c Config) (*Server, error) {
	s := &Server{
		reader: c.Reader, self: c.Self, dial: c.Dial, log: c.Logger,
		domain:     strings.ToLower(strings.Trim(cmp.Or(c.Domain, "shoal"), ".")),
		forwarding: make(chan struct{}, maxForwarding),
	}
	if _, ok := hostname(s.domain); !ok || len(s.domain) > 50 {
		return nil, fmt.Errorf("domain %q: not a name of at most 50 letters, digits and dots", c.Domain)
	}
	s.domain += "."
	if s.dial == nil {
		s.dial = (&net.Dialer{}).DialContext
	}
	var upstream []string
	for _, u := range c.Upstream {
		addr, err := upstreamAddress(u)
		if err != nil {
			return nil, err
		}
		upstream = append(upstream, addr)
	}
	s.upstream.Store(&upstream)
	return s, nil
}

// Serve answers on the sockets until ctx ends, then closes them. Sockets should
// be bound to one address each: an answer from a socket bound to every address
// may leave from one that the asker doesn't expect. Upstream servers that are
// these sockets are left out.
func (s *Server) Serve(ctx context.Context, packets []net.PacketConn, listeners []net.Listener) error {
	s.leaveOut(packets, listeners)
	parent := ctx
	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error { return s.follow(ctx) })
	for _, p := range packets {
		stop := context.AfterFunc(ctx, func() { p.Close() })
		defer stop()
		for range readers {
			g.Go(func() error { return s.servePackets(ctx, p, g) })
		}
	}
	for _, l := range listeners {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		g.Go(func() error { return s.serveListener(ctx, l, g) })
	}
	err := g.Wait()
	if parent.Err() != nil {
		return nil // the sockets' errors only say that they were closed
	}
	return err
}

// follow keeps the index at the catalog's version. After building one it rests
// for three times as long as that took, so that no storm of changes takes more
// than a quarter of one core, and no answer is older than the rest.
func (s *Server) follow(ctx context.Context) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		start := time.Now()
		x := s.refresh()
		rest.Reset(min(3*time.Since(start), maxRest))
		select {
		case <-rest.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := s.reader.Wait(ctx, x.version); err != nil {
			return fmt.Errorf("wait for the catalog: %w", err)
		}
	}
}

// refresh makes the index that of the catalog's version now and returns it.
func (s *Server) refresh() *index {
	s.building.Lock()
	defer s.building.Unlock()
	v := s.reader.View()
	if x := s.current.Load(); x != nil && x.version == v.Index() {
		return x
	}
	x := build(v, s.domain)
	s.current.Store(x)
	return x
}

// lookup finds what a lower-case name with its final dot stands for. Before a name
// counts as unknown the index is brought up to date: an answer that something
// doesn't exist must never be late.
func (s *Server) lookup(name string) (*index, *entry) {
	x := s.current.Load()
	if x == nil {
		x = s.refresh()
	}
	e := x.names[name]
	if e == nil && s.reader.View().Index() != x.version {
		x = s.refresh()
		e = x.names[name]
	}
	return x, e
}

// Handle answers one question as it was read from a packet, or from a stream, in
// the same form; nil means that there is nothing to say. It blocks while upstream
// is asked.
func (s *Server) Handle(ctx context.Context, raw []byte, stream bool) []byte {
	out, forward := s.answer(nil, raw, stream)
	if forward {
		return s.forward(ctx, raw, stream)
	}
	return out
}

// answer appends the answer to out, or says that the question is for upstream.
func (s *Server) answer(out, raw []byte, stream bool) (answer []byte, forward bool) {
	// A defect in reading somebody's packet must not take the node's names away.
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("answer a question", "panic", p, "packet", raw)
			answer, forward = fail(raw, mdns.RcodeServerFailure), false
		}
	}()
	if a, ok := s.quick(out, raw, stream); ok {
		return a, false
	}
	return s.slow(out, raw, stream)
}

// fail is an answer without records. It repeats the question, if there is one that
// can be read, since careful askers mistrust an answer without.
func fail(raw []byte, rcode int) []byte {
	const header = 12
	if len(raw) < header || raw[2]&0x80 != 0 {
		return nil // not even a question
	}
	end := questionEnd(raw)
	if end == 0 || rcode == mdns.RcodeFormatError {
		end = header
	}
	out := bytes.Clone(raw[:end])
	clear(out[2:header])
	out[2] = raw[2]&0x79 | 0x80 // the kind of query and whether recursion is desired
	out[3] = byte(rcode)
	if end > header {
		out[5] = 1
	}
	return out
}
