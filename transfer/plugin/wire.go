package plugin

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
)

// version is that of the protocol. A plugin that knows none of those we offer is not used.
const version = 1

const (
	// maxHeader bounds a line: what it says is a digest, some numbers, or an error.
	maxHeader = 4 << 10
	// maxChunk bounds what follows one length, so that neither side needs much memory.
	maxChunk = 1 << 20
	// chunkSize is how much we send at a time.
	chunkSize = 256 << 10
	// slowest is the rate in bytes a second below which a body counts as not coming.
	slowest = 64 << 10
)

// request is a line to the plugin.
type request struct {
	ID       int64             `json:"id"`
	Op       string            `json:"op"`
	Versions []int             `json:"versions,omitempty"`
	Settings map[string]string `json:"settings,omitempty"`
	Digest   digest.Digest     `json:"digest,omitempty"`
	Size     int64             `json:"size,omitempty"`
	Offset   int64             `json:"offset,omitempty"`
}

// reply is a line from the plugin.
type reply struct {
	ID      int64  `json:"id"`
	OK      bool   `json:"ok"`
	Error   string `json:"error"`
	Wait    bool   `json:"wait"`
	Version int    `json:"version"`
	Put     bool   `json:"put"`
	Size    int64  `json:"size"`
	Offset  int64  `json:"offset"`
}

// fault is a breach of the protocol, or the end of the process: it can't be talked to
// any more.
type fault struct{ err error }

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func faultf(format string, a ...any) error { return &fault{fmt.Errorf(format, a...)} }

// refusal is what a plugin says went wrong, in order.
type refusal string

func (r refusal) Error() string { return "it says: " + strconv.Quote(string(r)) }

// conn is one exchange at a time with a process.
type conn struct {
	r *bufio.Reader
	w io.Writer
	// arm gives reading and writing until a moment.
	arm  func(time.Time) error
	last *int64 // the ID of the last request

	silence  time.Duration // how long nothing may come
	patience time.Duration // how long an answer may take that is announced
}

func newConn(r io.Reader, w io.Writer, arm func(time.Time) error, silence, patience time.Duration) *conn {
	return &conn{r: bufio.NewReaderSize(r, maxHeader), w: w, arm: arm, last: new(int64), silence: silence, patience: patience}
}

// until gives the next read or write its time, but none after end.
func (c *conn) until(end time.Time) error {
	next := time.Now().Add(c.silence)
	if end.Before(next) {
		next = end
	}
	if err := c.arm(next); err != nil {
		return &fault{err}
	}
	return nil
}

// broken names what a failed read or write means.
func (c *conn) broken(doing string, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return faultf("%s: nothing came in time", doing)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrClosed):
		return faultf("%s: its process ended", doing)
	}
	return faultf("%s: %w", doing, err)
}

// quick is a conn for what must not take long.
func (c *conn) quick(silence, patience time.Duration) *conn {
	q := *c
	q.silence, q.patience = min(c.silence, silence), min(c.patience, patience)
	return &q
}

// ask sends a request and returns the answer to it. A plugin's error is a refusal.
func (c *conn) ask(q request) (reply, error) {
	*c.last++
	q.ID = *c.last
	line, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	if len(line) >= maxHeader {
		return reply{}, fmt.Errorf("%s: a request of %d bytes is too long", q.Op, len(line))
	}
	if err := c.until(time.Now().Add(c.patience)); err != nil {
		return reply{}, err
	}
	if _, err := c.w.Write(append(line, '\n')); err != nil {
		return reply{}, c.broken(q.Op, err)
	}
	return c.answer(q.Op)
}

// answer reads the answer to the last request, and through the lines that say that it
// takes a while.
func (c *conn) answer(doing string) (reply, error) {
	end := time.Now().Add(c.patience)
	for {
		if err := c.until(end); err != nil {
			return reply{}, err
		}
		line, err := c.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return reply{}, faultf("%s: its answer has a line of more than %d bytes", doing, maxHeader)
		}
		if err != nil {
			return reply{}, c.broken(doing, err)
		}
		a, err := decodeReply(line)
		switch {
		case err != nil:
			return reply{}, faultf("%s: %w", doing, err)
		case a.ID != *c.last:
			return reply{}, faultf("%s: it answers request %d, not %d", doing, a.ID, *c.last)
		case a.Wait:
			continue
		case a.Error != "":
			return reply{}, refusal(a.Error)
		}
		return a, nil
	}
}

// decodeReply reads a line; fields that we don't know are left to later versions.
func decodeReply(line []byte) (reply, error) {
	var a reply
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("its answer %s is no answer: %w", strconv.Quote(string(line[:min(len(line), 60)])), err)
	}
	if a.Size < 0 || a.Offset < 0 {
		return a, errors.New("its answer has a negative number")
	}
	return a, nil
}

// errSink is a failure to keep what came; the plugin isn't to blame.
type errSink struct{ error }

func (e errSink) Unwrap() error { return e.error }

// receive reads a body of at most limit bytes and passes its pieces to sink, which
// must not keep them.
func (c *conn) receive(limit int64, sink func([]byte) error) error {
	end := time.Now().Add(c.patience + time.Duration(limit/slowest)*time.Second)
	buf := make([]byte, 64<<10)
	for left := limit; ; {
		if err := c.until(end); err != nil {
			return err
		}
		var head [4]byte
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return c.broken("get", err)
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		switch {
		case n == 0:
			_, err := c.answer("get")
			return err
		case n > maxChunk:
			return faultf("get: it announces a piece of %d bytes, more than the %d allowed", n, maxChunk)
		case n > left:
			return faultf("get: it sends more than the %d bytes that the blob has", limit)
		}
		left -= n
		for n > 0 {
			if err := c.until(end); err != nil {
				return err
			}
			k, err := c.r.Read(buf[:min(n, int64(len(buf)))])
			n -= int64(k)
			if k > 0 {
				if err := sink(buf[:k]); err != nil {
					return errSink{err}
				}
			}
			if err != nil {
				return c.broken("get", err)
			}
		}
	}
}

// send writes a body and returns the plugin's answer to it.
func (c *conn) send(body io.Reader, size int64) error {
	end := time.Now().Add(c.patience + time.Duration(size/slowest)*time.Second)
	buf := make([]byte, 4+chunkSize)
	for {
		n, err := io.ReadFull(body, buf[4:])
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return errSink{err}
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if err := c.until(end); err != nil {
			return err
		}
		if _, err := c.w.Write(buf[:4+n]); err != nil {
			return c.broken("put", err)
		}
		if n > 0 {
			continue
		}
		_, err = c.answer("put")
		return err
	}
}
