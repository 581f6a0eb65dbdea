package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// ctr is one container in memory.
type ctr struct {
	id, dir string
	op      lock // see the lock order in doc.go

	mu      sync.Mutex
	rec     record
	task    runtime.Task // nil while there is none
	waiters map[*waiter]struct{}
	pending map[*lateSession]struct{} // attached, to be connected at the next start
	execs   map[string]*exec
	ended   chan struct{} // closed: the process that ran is gone and recorded. Nil until started
	removed chan struct{} // closed: the container is gone
	// stopping says that somebody asked for the end that comes next, so that no
	// restart policy revives the container.
	stopping bool
	keep     bool // the end that comes next is part of a restart: it removes nothing
	barred   int  // how many forced removals are under way, which let nobody start it
	// revive ends the pause before a restart; nil unless restarting.
	revive context.CancelFunc
	delay  time.Duration // before the next restart
}

func newCtr(dir string, r record) *ctr {
	return &ctr{
		id: r.ID, dir: dir, op: newLock(), rec: r,
		waiters: map[*waiter]struct{}{},
		pending: map[*lateSession]struct{}{},
		execs:   map[string]*exec{},
		removed: make(chan struct{}),
	}
}

// bar lets nobody start the container until the function it returns is called.
func (c *ctr) bar() (lift func()) {
	add := func(n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.barred += n
	}
	add(1)
	return func() { add(-1) }
}

func (c *ctr) isBarred() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.barred > 0
}

// get returns the record as it is now.
func (c *ctr) get() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.clone()
}

// getTask returns the record and the task as they are now.
func (c *ctr) getTask() (record, runtime.Task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.clone(), c.task
}

// running returns the task of a container that has a process, and else Docker's
// refusal.
func (c *ctr) running() (record, runtime.Task, error) {
	r, task := c.getTask()
	if !r.State.live() || task == nil {
		return r, nil, api.Conflict("container %s is not running", c.id)
	}
	return r, task, nil
}

// update changes the record, in memory and on disk. A change that can't be
// written is not made.
func (c *ctr) update(change func(*record) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.updateLocked(change)
}

func (c *ctr) updateLocked(change func(*record) error) error {
	next := c.rec.clone()
	if err := change(&next); err != nil {
		return err
	}
	if err := next.save(c.dir); err != nil {
		return fmt.Errorf("write the record of container %s: %w", c.id, err)
	}
	c.rec = next
	return nil
}

// forceLocked changes the record as updateLocked does, but in memory also where it
// can't be written: for what has happened whether there is room on the disk or not.
func (c *ctr) forceLocked(change func(*record) error) error {
	next := c.rec.clone()
	if err := change(&next); err != nil {
		return err
	}
	c.rec = next
	if err := next.save(c.dir); err != nil {
		return fmt.Errorf("write the record of container %s: %w", c.id, err)
	}
	return nil
}

// waiter is one registered wait.
type waiter struct {
	removal bool // only a removal ends it
	result  chan container.WaitResponse
}

// addWaiter registers a wait, or answers at once if the condition holds.
func (c *ctr) addWaiter(cond container.WaitCondition) *waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &waiter{removal: cond == container.WaitConditionRemoved, result: make(chan container.WaitResponse, 1)}
	if cond == container.WaitConditionNotRunning && !c.rec.State.active() {
		w.result <- c.waitResponseLocked()
		return w
	}
	c.waiters[w] = struct{}{}
	return w
}

func (c *ctr) dropWaiter(w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, w)
}

// wakeLocked answers those who wait for an end and, at a removal, all others.
func (c *ctr) wakeLocked(removal bool) {
	for w := range c.waiters {
		if removal || !w.removal {
			w.result <- c.waitResponseLocked()
			delete(c.waiters, w)
		}
	}
}

func (c *ctr) waitResponseLocked() container.WaitResponse {
	return container.WaitResponse{StatusCode: int64(c.rec.State.ExitCode)}
}

// lock is a mutex that a context can give up on.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lock) release() { <-l }
