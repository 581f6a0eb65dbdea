package apiv1

import (
	"context"
	"io"
	"iter"
	"sync"
)

// Stream is a sequence of values that arrive over time. Recv blocks, and returns
// io.EOF after the last value; one goroutine at a time may call it. Close frees
// the stream at any time, from any goroutine, and unblocks Recv.
type Stream[T any] interface {
	Recv() (T, error)
	Close() error
}

// All ranges over a stream and closes it at the end; the error of the last pair
// is nil or what ended the stream early.
func All[T any](s Stream[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer s.Close()
		for {
			v, err := s.Recv()
			if err == io.EOF {
				return
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Pipe makes a stream and the function that feeds it. send blocks until the value
// was received and fails once the stream is closed or ctx ends; finish, called
// once, ends the stream with err (nil means io.EOF) after the values sent.
func Pipe[T any](ctx context.Context) (s Stream[T], send func(T) error, finish func(error)) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe[T]{ctx: ctx, cancel: cancel, values: make(chan T), done: make(chan struct{})}
	return p, p.send, p.finish
}

type pipe[T any] struct {
	ctx    context.Context // the life of the stream, not of one call
	cancel context.CancelFunc
	values chan T
	once   sync.Once
	done   chan struct{} // closed: no further value comes, err is set
	err    error
}

func (p *pipe[T]) send(v T) error {
	select {
	case p.values <- v:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *pipe[T]) finish(err error) {
	p.once.Do(func() {
		p.err = err
		if p.err == nil {
			p.err = io.EOF
		}
		close(p.done)
	})
}

func (p *pipe[T]) Recv() (T, error) {
	var zero T
	select {
	case v := <-p.values:
		return v, nil
	case <-p.done:
		return zero, p.err
	case <-p.ctx.Done():
		select {
		case <-p.done:
			return zero, p.err
		default:
			return zero, context.Cause(p.ctx)
		}
	}
}

func (p *pipe[T]) Close() error {
	p.cancel()
	return nil
}

// One is a stream of a single value computed when it is first received.
func One[T any](ctx context.Context, f func(context.Context) (T, error)) Stream[T] {
	s, send, finish := Pipe[T](ctx)
	go func() {
		v, err := f(s.(*pipe[T]).ctx)
		if err == nil {
			err = send(v)
		}
		finish(err)
	}()
	return s
}

// Output is bytes a container wrote. Multiplexed says that stdout and stderr come
// in Docker's 8-byte-header frames; without it the bytes are raw, as of a terminal.
type Output struct {
	io.ReadCloser
	Multiplexed bool
}

// Duplex is a connection whose two directions end independently.
type Duplex interface {
	io.ReadWriteCloser
	// CloseWrite says that nothing more will be written; reading goes on.
	CloseWrite() error
}

// Session connects a caller with a process.
type Session struct {
	Duplex
	Multiplexed bool
}

var _ Stream[int] = (*pipe[int])(nil)
