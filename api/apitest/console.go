package apitest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

// spool is an unbounded pipe. Its zero value is ready.
type spool struct {
	mu    sync.Mutex
	data  bytes.Buffer
	ended bool          // no more is written
	bell  chan struct{} // closed at every change; nil if nobody waits
}

func (s *spool) ring() {
	if s.bell != nil {
		close(s.bell)
		s.bell = nil
	}
}

// Write never blocks.
func (s *spool) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, io.ErrClosedPipe
	}
	s.ring()
	return s.data.Write(b)
}

// end makes readers see io.EOF after what was written.
func (s *spool) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.ring()
}

// readContext blocks for data, the end, or ctx.
func (s *spool) readContext(ctx context.Context, b []byte) (int, error) {
	for {
		s.mu.Lock()
		if s.data.Len() > 0 {
			defer s.mu.Unlock()
			return s.data.Read(b)
		}
		if s.ended {
			s.mu.Unlock()
			return 0, io.EOF
		}
		if s.bell == nil {
			s.bell = make(chan struct{})
		}
		bell := s.bell
		s.mu.Unlock()
		select {
		case <-bell:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// contextReader reads a spool as long as a context lives.
type contextReader struct {
	ctx context.Context // of the one reader it is made for
	s   *spool
}

func (r contextReader) Read(b []byte) (int, error) { return r.s.readContext(r.ctx, b) }

// logLine is a line that was written, with its end unless the process ended first.
type logLine struct {
	stream stdcopy.Stream
	at     time.Time
	text   []byte
}

// console is a process's standard streams: who listens, what was said, and the
// terminal in between if there is one.
type console struct {
	mu      sync.Mutex
	tty     bool
	open    bool // stdin is connected at all
	once    bool // stdin ends with the first client
	stdin   *spool
	typed   []byte // of a line on a terminal
	lines   []logLine
	partial map[stdcopy.Stream][]byte
	sinks   map[*sink]bool
	changed chan struct{} // closed and replaced with every line and at the end
}

// sink is a listener.
type sink struct {
	out, err bool
	spool    spool
}

func newConsole(tty, open, once bool) *console {
	c := &console{
		tty: tty, open: open, once: once, stdin: &spool{}, partial: map[stdcopy.Stream][]byte{},
		sinks: map[*sink]bool{}, changed: make(chan struct{}),
	}
	if !open {
		c.stdin.end()
	}
	return c
}

// consoleWriter is stdout or stderr of the process.
type consoleWriter struct {
	c      *console
	stream stdcopy.Stream
}

func (w consoleWriter) Write(b []byte) (int, error) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.emit(w.stream, b)
	return len(b), nil
}

// emit hands output to whoever listens and to the log. The lock is held.
func (c *console) emit(stream stdcopy.Stream, b []byte) {
	if c.tty {
		stream = stdcopy.Stdout
		b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	}
	for s := range c.sinks {
		if stream == stdcopy.Stdout && s.out || stream == stdcopy.Stderr && s.err {
			if c.tty {
				_, _ = s.spool.Write(b) // fails only for a listener that left
			} else {
				_, _ = stdcopy.NewWriter(&s.spool, stream).Write(b)
			}
		}
	}
	rest := append(c.partial[stream], b...)
	for {
		n := bytes.IndexByte(rest, '\n')
		if n < 0 {
			break
		}
		c.log(stream, rest[:n+1])
		rest = rest[n+1:]
	}
	c.partial[stream] = bytes.Clone(rest)
}

func (c *console) log(stream stdcopy.Stream, text []byte) {
	c.lines = append(c.lines, logLine{stream, time.Now(), bytes.Clone(text)})
	close(c.changed)
	c.changed = make(chan struct{})
}

// finish ends all output, for this run of the process.
func (c *console) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, rest := range c.partial {
		if len(rest) > 0 {
			c.log(stream, rest)
		}
		delete(c.partial, stream)
	}
	for s := range c.sinks {
		s.spool.end()
		delete(c.sinks, s)
	}
	c.stdin.end()
	close(c.changed)
	c.changed = make(chan struct{})
}

// reopen makes stdin ready for another run.
func (c *console) reopen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open {
		c.stdin = &spool{}
	}
}

