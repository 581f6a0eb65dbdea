package image

import (
	"errors"
	"sync"

	"github.com/shoal-engine/shoal/api"
)

// errNoRoom means that the trees of layers which wait for others below them take all
// memory there is for them. Whoever gets it lets the others go first.
var errNoRoom = errors.New("other layers' trees take the memory there is for them")

const (
	// maxTrees bounds the memory of trees that wait, of all layers together.
	maxTrees = 256 << 20
	// maxTree bounds that of one layer whose turn it is: 4 million entries fit.
	maxTree = 1 << 30
)

// room is the memory for trees of layers.
type room struct {
	mu   sync.Mutex
	used int64
}

// share is what one layer has of it.
type share struct {
	room *room
	// turn says that all layers below are there, so that this one waits for nobody:
	// it need not fit beside the others.
	turn bool
	used int64
}

func (r *room) share(turn bool) *share { return &share{room: r, turn: turn} }

func (s *share) take(n int64) error {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	if s.used+n > maxTree {
		return api.InvalidArgument("layer's names and attributes take more than %d bytes", maxTree)
	}
	if !s.turn && s.room.used+n > maxTrees {
		return errNoRoom
	}
	s.used += n
	s.room.used += n
	return nil
}

// release gives all back.
func (s *share) release() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.used -= s.used
	s.used = 0
}
