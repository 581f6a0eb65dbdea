package transfer

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// supplier is a session with a peer that a blob is fetched from. Fields without a note
// belong to the swarm's loop.
type supplier struct {
	peer   string
	beside bool // the peer has another session, over the usual connection
	conn   net.Conn
	out    chan []byte // frames to send; closed by the loop

	arrivals chan *arrival // to keep; closed by the reader

	pieceSize float64

	known   bool // has said what it has
	whole   bool
	origin  bool // gets from outside what nobody else has
	have    bitmap
	asked   []request // unanswered, in order
	checks  bool      // was asked for the pieces' sums
	nones   int       // since the last piece
	came    int       // pieces
	perByte float64   // nanoseconds, averaged; 0 is unknown
	since   time.Time // when the front of asked came to be the front

	span   int       // bytes read since spanAt; the reader's own, as what follows
	spanAt time.Time // zero: not begun
	peak   float64   // the most bytes a second over a span

	lastByte atomic.Int64 // UnixNano of the last arrival, or of the first request of several
}

// request is for a piece, or for any of a set.
type request struct {
	piece  int    // -1 while the peer hasn't chosen
	any    bitmap // nil if a piece was asked for
	at     time.Time
	before int // how many others it had to wait for
}

// chooses says whether the peer is a source of pieces that no other has, so that it knows
// best which of them to send to whom.
func (u *supplier) chooses() bool { return u.whole || u.origin }

var pieceBuffers = sync.Pool{New: func() any { return new([maxPiece]byte) }}

// smallBuffers are for pieces of the smallest size, which are the most by far.
var smallBuffers = sync.Pool{New: func() any { return new([minPiece]byte) }}

// pieceBuffer lends a buffer of a length until free is called.
func pieceBuffer(length int) (b []byte, free func()) {
	if length <= minPiece {
		small := smallBuffers.Get().(*[minPiece]byte)
		return small[:length], func() { smallBuffers.Put(small) }
	}
	large := pieceBuffers.Get().(*[maxPiece]byte)
	return large[:length], func() { pieceBuffers.Put(large) }
}

// write sends the frames of out.
func (u *supplier) write(ctx context.Context) error {
	for {
		select {
		case b, ok := <-u.out:
			if !ok {
				return nil
			}
			u.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := u.conn.Write(b); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read takes frames in until the stream fails, and hands what they say to the loop.
func (u *supplier) read(ctx context.Context, s *swarm) error {
	r := bufio.NewReaderSize(u.conn, 4<<10)
	for {
		kind, size, err := readHeader(r)
		if err != nil {
			return unexpected(err)
		}
		u.lastByte.Store(time.Now().UnixNano())
		if kind == kindData {
			err = u.readPiece(ctx, s, r, size)
		} else {
			body := make([]byte, size)
			if _, err = io.ReadFull(r, body); err == nil {
				err = u.handle(ctx, s, kind, body)
			}
		}
		if err != nil {
			return unexpected(err)
		}
	}
}

// handle takes a frame other than data.
func (u *supplier) handle(ctx context.Context, s *swarm, kind byte, body []byte) error {
	switch kind {
	case kindHave:
		h, err := decodeHave(body, s.f.pieces)
		if err != nil {
			return err
		}
		if h.state == stateNone {
			return errHasNone
		}
		if h.state == stateBusy {
			return errBusy
		}
		return s.post(ctx, func() { s.onHave(u, h) })
	case kindMore:
		pieces, err := decodeMore(body, s.f.pieces)
		if err != nil {
			return err
		}
		return s.post(ctx, func() { s.onMore(u, pieces) })
	case kindSums:
		sums, err := decodeSums(body, s.f.pieces)
		if err != nil {
			return err
		}
		return s.post(ctx, func() { s.onSums(u.peer, sums) })
	case kindPeers:
		ids, err := decodePeers(body)
		if err != nil {
			return err
		}
		return s.post(ctx, func() { s.onPeers(ids) })
	case kindNone:
		if _, err := decodePiece(body); err != nil {
			return err
		}
		return s.post(ctx, func() { s.onNone(u) })
	}
	return errors.New("unexpected frame")
}

// peakSpan is over how many bytes a rate is taken: more than a link lets through in one
// burst, and few enough that not all of them meet a busy processor.
const peakSpan = 512 << 10

// clock notes how fast bytes come.
func (u *supplier) clock(n int) {
	if u.spanAt.IsZero() {
		u.spanAt = time.Now()
		return
	}
	if u.span += n; u.span < peakSpan {
		return
	}
	now := time.Now()
	if took := now.Sub(u.spanAt); took > 0 {
		u.peak = max(u.peak, float64(u.span)/took.Seconds())
	}
	u.span, u.spanAt = 0, now
}

// readPiece reads the frames of a piece, the first of which has begun, and writes it.
func (u *supplier) readPiece(ctx context.Context, s *swarm, r *bufio.Reader, size int) error {
	first, n, err := readDataHead(r, size, s.f.pieces)
	if err != nil {
		return err
	}
	piece := int(first.piece)
	length := pieceLen(s.f.size, piece)
	buf, free := pieceBuffer(length)
	given := false
	defer func() {
		if !given {
			free()
		}
	}()
	if err := s.post(ctx, func() { s.onBegun(u, piece) }); err != nil {
		return err
	}
	head, off := first, 0
	note := pieceNote{peer: u.peer, verified: first.verified, unsummed: s.alone.Load()}
	for {
		if off+n > length || head.piece != first.piece {
			return errors.New("data beyond the piece")
		}
		for n > 0 { // in parts, so that a slow peer is seen to be alive
			k, err := r.Read(buf[off : off+n])
			if err != nil {
				return unexpected(err)
			}
			u.lastByte.Store(time.Now().UnixNano())
			u.clock(k)
			off, n = off+k, n-k
			note.add(s.notes.seed, buf[:off], false)
		}
		if head.last {
			break
		}
		if head, n, err = u.nextData(ctx, s, r); err != nil {
			return err
		}
	}
	if off != length {
		return errors.New("piece is cut short")
	}
	note.add(s.notes.seed, buf, true)
	given = true
	return u.arrived(ctx, s, &arrival{piece: piece, content: buf, free: free, note: note, peak: u.peak})
}

// nextData reads up to the content of the next data frame; news may come between.
func (u *supplier) nextData(ctx context.Context, s *swarm, r *bufio.Reader) (dataHead, int, error) {
	for {
		kind, size, err := readHeader(r)
		if err != nil {
			return dataHead{}, 0, err
		}
		if kind == kindData {
			return readDataHead(r, size, s.f.pieces)
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return dataHead{}, 0, err
		}
		if kind == kindNone {
			return dataHead{}, 0, errors.New("piece is cut short")
		}
		if err := u.handle(ctx, s, kind, body); err != nil {
			return dataHead{}, 0, err
		}
	}
}
