package transfer

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/shoal-engine/shoal/transfer/chunk"
)

// patch makes a blob's content of what this node holds and the chunks that it lacks.
type patch struct {
	f       *fetch
	store   Store
	recipe  recipe
	sums    []uint32 // of the pieces of a blob that is compressed, as the recipe's giver says
	content int64    // bytes of content
	holders []*holder
	other   *patch  // by another form of the blob; nil: there is none
	wire    int     // bytes that the recipe took
	rate    float64 // bytes a second that peers send

	here    map[chunk.Sum]origin // chunks that are here
	sources []old                // blobs of the store that origins point into

	starts []int64       // where each chunk begins
	from   []origin      // where each chunk is to be had
	after  map[int][]int // chunks that are the same as an earlier one
	to     target
	local  int64 // bytes that were here already
}

// by is the form of blobs that chunks are of.
func (d *patch) by() form {
	if d.recipe.packing.method == packedTokens {
		return byTokens
	}
	return byContent
}

// old is a blob of the store that may be like the one that is made.
type old struct {
	blob    Blob
	packing packing
}

// origin is where a chunk is to be had: in a blob of the store, earlier in the content
// itself, or from a holder.
type origin struct {
	kind   byte
	source int   // of patch.sources
	at     int64 // in its content
}

const (
	originPeer = iota
	originBlob
	originSelf
	originDone
)

// target takes content in any order, each byte once. What it is for may be there in
// part already.
type target interface {
	write(at int64, b []byte) error
	// end waits until all that was written is in the blob.
	end() error
}

// close frees what a patch reads from. A nil one has nothing.
func (d *patch) close() {
	if d == nil {
		return
	}
	d.other.close()
	for _, h := range d.holders {
		h.close()
	}
	for _, s := range d.sources {
		s.blob.Close()
	}
}

// lay decides where each chunk comes from, over pieces that are here, and returns how
// many bytes have to come from peers. It may be called again.
func (d *patch) lay(have bitmap) (missing int64) {
	chunks := d.recipe.chunks
	d.starts, d.from, d.after = make([]int64, len(chunks)), make([]origin, len(chunks)), map[int][]int{}
	first := map[chunk.Sum]int{}
	at := int64(0)
	for i, c := range chunks {
		d.starts[i] = at
		j, seen := first[c.Sum]
		o, here := d.here[c.Sum]
		switch {
		case d.recipe.packing.method == packedNot && d.covered(have, at, int(c.Len)):
			d.from[i].kind = originDone
		case seen && chunks[j].Len == c.Len:
			d.from[i].kind = originSelf
			d.after[j] = append(d.after[j], i)
		default:
			first[c.Sum] = i
			if here {
				d.from[i] = o
			} else {
				missing += int64(c.Len)
			}
		}
		at += int64(c.Len)
	}
	return missing
}

// covered says whether all pieces that bytes lie in are there.
func (d *patch) covered(have bitmap, at int64, n int) bool {
	unit := pieceSize(d.f.size)
	for i := at / unit; i <= (at+int64(n)-1)/unit; i++ {
		if !have.has(int(i)) {
			return false
		}
	}
	return true
}

// run makes the content. What can't be got is no error.
func (d *patch) run(ctx context.Context, r *race) error {
	d.rate = r.rate
	d.to = newPieces(d.f.size, r.w, r.progress, r.report)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if d.recipe.packing.method != packedNot {
		to, err := newRepack(ctx, cancel, d, r)
		if err != nil {
			d.f.p.log.Warn("make room for what a blob unpacks to", "digest", d.f.digest.String(), "err", err)
			return nil
		}
		d.to = to
	}
	have, _ := r.progress.snapshot()
	missing := d.lay(have)
	err := d.gather(ctx)
	if e := d.to.end(); err == nil {
		err = e
	}
	d.f.p.log.Info("blob made from others", "digest", d.f.digest.Encoded()[:12], "bytes", d.f.size,
		"compressor", d.recipe.packing.method, "rate", int64(r.rate), "here", d.local, "lacked", missing, "moved", d.f.moved(), "err", err)
	return err
}

// moved is how many bytes peers have sent so far.
func (f *fetch) moved() (n int64) {
	for _, v := range f.bytes {
		n += v
	}
	return n
}

// arrived is the content of chunks that follow each other, verified.
type arrived struct {
	first, end int
	content    []byte
	peer       string // empty: it was here
	wire       int
	run        *run
	buffer     *[maxPiece]byte // that content lies in, to be reused
}

// gather brings chunks from here and from holders, beside each other.
func (d *patch) gather(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reading, enough := context.WithCancel(ctx)
	defer enough()
	results := make(chan arrived, 2)
	var wg sync.WaitGroup
	for _, jobs := range d.copies() {
		wg.Go(func() { d.copy(ctx, jobs, results) })
	}
	q := d.runs()
	for _, h := range d.holders {
		wg.Go(func() {
			if err := d.readFrom(reading, h, q, results); err != nil && reading.Err() == nil {
				d.f.p.log.Debug("lost a holder", "peer", h.id, "digest", d.f.digest.String(), "err", err)
			}
		})
	}
	go func() { wg.Wait(); close(results) }()
	var failed error
	for a := range results {
		if failed == nil && d.from[a.first].kind != originDone { // else it is a second copy
			if a.peer != "" {
				d.f.count(a.peer, int64(a.wire))
			}
			if failed = d.put(a); failed != nil {
				cancel()
			}
		}
		if a.run != nil {
			if q.settle(a.run, true); q.remaining() == 0 {
				enough() // also to those who still wait for second copies
			}
		}
		if a.buffer != nil {
			pieceBuffers.Put(a.buffer)
		}
	}
	return failed
}

