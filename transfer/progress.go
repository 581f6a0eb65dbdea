package transfer

import (
	"io"
	"slices"
	"sync"
	"time"
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
	outside []int // pieces that came by another way, for the swarm to note
	spared  []spare
}

// spare is a range of pieces that are being fetched by another way, until a time.
type spare struct {
	from, end int
	until     time.Time
}

const (
	// spareTime is for how long pieces are left to another way, and maxSpares how many
	// ranges of them there are.
	spareTime = 2 * time.Second
	maxSpares = 8
)

// spare leaves pieces to another way for a time.
func (g *progress) spare(from, end int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.spared) == maxSpares {
		g.spared = slices.Delete(g.spared, 0, 1)
	}
	g.spared = append(g.spared, spare{from, end, time.Now().Add(spareTime)})
}

// sparing is the set of pieces that are left to another way; nil if there are none.
func (g *progress) sparing() bitmap {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.spared = slices.DeleteFunc(g.spared, func(s spare) bool { return now.After(s.until) })
	if len(g.spared) == 0 {
		return nil
	}
	m := newBitmap(g.pieces)
	for _, s := range g.spared {
		for i := s.from; i < s.end; i++ {
			m.set(i)
		}
	}
	return m
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

// addOutside makes a piece known that was written by another way than the swarm's.
func (g *progress) addOutside(piece int) {
	if !g.claim(piece) {
		return
	}
	g.add(piece)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.outside = append(g.outside, piece)
}

// takeOutside is what addOutside was told of since it was last called.
func (g *progress) takeOutside() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.outside
	g.outside = nil
	return out
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
