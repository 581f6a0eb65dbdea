package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-engine/shoal/api"
)

// Bounds of proposals.
const (
	maxQueue = 1024 // proposals that wait at the leader
	// maxBatch commands or maxBatchBytes make one log entry; a bigger entry saves
	// little more, and every follower must take it in within its time-outs.
	maxBatch      = 512
	maxBatchBytes = 1 << 20
	// inFlight entries are being replicated at a time. With more, batches stay small
	// under load and cost more; with one, the disk idles while answers travel.
	inFlight = 2
	// proposeLimit bounds a proposal or a sync whose context has no deadline.
	proposeLimit = 10 * time.Second
	// lagLimit bounds how long a proposer waits for its own replica after the leader
	// has answered.
	lagLimit = time.Second
	// A proposer without a leader asks again when leadership changes, or after this.
	retryAfter = 250 * time.Millisecond
)

// ErrNoLeader is what proposals and syncs end with while no majority of voters is
// reachable; its class is Unavailable.
var ErrNoLeader = api.Unavailable("the cluster has no leader: names, ports and tags can't change until a majority of its voters is reachable")

var errNotLeading = errors.New("this node doesn't lead")

// retriable says whether to ask again, here or elsewhere.
func retriable(err error) bool {
	var r *retryError
	return errors.As(err, &r) || errors.Is(err, errNotLeading) ||
		errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) || errors.Is(err, raft.ErrAbortedByRestore) ||
		errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, raft.ErrRaftShutdown)
}

// Propose has the leader apply a command and returns what it answered, once this
// node's view shows it (or a second later at the most). Errors of a class are
// answers; with ErrNoLeader or a context's error the outcome is unknown.
func (c *Catalog) Propose(ctx context.Context, cmd Command) (Result, error) {
	e, err := newEntry(cmd, time.Now(), rand.Uint64())
	if err != nil {
		return Result{}, err
	}
	res, err := c.ask(ctx, opPropose, []entry{e})
	if err != nil {
		return Result{}, err
	}
	c.catchUp(ctx, res.Index)
	return res, nil
}

// Sync returns once this node's view shows everything that was acknowledged
// anywhere before the call. It fails with ErrNoLeader, or when ctx ends.
func (c *Catalog) Sync(ctx context.Context) error {
	res, err := c.ask(ctx, opSync, nil)
	if err != nil || res.Index == 0 {
		return err
	}
	return c.state.Wait(ctx, res.Index-1)
}

// catchUp waits a bounded time for the local view to show an index.
func (c *Catalog) catchUp(ctx context.Context, index uint64) {
	if index == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lagLimit)
	defer cancel()
	if err := c.state.Wait(ctx, index-1); err != nil {
		c.log.Debug("this replica lags", "index", index, "error", err)
	}
}

// ask finds the leader and asks it until it answers.
func (c *Catalog) ask(ctx context.Context, o op, batch []entry) (Result, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, proposeLimit, ErrNoLeader)
		defer cancel()
	}
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		res, err := c.askOnce(ctx, o, batch)
		if err == nil || !retriable(err) {
			return res, err
		}
		c.log.Debug("ask the leader again", "error", err)
		again := time.NewTimer(retryAfter)
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return Result{}, c.unanswered(ctx)
		}
		again.Stop()
	}
}

// unanswered is the error of a call that ran out of time.
func (c *Catalog) unanswered(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w", ErrNoLeader)
}

func (c *Catalog) askOnce(ctx context.Context, o op, batch []entry) (Result, error) {
	if c.leading() {
		return c.answer(ctx, o, batch)
	}
	leader, ok := c.Leader()
	if !ok || leader == c.cfg.Wire.ID() {
		return Result{}, errNotLeading
	}
	r := request{op: o}
	if batch != nil {
		r.payload = encodeBatch(batch)
	}
	a, err := c.links.call(ctx, leader, r)
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, c.unanswered(ctx)
		}
		return Result{}, &retryError{err}
	}
	return a.open()
}

// answer is the leader's side of ask.
func (c *Catalog) answer(ctx context.Context, o op, batch []entry) (Result, error) {
	switch o {
	case opSync:
		return c.readIndex()
	case opPropose:
		return c.submit(ctx, batch)
	default:
		return Result{}, api.InvalidArgument("the catalog has no request %d", o)
	}
}

// readIndex is an index that shows everything acknowledged before the call: what
// the leader has applied, once a majority confirms that it still leads.
func (c *Catalog) readIndex() (Result, error) {
	r, done, ok := c.asking()
	if !ok {
		return Result{}, errNotLeading
	}
	defer done()
	index := c.state.view().index
	if err := r.VerifyLeader().Error(); err != nil {
		return Result{}, &retryError{err}
	}
	return Result{Index: index}, nil
}

// pending is a command that waits for its batch.
type pending struct {
	entry entry
	reply chan<- outcome // has room for one
}

func (c *Catalog) submit(ctx context.Context, batch []entry) (Result, error) {
	if len(batch) != 1 {
		return Result{}, api.InvalidArgument("a proposal of %d commands; one is taken", len(batch))
	}
	if _, known := appliers[batch[0].kind]; !known && !batch[0].ignorable {
		return Result{}, api.InvalidArgument("the leader doesn't know command kind %d: upgrade shoal on it first", batch[0].kind)
	}
	reply := make(chan outcome, 1)
	select {
	case c.queue <- pending{batch[0], reply}:
	case <-ctx.Done():
		return Result{}, c.unanswered(ctx)
	}
	select {
	case o := <-reply:
		return o.result, o.err
	case <-ctx.Done():
		return Result{}, c.unanswered(ctx)
	}
}

// batches writes what is queued into the log, as many commands to an entry as have
// come while the entries before were under way.
func (c *Catalog) batches(ctx context.Context, r *raft.Raft) error {
	slots := make(chan struct{}, inFlight)
	for {
		var first pending
		select {
		case first = <-c.queue:
		case <-ctx.Done():
			return nil
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			first.reply <- outcome{err: errNotLeading}
			return nil
		}
		batch := c.gather(first)
		c.asked.Go(func() {
			commit(r, batch)
			<-slots
		})
	}
}

func (c *Catalog) gather(first pending) []pending {
	batch := []pending{first}
	size := len(first.entry.body)
	for len(batch) < maxBatch && size < maxBatchBytes {
		select {
		case p := <-c.queue:
			batch = append(batch, p)
			size += len(p.entry.body)
		default:
			return batch
		}
	}
	return batch
}

// commit replicates one batch and tells everyone what became of his command.
func commit(r *raft.Raft, batch []pending) {
	entries := make([]entry, len(batch))
	for i, p := range batch {
		entries[i] = p.entry
	}
	f := r.Apply(encodeBatch(entries), applyLimit)
	err := f.Error()
	if err == nil {
		switch v := f.Response().(type) {
		case []outcome:
			for i, p := range batch {
				p.reply <- v[i]
			}
			return
		case error:
			err = v
		}
	}
	for _, p := range batch {
		p.reply <- outcome{err: err}
	}
}