// put writes chunks, wherever the content has them.
func (d *patch) put(a arrived) error {
	b := a.content
	for i := a.first; i < a.end; i++ {
		n := d.recipe.chunks[i].Len
		for _, k := range append([]int{i}, d.after[i]...) {
			if a.peer == "" || k != i {
				d.local += int64(n)
			}
			d.from[k].kind = originDone
			if err := d.to.write(d.starts[k], b[:n]); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

// job is chunks that follow each other in the content and in a source.
type job struct {
	first, end int
	source     int
	at         int64
	len        int
}

// maxJob is how much is copied at once.
const maxJob = 256 << 10

// copies are what is to be copied from blobs here, as lists to be worked on beside each
// other: one, in the content's order, for those that can be read anywhere, and one for
// each other, in its own order.
func (d *patch) copies() [][]job {
	lists := make([][]job, 1+len(d.sources))
	for i, c := range d.recipe.chunks {
		o := d.from[i]
		if o.kind != originBlob {
			continue
		}
		list := &lists[0]
		if d.sources[o.source].packing.method != packedNot {
			list = &lists[1+o.source]
		}
		if k := len(*list) - 1; k >= 0 {
			j := &(*list)[k]
			if j.end == i && j.source == o.source && j.at+int64(j.len) == o.at && j.len+int(c.Len) <= maxJob {
				j.end++
				j.len += int(c.Len)
				continue
			}
		}
		*list = append(*list, job{i, i + 1, o.source, o.at, int(c.Len)})
	}
	for _, list := range lists[1:] {
		slices.SortFunc(list, func(a, b job) int { return cmp.Compare(a.at, b.at) })
	}
	return slices.DeleteFunc(lists, func(l []job) bool { return len(l) == 0 })
}

// copy reads chunks that are here. What isn't what it was when it was cut is left to
// the swarm.
func (d *patch) copy(ctx context.Context, jobs []job, results chan<- arrived) {
	readers := make([]*forward, len(d.sources))
	for i, s := range d.sources {
		readers[i] = &forward{blob: s.blob, packing: s.packing}
		defer readers[i].Close()
	}
	for _, j := range jobs {
		buf := pieceBuffers.Get().(*[maxPiece]byte)
		b := buf[:j.len]
		if err := readFull(readers[j.source], b, j.at); err != nil {
			d.f.p.log.Warn("a blob here can't be read again", "digest", d.f.digest.String(), "err", err)
			return
		}
		for first, off := j.first, 0; first < j.end; {
			end, n := d.proven(first, j.end, b[off:])
			if n == 0 {
				d.f.p.log.Warn("a chunk here isn't what it was", "digest", d.f.digest.String())
				off += int(d.recipe.chunks[first].Len)
				first++
				continue
			}
			a := arrived{first: first, end: end, content: b[off : off+n]}
			if end == j.end {
				a.buffer = buf
			}
			select {
			case results <- a:
			case <-ctx.Done():
				return
			}
			first, off = end, off+n
		}
	}
}

// proven is up to which chunk, and byte, b is what the recipe says.
func (d *patch) proven(first, end int, b []byte) (int, int) {
	n := 0
	for i := first; i < end; i++ {
		c := d.recipe.chunks[i]
		if chunk.SumOf(b[n:n+int(c.Len)]) != c.Sum {
			return i, n
		}
		n += int(c.Len)
	}
	return end, n
}

// pieces is a target that is the blob itself. Bytes of pieces that were complete before
// are left alone: others may be reading them.
type pieces struct {
	size     int64
	w        Writer
	progress *progress
	report   func(int64)
	lacks    []int // by piece, bytes that aren't there yet
	done     int64 // bytes of pieces that are there
}

func newPieces(size int64, w Writer, g *progress, report func(int64)) *pieces {
	p := &pieces{size: size, w: w, progress: g, report: report, lacks: make([]int, g.pieces)}
	have, _ := g.snapshot()
	for i := range p.lacks {
		if have.has(i) {
			p.done += int64(pieceLen(size, i))
		} else {
			p.lacks[i] = pieceLen(size, i)
		}
	}
	return p
}

func (p *pieces) write(at int64, b []byte) error {
	unit := pieceSize(p.size)
	for len(b) > 0 {
		piece := int(at / unit)
		n := int(min(int64(len(b)), pieceAt(p.size, piece)+unit-at))
		if p.lacks[piece] > 0 {
			if _, err := p.w.WriteAt(b[:n], at); err != nil {
				return err
			}
			if p.lacks[piece] -= n; p.lacks[piece] == 0 {
				p.progress.add(piece)
				p.done += int64(pieceLen(p.size, piece))
				p.report(p.done)
			}
		}
		at, b = at+int64(n), b[n:]
	}
	return nil
}

func (p *pieces) end() error { return nil }
