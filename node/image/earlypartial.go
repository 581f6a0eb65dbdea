package image

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/node/image/early"
)

// What is different about a partial that containers read already: its bytes are written
// by its earlyBlob, and others write there, too.

// resume goes on with what is there.
func (p *partial) resume(written early.Spans) {
	for _, s := range written {
		p.mark(span{s.Start, s.End})
	}
	p.offset, p.pos, p.sparse = p.prefix(), p.prefix(), true
}

// writeEarly is WriteAt, with io held for reading.
func (p *partial) writeEarly(b []byte, off int64) (int, error) {
	changed, err := p.early.write(b, off)
	n := len(b)
	if err != nil {
		n = 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rewritten(off, changed)
	return n, p.written(off, n, err)
}

// rewritten has bytes hashed again if there were others before; with mu held.
func (p *partial) rewritten(off int64, changed bool) {
	switch {
	case !changed:
	case p.busy > 0:
		p.again = p.again || off < p.busy
	case off < p.hashed: // Commit reads it all again
		p.hash.Reset()
		p.hashed = 0
	}
}

// arrived notes what others wrote, and whether other bytes were there before.
func (p *partial) arrived(s early.Span, changed bool) error {
	p.io.RLock()
	defer p.io.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	p.rewritten(s.Start, changed)
	return p.written(s.Start, int(s.End-s.Start), nil)
}

// judged is verify. Nothing is written meanwhile, nor afterwards if that decided.
func (p *partial) judged(ctx context.Context) error {
	if p.early == nil {
		return p.verify(ctx)
	}
	for _, s := range p.early.judge(true) {
		p.mark(span{s.Start, s.End})
	}
	err := p.verify(ctx)
	if err != nil && !errdefs.IsDataLoss(err) {
		p.early.judge(false)
	}
	return err
}
