package catalog

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// promptTransport tells followers at once what was committed. By itself raft's
// leader mentions its commit index only with the next entry or after
// Config.CommitTimeout, so that on a quiet cluster every write would take that
// long to be seen, or followers would have to be polled all the time.
//
// Once a follower has acknowledged an entry and the leader has committed it, an
// empty AppendEntries of the same term says so. It names as previous entry the
// last that the follower acknowledged, and a commit index no higher than that
// entry: what raft itself might send at that moment, so that order and losses
// don't matter.
//
// And a follower that comes back is told at once. By itself raft's leader waits twice as
// long after each failure to replicate, for ten seconds at last, even though heartbeats
// reach the follower again; where a majority needs it, nothing changes meanwhile.
type promptTransport struct {
	*raft.NetworkTransport
	tasks sync.WaitGroup
	over  chan struct{} // closed together with closed being set

	mu        sync.Mutex
	closed    bool
	commit    uint64
	followers map[raft.ServerID]*follower
}

// follower is what the leader knows of one; guarded by promptTransport.mu.
type follower struct {
	target raft.ServerAddress
	base   raft.AppendEntriesRequest // header, term and leader of the last request
	index  uint64                    // of the last entry acknowledged in that term
	term   uint64                    // of that entry
	commit uint64                    // it was told
	busy   bool
}

func newPromptTransport(t *raft.NetworkTransport) *promptTransport {
	return &promptTransport{NetworkTransport: t, over: make(chan struct{}), followers: map[raft.ServerID]*follower{}}
}

// A replication that fails is tried again every tryAgain, and fails after tryFor: raft
// counts one failure instead of many.
const (
	tryAgain = 200 * time.Millisecond
	tryFor   = 10 * time.Second
)

// AppendEntries notes what was acknowledged.
func (t *promptTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	for began := time.Now(); err != nil && !isHeartbeat(req) && time.Since(began) < tryFor && t.pause(); {
		err = t.NetworkTransport.AppendEntries(id, target, req, resp)
	}
	if err == nil {
		t.acknowledged(id, target, req, resp)
	}
	return err
}

// isHeartbeat says whether a request only keeps a follower from standing for election.
// Raft sees to these itself, and twice a second.
func isHeartbeat(req *raft.AppendEntriesRequest) bool {
	return len(req.Entries) == 0 && req.PrevLogEntry == 0 && req.LeaderCommitIndex == 0
}

// pause is the time until the next try; false if there is to be none.
func (t *promptTransport) pause() bool {
	timer := time.NewTimer(tryAgain)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.over:
		return false
	}
}

// giveUp ends what is tried again: raft waits for it when it is shut down.
func (t *promptTransport) giveUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		close(t.over)
	}
}

// AppendEntriesPipeline notes what was acknowledged.
func (t *promptTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &promptPipeline{AppendPipeline: inner, out: make(chan raft.AppendFuture), done: make(chan struct{})}
	go p.run(func(f raft.AppendFuture) { t.acknowledged(id, target, f.Request(), f.Response()) })
	return p, nil
}

type promptPipeline struct {
	raft.AppendPipeline
	out  chan raft.AppendFuture
	done chan struct{} // closed by Close
	once sync.Once
}

func (p *promptPipeline) run(acknowledged func(raft.AppendFuture)) {
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			if f.Error() == nil {
				acknowledged(f)
			}
			select {
			case p.out <- f:
			case <-p.done:
				return
			}
		case <-p.done:
			return
		}
	}
}

func (p *promptPipeline) Consumer() <-chan raft.AppendFuture { return p.out }

func (p *promptPipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	return p.AppendPipeline.Close()
}

func (t *promptTransport) acknowledged(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	index, term := req.PrevLogEntry, req.PrevLogTerm
	if n := len(req.Entries); n > 0 {
		index, term = req.Entries[n-1].Index, req.Entries[n-1].Term
	}
	if !resp.Success || index == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.followers[id]
	if f == nil || f.base.Term < req.Term {
		f = &follower{base: raft.AppendEntriesRequest{
			RPCHeader: req.RPCHeader, Term: req.Term, Leader: req.Leader,
		}}
		t.followers[id] = f
	}
	if req.Term < f.base.Term || index < f.index {
		return
	}
	f.target, f.index, f.term = target, index, term
	f.commit = max(f.commit, min(req.LeaderCommitIndex, index))
	t.tell(id, f)
}

// committed says how far this node has applied the log.
func (t *promptTransport) committed(index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit = max(t.commit, index)
	for id, f := range t.followers {
		t.tell(id, f)
	}
}

// tell is called with mu held.
func (t *promptTransport) tell(id raft.ServerID, f *follower) {
	commit := min(t.commit, f.index)
	if commit <= f.commit || f.busy || t.closed {
		return
	}
	f.busy = true
	req := f.base
	req.PrevLogEntry, req.PrevLogTerm, req.LeaderCommitIndex = f.index, f.term, commit
	target := f.target
	t.tasks.Go(func() {
		var resp raft.AppendEntriesResponse
		err := t.NetworkTransport.AppendEntries(id, target, &req, &resp)
		t.mu.Lock()
		defer t.mu.Unlock()
		f.busy = false
		if err == nil && resp.Success {
			f.commit = max(f.commit, commit)
			t.tell(id, f)
		}
	})
}

// lag is how many entries a follower is known to miss; false if nothing is known.
func (t *promptTransport) lag(id raft.ServerID, last uint64) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.followers[id]
	if f == nil || f.index > last {
		return 0, f != nil
	}
	return last - f.index, true
}

// forgetFollowers is called when leadership ends.
func (t *promptTransport) forgetFollowers() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.followers)
}

// Close ends all streams and waits for what is under way.
func (t *promptTransport) Close() error {
	t.giveUp()
	err := t.NetworkTransport.Close()
	t.tasks.Wait()
	return err
}

var (
	_ raft.Transport   = (*promptTransport)(nil)
	_ raft.WithPreVote = (*promptTransport)(nil)
	_ raft.WithClose   = (*promptTransport)(nil)
)
