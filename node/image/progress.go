package image

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/shoal-engine/shoal/api"
)

// feed is the sending end of a progress stream. Sending never blocks: a layer that
// several callers wait for must not wait for the slowest one's terminal. Byte counts
// that were not read yet are replaced by newer ones, so little is kept.
type feed struct {
	begun chan struct{} // closed: something was sent

	mu     sync.Mutex
	queue  []api.Progress
	counts map[string]int // where in queue the newest count of an ID is
	ended  bool
	more   chan struct{} // has a token when queue or ended changed
}

func newFeed() *feed {
	return &feed{begun: make(chan struct{}), counts: map[string]int{}, more: make(chan struct{}, 1)}
}

func (f *feed) send(p api.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.begun:
	default:
		close(f.begun)
	}
	if i, ok := f.counts[p.ID]; ok && p.Progress != nil && f.queue[i].Status == p.Status {
		f.queue[i] = p
		return
	}
	if p.Progress != nil {
		f.counts[p.ID] = len(f.queue)
	} else {
		delete(f.counts, p.ID) // what follows must not overtake this
	}
	f.queue = append(f.queue, p)
	f.wake()
}

// wake is called with mu held.
func (f *feed) wake() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.wake()
}

// drain passes everything on until end, or until to fails.
func (f *feed) drain(to func(api.Progress) error) error {
	for range f.more {
		f.mu.Lock()
		queue, ended := f.queue, f.ended
		f.queue = nil
		clear(f.counts)
		f.mu.Unlock()
		for _, p := range queue {
			if err := to(p); err != nil {
				return err
			}
		}
		if ended {
			break
		}
	}
	return nil
}

func (f *feed) status(id, status string) { f.send(api.Progress{ID: id, Status: status}) }

func (f *feed) stream(text string) { f.send(api.Progress{Stream: text}) }

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
func (s *Store) start(ctx context.Context, job func(context.Context, *feed) error) (api.Stream[api.Progress], error) {
	ctx, cancel := context.WithCancel(ctx)
	if !s.jobs.begin() {
		cancel()
		return nil, api.Unavailable("the image store is closed")
	}
	unhook := context.AfterFunc(s.jobs.life, cancel)
	stream, send, finish := api.Pipe[api.Progress](ctx)
	f := newFeed()
	result := make(chan error, 1)
	go func() {
		err := job(ctx, f)
		f.end()
		result <- err
	}()
	failed := make(chan error, 1)
	go func() {
		defer s.jobs.end()
		defer unhook()
		if f.drain(send) != nil {
			cancel() // nobody reads any more
		}
		err := <-result
		failed <- err
		finish(err)
	}()
	select {
	case <-f.begun:
	case err := <-failed:
		if err != nil && !f.hasBegun() {
			cancel()
			return nil, err
		}
	}
	return jobStream{stream, cancel}, nil
}

func (f *feed) hasBegun() bool {
	select {
	case <-f.begun:
		return true
	default:
		return false
	}
}

// jobs are goroutines that outlive the call that began them; a store waits for them
// when it is closed.
type jobs struct {
	life context.Context // ends when the store is closed
	quit context.CancelFunc

	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // closed: closed, and no job left
}

func newJobs() *jobs {
	life, quit := context.WithCancel(context.Background())
	return &jobs{life: life, quit: quit, idle: make(chan struct{})}
}

// begin counts a job; false if there may be none any more.
func (j *jobs) begin() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return false
	}
	j.n++
	return true
}

func (j *jobs) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.n--; j.n == 0 && j.closed {
		close(j.idle)
	}
}

func (j *jobs) close() {
	j.quit()
	j.mu.Lock()
	if !j.closed {
		j.closed = true
		if j.n == 0 {
			close(j.idle)
		}
	}
	j.mu.Unlock()
	<-j.idle
}

// meter reports bytes on a stream, not more often than people can read.
type meter struct {
	feed   *feed
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
		m.feed.send(api.Progress{ID: m.id, Status: m.status, Progress: &jsonstream.Progress{Current: n, Total: m.total}})
	}
}
