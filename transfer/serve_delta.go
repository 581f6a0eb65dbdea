package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"time"
)

// maxUnpacks bounds how many sessions unpack a blob at a time: each takes memory and,
// while it reads, a processor.
const maxUnpacks = 8

var errWhole = errors.New("the blob moves whole")

// serveDelta tells how a blob is cut, if asked to, and sends the parts of its content
// that are asked for. Only blobs that are held whole are served so.
func (s *session) serveDelta(ctx context.Context, r *bufio.Reader, body []byte) error {
	d, err := decodeDelta(body)
	if err != nil {
		return err
	}
	s.want = want{digest: d.digest, size: d.size}
	content, recipe, err := s.openDelta(ctx, d)
	if err != nil {
		return errors.Join(err, s.write(encodePiece(kindNone, noPiece)))
	}
	defer content.blob.Close()
	defer content.Close()
	if recipe.packing.method != packedNot {
		select {
		case s.p.unpacks <- struct{}{}:
			defer func() { <-s.p.unpacks }()
		default:
			return errors.Join(errors.New("too many blobs are unpacked already"), s.write(encodePiece(kindNone, noPiece)))
		}
	}
	if d.recipe {
		if err := s.tellRecipe(ctx, content.blob, recipe); err != nil {
			return err
		}
	}
	size := d.size
	if recipe.packing.method != packedNot {
		size = recipe.chunks.Size()
	}
	return s.serveReads(r, content, size, s.p.runs(recipe.packing.method))
}

// openDelta opens a blob that is to be served in parts.
func (s *session) openDelta(ctx context.Context, d delta) (*forward, recipe, error) {
	if err := s.permit(ctx, d.digest); err != nil {
		return nil, recipe{}, err
	}
	blob, err := s.store.Open(ctx, d.digest)
	if err != nil {
		return nil, recipe{}, err
	}
	r, err := s.recipe(ctx, d, blob)
	if err == nil {
		switch r.packing.method {
		case packedNot:
		case packedTokens:
		case packedGo, packedFast:
			if !d.packed {
				err = errWhole
			}
		default:
			err = errWhole
		}
	}
	if err != nil {
		blob.Close()
		return nil, recipe{}, err
	}
	return &forward{blob: blob, packing: r.packing}, r, nil
}

// recipe is how a blob is cut. Who asks for parts only doesn't wait until it is: what
// isn't compressed can be sent without that.
func (s *session) recipe(ctx context.Context, d delta, blob Blob) (recipe, error) {
	if s.p.recipes == nil || blob.Size() != d.size {
		return recipe{}, errWhole
	}
	var head [4]byte
	if err := readFull(blob, head[:], 0); err != nil {
		return recipe{}, err
	}
	if d.tokens && bytes.HasPrefix(head[:], gzipMagic) {
		r, err := s.have(ctx, d, byTokens)
		if err != nil || r.packing.method == packedTokens {
			return r, err
		}
	}
	if d.recipe || isCompressed(head[:]) {
		return s.have(ctx, d, byContent)
	}
	return recipe{}, nil
}

// have is a recipe; it is made only for those who ask for it.
func (s *session) have(ctx context.Context, d delta, by form) (recipe, error) {
	if d.recipe {
		return s.p.recipes.of(ctx, s.store, d.digest, by)
	}
	r, err := s.p.recipes.load(d.digest, d.size, by)
	if err != nil {
		err = errors.Join(errWhole, err)
	}
	return r, err
}

// tellRecipe sends how a blob is packed, the sums of its pieces if it is, and its chunks.
func (s *session) tellRecipe(ctx context.Context, blob Blob, r recipe) error {
	if r.packing.method != packedNot {
		pieces, err := countPieces(blob.Size())
		if err != nil {
			return err
		}
		sums, err := sumPieces(ctx, blob, blob.Size(), pieces)
		if err != nil {
			return err
		}
		frames := append([][]byte{frame(kindPacked, r.packing.append(nil)...)}, encodeLayout(r.packing.layout)...)
		for _, b := range append(frames, frame(kindSums, sums...)) {
			if err := s.write(b); err != nil {
				return err
			}
		}
	}
	for _, b := range encodeChunks(r.chunks) {
		if err := s.write(b); err != nil {
			return err
		}
	}
	return nil
}

// serveReads answers reads in their order.
func (s *session) serveReads(r *bufio.Reader, content io.ReaderAt, size int64, compress packer) error {
	buf := pieceBuffers.Get().(*[maxPiece]byte)
	defer pieceBuffers.Put(buf)
	var e economy
	for {
		s.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		kind, body, err := readFrame(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if kind == kindRate {
			if e.rate, err = decodeRate(body); err != nil {
				return err
			}
			continue
		}
		if kind != kindRead {
			return errors.New("unexpected frame")
		}
		ask, err := decodeRead(body, size)
		if err != nil {
			return err
		}
		if err := readFull(content, buf[:ask.len], ask.at); err != nil {
			return err
		}
		if err := s.write(e.pack(compress, buf[:ask.len])); err != nil {
			return err
		}
	}
}

const (
	// slowLink is up to how many bytes a second what moves is compressed in any case.
	slowLink = 100e6
	// tryAgain is after how many runs that went as they are one is compressed again.
	tryAgain = 16
)

// packer makes the frame of a run, as short as it can.
type packer func(content []byte) []byte

// runs is what packs parts of a content.
func (p *Peers) runs(method byte) packer {
	return func(content []byte) []byte {
		if method == packedTokens {
			if b := encodePlanes(p.thorough, p.packer, content); b != nil {
				return b
			}
		}
		return encodeRun(p.packer, content)
	}
}

// economy decides whether to compress what is sent: not if that takes longer than the
// bytes it saves would.
type economy struct {
	rate  float64 // bytes a second that the asker gets; 0 is unknown
	gain  float64 // seconds that compressing a byte won, of the last that was
	plain int     // runs since then that weren't
}

func (e *economy) pack(compress packer, content []byte) []byte {
	if e.gain < 0 && e.plain < tryAgain {
		e.plain++
		return encodeRun(nil, content)
	}
	begin := time.Now()
	b := compress(content)
	e.plain = 0
	if e.rate > slowLink {
		saved := float64(len(content)-len(b)) / e.rate
		e.gain = (saved - time.Since(begin).Seconds()) / float64(len(content))
	}
	return b
}
