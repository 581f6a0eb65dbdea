package transfer

import (
	"io"
	"slices"
	"sync"
)

// progress is what a fetch under way has so far, shared by those who write it and those
// it is passed on to.
type progress struct {
	r      io.ReaderAt
	pieces int

	mu      sync.Mutex
	have    bitmap
	taken   bitmap        // have, or being written
	log     []uint32      // the pieces that came, in that order; also those removed since
	changed chan struct{} // closed and replaced when log grows or ended is set
	ended   bool
}

func newProgress(r io.ReaderAt, pieces int) *progress {
	return &progress{r: r, pieces: pieces, have: newBitmap(pieces), taken: newBitmap(pieces), changed: make(chan struct{})}
}

// claim says whether the caller shall write a piece: nobody else did or does.
func (g *progress) claim(piece int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taken.has(piece) {
		return false
	}
	g.taken.set(piece)
	return true
}

// add makes a piece that was claimed and written known.
func (g *progress) add(piece int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken.set(piece)
	g.have.set(piece)
	g.log = append(g.log, uint32(piece))
	g.notify()
}

// remove takes a piece back that turned out to be wrong.
func (g *progress) remove(piece int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken.unset(piece)
	g.have.unset(piece)
}

// has says whether a piece is there.
func (g *progress) has(piece int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.have.has(piece)
}

// gap is the first piece from one on that isn't there, or how many pieces there are.
func (g *progress) gap(from int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for from < g.pieces && g.have.has(from) {
		from++
	}
	return from
}

// end says that nothing is to be had here any more.
func (g *progress) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	g.notify()
}

func (g *progress) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// snapshot is the pieces there are and how many of the log they are.
func (g *progress) snapshot() (have bitmap, logged int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.have), len(g.log)
}

// since is the pieces that came after the first from of the log, a channel that is
// closed at the next change, and whether the fetch has ended.
func (g *progress) since(from int) (more []uint32, changed <-chan struct{}, ended bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.log[from:]), g.changed, g.ended
}