// input takes what a client typed. On a terminal it is echoed, and ^D ends it.
func (c *console) input(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open {
		return 0, io.ErrClosedPipe
	}
	if !c.tty {
		return c.stdin.Write(b)
	}
	for _, ch := range b {
		switch ch {
		case 4:
			if len(c.typed) == 0 {
				c.stdin.end()
			}
		case '\r', '\n':
			c.emit(stdcopy.Stdout, []byte("\n"))
			_, _ = c.stdin.Write(append(c.typed, '\n')) // fails only after the end
			c.typed = nil
			continue
		default:
			c.emit(stdcopy.Stdout, []byte{ch})
			c.typed = append(c.typed, ch)
			continue
		}
		_, _ = c.stdin.Write(c.typed) // the same
		c.typed = nil
	}
	return len(b), nil
}

// attach connects a client. Replayed lines come before anything new.
func (c *console) attach(ctx context.Context, o api.AttachOptions) api.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &sink{out: o.Stdout, err: o.Stderr}
	if o.Logs {
		for _, l := range c.lines {
			if l.stream == stdcopy.Stdout && s.out || l.stream == stdcopy.Stderr && s.err {
				_, _ = s.spool.Write(c.frame(l.stream, l.text)) // a new spool takes all
			}
		}
	}
	if o.Stream {
		c.sinks[s] = true
	} else {
		s.spool.end()
	}
	ctx, cancel := context.WithCancel(ctx)
	return api.Session{Duplex: &fakeSession{ctx, cancel, c, s, o.Stdin}, Multiplexed: !c.tty}
}

func (c *console) frame(stream stdcopy.Stream, text []byte) []byte {
	if c.tty {
		return text
	}
	return stdcopy.Append(nil, stream, text)
}

// fakeSession is a client's end of a console.
type fakeSession struct {
	ctx    context.Context // of the call that made it, whose end ends it
	cancel context.CancelFunc
	c      *console
	sink   *sink
	stdin  bool
}

func (s *fakeSession) Read(b []byte) (int, error) { return s.sink.spool.readContext(s.ctx, b) }

func (s *fakeSession) Write(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	if !s.stdin {
		return len(b), nil
	}
	return s.c.input(b)
}

func (s *fakeSession) CloseWrite() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.stdin && s.c.once && !s.c.tty {
		s.c.stdin.end()
	}
	return nil
}

func (s *fakeSession) Close() error {
	s.cancel()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.sinks, s.sink)
	return nil
}

// logs streams the log; alive says whether the process may still write.
func (c *console) logs(ctx context.Context, o api.LogsOptions, alive func() bool) api.Output {
	out := &spool{}
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	next := 0
	if o.Tail >= 0 {
		next = c.tailStart(o)
	}
	c.mu.Unlock()
	go func() {
		defer out.end()
		for {
			c.mu.Lock()
			changed := c.changed // before asking, so that the end isn't missed
			c.mu.Unlock()
			running := alive() // before looking, so that the last lines aren't missed
			c.mu.Lock()
			lines := c.lines[next:]
			next = len(c.lines)
			c.mu.Unlock()
			for _, l := range lines {
				if wanted(o, l) {
					_, _ = out.Write(c.frame(l.stream, stamp(l, o.Timestamps))) // out is ended here only
				}
			}
			if !o.Follow || !running {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return api.Output{ReadCloser: &logReader{contextReader{ctx, out}, cancel}, Multiplexed: !c.tty}
}

// tailStart is the position from which o.Tail lines that o wants are left.
func (c *console) tailStart(o api.LogsOptions) int {
	n := len(c.lines)
	for left := o.Tail; n > 0; n-- {
		if !wanted(o, c.lines[n-1]) {
			continue
		}
		if left == 0 {
			break
		}
		left--
	}
	return n
}

func wanted(o api.LogsOptions, l logLine) bool {
	return (l.stream == stdcopy.Stdout && o.Stdout || l.stream == stdcopy.Stderr && o.Stderr) &&
		!l.at.Before(o.Since) && (o.Until.IsZero() || !l.at.After(o.Until))
}

// stampLayout is RFC 3339 with all nine digits, so that stamps line up and sort.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

func stamp(l logLine, on bool) []byte {
	if !on {
		return l.text
	}
	return append([]byte(l.at.UTC().Format(stampLayout)+" "), l.text...)
}

type logReader struct {
	contextReader
	cancel context.CancelFunc
}

func (r *logReader) Close() error {
	r.cancel()
	return nil
}
