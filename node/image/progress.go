package image

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/shoal-engine/shoal/api"
)

// feed is the sending end of a progress stream. It may be used by several goroutines.
type feed struct {
	send func(api.Progress) error
}

func (f feed) status(id, status string) error {
	return f.send(api.Progress{ID: id, Status: status})
}

func (f feed) stream(text string) error { return f.send(api.Progress{Stream: text}) }

// jobStream cancels its job when it is closed.
type jobStream struct {
	api.Stream[api.Progress]
	cancel context.CancelFunc
}

func (j jobStream) Close() error {
	j.cancel()
	return j.Stream.Close()
}

// start runs a job that feeds a stream. It returns once the job has something to
// say; a job that fails before is an error of start's own.
func (s *Store) start(ctx context.Context, job func(context.Context, feed) error) (api.Stream[api.Progress], error) {
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.life, cancel)
	if s.life.Err() != nil {
		cancel()
		unhook()
		return nil, api.Unavailable("the image store is closed")
	}
	stream, send, finish := api.Pipe[api.Progress](ctx)
	begun, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	f := feed{send: func(p api.Progress) error {
		once.Do(func() { close(begun) })
		return send(p)
	}}
	s.jobs.Add(1)
	go func() {
		defer s.jobs.Done()
		defer unhook()
		err := job(ctx, f)
		ended <- err
		finish(err)
	}()
	select {
	case <-begun:
	case err := <-ended:
		select {
		case <-begun: // both: the stream has it
		default:
			if err != nil {
				cancel()
				return nil, err
			}
		}
	}
	return jobStream{stream, cancel}, nil
}

// meter reports bytes on a stream, not more often than people can read.
type meter struct {
	feed   feed
	id     string
	status string
	total  int64

	mu   sync.Mutex
	last time.Time
}

const meterEvery = 100 * time.Millisecond

// at reports n bytes; the last report of all of them always comes.
func (m *meter) at(n int64) {
	m.mu.Lock()
	now := time.Now()
	due := now.Sub(m.last) >= meterEvery || n == m.total
	if due {
		m.last = now
	}
	m.mu.Unlock()
	if due {
		// A reader that left is noticed where it matters: by the job's context.
		_ = m.feed.send(api.Progress{ID: m.id, Status: m.status, Progress: &jsonstream.Progress{Current: n, Total: m.total}})
	}
}

// metered reports what is read through it.
func metered(r io.Reader, m *meter) io.Reader { return &counter{r: r, tell: m.at} }
