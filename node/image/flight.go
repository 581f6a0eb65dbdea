package image

import (
	"context"
	"sync"
)

// flights makes callers that want the same thing at once share the work.
type flights[K comparable] struct {
	mu sync.Mutex
	m  map[K]*flight
}

type flight struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{} // closed: err is set
	err     error
}

// do runs f unless it runs already for key, and waits for it. f's context keeps
// ctx's values and is cancelled when nobody waits any more.
func (fs *flights[K]) do(ctx context.Context, key K, f func(context.Context) error) error {
	fs.mu.Lock()
	fl := fs.m[key]
	if fl == nil {
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{})}
		if fs.m == nil {
			fs.m = map[K]*flight{}
		}
		fs.m[key] = fl
		go func() {
			err := f(fctx)
			fs.mu.Lock()
			defer fs.mu.Unlock()
			fl.err = err
			close(fl.done)
			cancel()
			if fs.m[key] == fl {
				delete(fs.m, key)
			}
		}()
	}
	fl.waiters++
	fs.mu.Unlock()

	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if fl.waiters--; fl.waiters == 0 {
			fl.cancel()
			if fs.m[key] == fl { // whoever comes now starts anew
				delete(fs.m, key)
			}
		}
		return context.Cause(ctx)
	}
}
