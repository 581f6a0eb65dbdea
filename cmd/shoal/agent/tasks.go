package agent

import (
	"context"
	"sync"
)

// tasks are what runs only as long as something lasts.
type tasks struct {
	parent context.Context // the agent's life
	mu     sync.Mutex
	cancel context.CancelFunc // nil while nothing runs
	done   chan struct{}      // closed: what ran has ended
}

func newTasks(parent context.Context) *tasks { return &tasks{parent: parent} }

// start runs f until stop, or until the agent ends.
func (t *tasks) start(f func(context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithCancel(t.parent)
	done := make(chan struct{})
	t.cancel, t.done = cancel, done
	go func() {
		defer close(done)
		f(ctx)
	}()
}

// stop ends what runs and waits for it; nothing running is no error.
func (t *tasks) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cancel == nil {
		return
	}
	t.cancel()
	<-t.done
	t.cancel = nil
}
