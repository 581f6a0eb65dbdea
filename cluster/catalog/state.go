package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
)

// State is one copy of the catalog. It applies commands one after the other and
// gives out views that don't change. By itself, without a log and without other
// replicas, it serves as a catalog in memory.
type State struct {
	mu      sync.Mutex // held while a change is made; readers take no lock
	db      *memdb.MemDB
	current atomic.Pointer[moment]
}

// moment is a view together with the channel that is closed when the next one is
// there.
type moment struct {
	view
	next chan struct{}
}

// NewState is an empty catalog.
func NewState() *State {
	s := &State{}
	s.reset(newDB(), 0)
	return s
}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		// The schema is a constant of this package and every test opens it.
		panic(fmt.Sprintf("catalog schema: %v", err))
	}
	return db
}

// reset replaces everything, as a snapshot does.
func (s *State) reset(db *memdb.MemDB, index uint64) {
	s.db = db
	s.publish(index)
}

func (s *State) publish(index uint64) {
	last := s.current.Swap(&moment{view: view{db: s.db.Snapshot(), index: index}, next: make(chan struct{})})
	if last != nil {
		close(last.next)
	}
}

// View is the state now.
func (s *State) View() View { return s.view() }

func (s *State) view() *view { return &s.current.Load().view }

// Wait blocks until the view's index is above after.
func (s *State) Wait(ctx context.Context, after uint64) error {
	for {
		m := s.current.Load()
		if m.index > after {
			return nil
		}
		select {
		case <-m.next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Settings are those the cluster began with, with the present secret.
func (s *State) Settings() (SetSettings, bool) { return s.view().settings() }

// Propose applies a command at once: the catalog of one process.
func (s *State) Propose(_ context.Context, c Command) (Result, error) {
	e, err := newEntry(c, time.Now(), rand.Uint64())
	if err != nil {
		return Result{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := s.applyLocked(s.view().index+1, []entry{e})
	if err != nil {
		return Result{}, err
	}
	return out[0].result, out[0].err
}

// Sync has nothing to wait for: there is only this copy.
func (s *State) Sync(context.Context) error { return nil }

// outcome is what one command of a batch came to. Errors here are answers to the
// proposer, the same on every replica; they leave the state as it was.
type outcome struct {
	result Result
	err    error
}

// apply makes the changes of one log entry visible together. An error means that
// this replica can't follow the log any further.
func (s *State) apply(index uint64, batch []entry) ([]outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(index, batch)
}

func (s *State) applyLocked(index uint64, batch []entry) ([]outcome, error) {
	t := s.db.Txn(true)
	defer t.Abort()
	out := make([]outcome, len(batch))
	for i, e := range batch {
		f, known := appliers[e.kind]
		if !known && e.ignorable {
			continue
		}
		if !known {
			return nil, fmt.Errorf("command kind %d at index %d is newer than this version: upgrade shoal on this node", e.kind, index)
		}
		r, err := f(tx{t, e.at, e.seed}, e.body)
		r.Index = index
		out[i] = outcome{r, err}
		if broken := (*corruptError)(nil); errors.As(err, &broken) {
			return nil, fmt.Errorf("apply command kind %d at index %d: %w", e.kind, index, broken)
		}
	}
	t.Commit()
	s.publish(index)
	return out, nil
}

// setVoters notes whose copies vote, on the nodes there are and for those to come.
func (s *State) setVoters(index uint64, voters []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := tx{Txn: s.db.Txn(true)}
	defer t.Abort()
	row := rowSettings(t)
	row.Voters = voters
	if err := put(t, tableSettings, &row); err != nil {
		return err
	}
	for _, n := range pointers[Node](t.Txn, tableNode, "id_prefix", "") {
		if votes := slices.Contains(voters, n.ID); votes != n.Voter {
			changed := *n
			changed.Voter = votes
			if err := put(t, tableNode, &changed); err != nil {
				return err
			}
		}
	}
	t.Commit()
	s.publish(index)
	return nil
}

// Seq are the numbers of the last reports that were taken from a node.
func (s *State) Seq(node string) (containers, images, volumes uint64) {
	last := s.view().seq(node)
	return last.Containers, last.Images, last.Volumes
}
