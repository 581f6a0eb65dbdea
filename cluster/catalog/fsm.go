package catalog

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// fsm lets raft drive a State. Once an entry can't be applied it applies no further
// one: a replica that stops is better than one that differs.
type fsm struct {
	state *State
	// applied is called after every entry, with the index that is visible now.
	applied func(index uint64)
	// failed is called once, with why the replica can't go on.
	failed func(error)

	mu     sync.Mutex // guards broken
	broken error
}

func (f *fsm) stop(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken == nil {
		f.broken = err
		f.failed(err)
	}
	return f.broken
}

func (f *fsm) stopped() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

// Apply returns []outcome, or the error that stopped the replica.
func (f *fsm) Apply(l *raft.Log) any {
	if err := f.stopped(); err != nil {
		return err
	}
	batch, err := decodeBatch(l.Data)
	if err != nil {
		return f.stop(fmt.Errorf("read the catalog's log at index %d: %w", l.Index, err))
	}
	out, err := f.state.apply(l.Index, batch)
	if err != nil {
		return f.stop(err)
	}
	f.applied(l.Index)
	return out
}

// StoreConfiguration notes who votes.
func (f *fsm) StoreConfiguration(index uint64, c raft.Configuration) {
	if f.stopped() != nil {
		return
	}
	var voters []string
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, string(s.ID))
		}
	}
	slices.Sort(voters)
	if err := f.state.setVoters(index, voters); err != nil {
		_ = f.stop(err) // kept for Run and for every later Apply
		return
	}
	f.applied(index)
}

// Snapshot costs nothing; Persist does the work while further entries are applied.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.stopped(); err != nil {
		return nil, err
	}
	return fsmSnapshot{f.state.view()}, nil
}

// Restore replaces the state with a snapshot's, or leaves it and returns an error.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	db, index, err := readSnapshot(r)
	if err != nil {
		return err
	}
	f.state.mu.Lock()
	f.state.reset(db, index)
	f.state.mu.Unlock()
	f.applied(index)
	return nil
}

type fsmSnapshot struct{ v *view }

func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := writeSnapshot(sink, s.v); err != nil {
		return fmt.Errorf("write snapshot: %w", cancelled(sink, err))
	}
	return sink.Close()
}

func cancelled(sink raft.SnapshotSink, err error) error {
	if e := sink.Cancel(); e != nil {
		return fmt.Errorf("%w; remove what was written: %w", err, e)
	}
	return err
}

func (fsmSnapshot) Release() {}

var _ raft.ConfigurationStore = (*fsm)(nil)
