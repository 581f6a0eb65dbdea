package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// growing is a file that is being written, as those see it who read it meanwhile.
type growing struct {
	path string

	mu    sync.Mutex
	n     int64
	grown chan struct{} // closed and replaced when n grows; closed for good at the end
	ended bool
	sum   digest.Digest // once it ended well
	err   error
}

func newGrowing(path string) *growing { return &growing{path: path, grown: make(chan struct{})} }

func (g *growing) grow(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n += n
	close(g.grown)
	g.grown = make(chan struct{})
}

// end says that the file is whole, or, with an error, that it never will be.
func (g *growing) end(sum digest.Digest, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sum, g.err, g.ended = sum, err, true
	close(g.grown)
}

// digest is the file's, for who has read to its end.
func (g *growing) digest() digest.Digest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sum
}

// chaser reads a growing file to its end. ctx ends waiting.
type chaser struct {
	ctx context.Context // of the one job that reads
	g   *growing
	f   *os.File
	at  int64
}

func (c *chaser) Read(b []byte) (int, error) {
	for {
		c.g.mu.Lock()
		n, ended, err, grown := c.g.n, c.g.ended, c.g.err, c.g.grown
		c.g.mu.Unlock()
		switch {
		case err != nil:
			return 0, fmt.Errorf("archive was cut off: %w", err)
		case c.at < n:
			m, err := c.f.ReadAt(b[:min(int64(len(b)), n-c.at)], c.at)
			c.at += int64(m)
			return m, err
		case ended:
			return 0, io.EOF
		}
		select {
		case <-grown:
		case <-c.ctx.Done():
			return 0, context.Cause(c.ctx)
		}
	}
}

func (c *chaser) pass(n int64) { c.at += n }

// ahead is the unpacking of what looks like a layer, begun before it is known for one.
type ahead struct {
	stop context.CancelFunc
	done chan struct{} // closed: st and err are set
	err  error

	mu sync.Mutex // of st once done: a load that fails drops what a layer of it takes
	st *staged
}

// unpackAhead unpacks a file while it grows, and calls ended then. It needs no worker:
// whoever calls it bounds how many there are.
func (s *Store) unpackAhead(ctx context.Context, g *growing, ended func()) *ahead {
	ctx, stop := context.WithCancel(ctx)
	a := &ahead{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer ended()
		f, err := os.Open(g.path)
		if err != nil {
			a.err = err
			return
		}
		defer f.Close()
		a.st, a.err = s.unpack(ctx, &chaser{ctx: ctx, g: g, f: f}, job{sum: g.digest})
		if errors.Is(a.err, errPadding) {
			a.st, a.err = s.unpack(ctx, &chaser{ctx: ctx, g: g, f: f}, job{sum: g.digest, copied: true})
		}
	}()
	return a
}

// take waits, and hands what was unpacked over. It is nil if that didn't work: the
// reason will be found again when it is known to matter.
func (a *ahead) take() *staged {
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.st
	a.st = nil
	return st
}

// drop ends it and removes what is left of it.
func (a *ahead) drop() error {
	a.stop()
	return a.take().drop()
}

// looksLikeLayer judges by a file's first bytes: a tar, or what is compressed.
func looksLikeLayer(head []byte) bool {
	const magic = 257 // where a tar's first header has it
	c := detect(head)
	return c == gzipped || c == zstded || len(head) >= magic+5 && string(head[magic:magic+5]) == "ustar"
}

// aheads are the layers that are unpacked while an archive arrives.
type aheads struct {
	mu    sync.Mutex               // of m, once the archive was read
	slots chan struct{}            // one token for each that runs
	m     map[digest.Digest]*ahead // by blob
	all   []*ahead
}

func newAheads(n int) *aheads {
	return &aheads{slots: make(chan struct{}, n), m: map[digest.Digest]*ahead{}}
}

// know says which blob it is that a is of. What is there twice is kept once.
func (as *aheads) know(blob digest.Digest, a *ahead) {
	if a != nil && as.m[blob] == nil {
		as.m[blob] = a
	}
}

// begin unpacks a file while it grows, unless enough others are at it: then it returns
// nil, and the file's turn comes when the archive is known.
func (as *aheads) begin(ctx context.Context, s *Store, g *growing) *ahead {
	select {
	case as.slots <- struct{}{}:
	default:
		return nil
	}
	a := s.unpackAhead(ctx, g, func() { <-as.slots })
	as.all = append(as.all, a)
	return a
}

// take returns what was unpacked of a blob, once; nil if there is nothing. It may be
// called by several goroutines at once.
func (as *aheads) take(blob digest.Digest) *staged {
	as.mu.Lock()
	a := as.m[blob]
	delete(as.m, blob)
	as.mu.Unlock()
	if a == nil {
		return nil
	}
	return a.take()
}

// diff is the diff ID of a blob that was unpacked; empty if it wasn't.
func (as *aheads) diff(blob digest.Digest) digest.Digest {
	a := as.m[blob]
	if a == nil {
		return ""
	}
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.st == nil {
		return ""
	}
	return a.st.diff
}

// Close ends all and removes what nobody took.
func (as *aheads) Close() error {
	var errs []error
	for _, a := range as.all {
		errs = append(errs, a.drop())
	}
	return errors.Join(errs...)
}
