package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	maxSessions  = 2048            // served at a time
	idleTimeout  = 5 * time.Minute // for a peer that asks nothing
	writeTimeout = 30 * time.Second
	// newsTime is how long pieces that come are gathered after others were told of.
	newsTime = 10 * time.Millisecond
)

// Serve answers peers that connect to l, from what store holds and from what this node
// is fetching. It returns when ctx ends or l fails, after all sessions have ended.
func (p *Peers) Serve(ctx context.Context, l net.Listener, store Store) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			p.log.Warn("refuse to serve blobs: too many sessions", "peer", conn.RemoteAddr().String())
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s := &session{p: p, store: store, conn: conn, peer: conn.RemoteAddr().String(), check: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
			defer p.ended(s)
			if err := s.run(ctx); err != nil && ctx.Err() == nil {
				p.log.Debug("serve blob", "peer", s.peer, "digest", s.want.digest.String(), "err", err)
			}
		})
	}
}

// session serves one blob to one peer.
type session struct {
	p     *Peers
	store Store
	conn  net.Conn
	peer  string

	want   want
	pieces int
	blob   *served
	given  bitmap // sent in this session

	check   chan struct{} // has an element when the peer wants the pieces' sums
	writing chan struct{} // holds a token while a frame is written: one at a time

	mu  sync.Mutex
	src source
}

// source is where a session reads from: a blob held whole, or a fetch under way.
type source struct {
	whole Blob
	part  *progress
}

func (s *session) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	defer s.conn.Close()
	r := bufio.NewReaderSize(s.conn, 4<<10)
	s.conn.SetReadDeadline(time.Now().Add(idleTimeout))
	kind, body, err := readFrame(r)
	if err != nil {
		return err
	}
	if kind == kindAsk {
		return s.tellSize(ctx, body)
	}
	if kind == kindDelta {
		return s.serveDelta(ctx, r, body)
	}
	if kind == kindOutline {
		return s.tellOutline(ctx, body)
	}
	if kind == kindTurn {
		return s.serveTurn(ctx, r, body)
	}
	if kind != kindWant {
		return errors.New("first frame opens no session")
	}
	if s.want, err = decodeWant(body); err != nil {
		return err
	}
	s.pieces, _ = countPieces(s.want.size)
	s.given = newBitmap(s.pieces)
	if err = s.permit(ctx, s.want.digest); err == nil {
		err = s.resolve(ctx)
	}
	if err != nil {
		return errors.Join(err, s.write(have{state: stateNone}.encode()))
	}
	defer func() {
		if s.src.whole != nil {
			s.src.whole.Close()
		}
	}()
	var room bool
	if s.blob, room = s.p.enter(s.want, s.peer, s.pieces); !room {
		return s.sendAway()
	}
	defer s.p.leave(s.want, s.peer, s.blob)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := s.news(ctx); err != nil {
			s.conn.Close() // ends the reading below
		}
	})
	wg.Go(func() {
		if err := s.tellSums(ctx); err != nil {
			s.conn.Close()
		}
	})
	return s.answer(ctx, r)
}

// tellSums waits to be asked for the pieces' sums, reads the whole blob for them, once
// for all sessions, and tells them.
func (s *session) tellSums(ctx context.Context) error {
	select {
	case <-s.check:
	case <-ctx.Done():
		return nil
	}
	blob := s.source().whole
	if blob == nil {
		return nil
	}
	s.blob.summing.Lock()
	sums := s.blob.sums
	var err error
	if sums == nil {
		sums, err = sumPieces(ctx, blob, s.want.size, s.pieces)
	}
	if err == nil {
		s.blob.sums = sums
	}
	s.blob.summing.Unlock()
	if err != nil {
		return err
	}
	return s.write(frame(kindSums, sums...))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumPieces(ctx context.Context, r io.ReaderAt, size int64, pieces int) ([]byte, error) {
	buf := pieceBuffers.Get().(*[maxPiece]byte)
	defer pieceBuffers.Put(buf)
	out := make([]byte, 0, 4*pieces)
	for i := range pieces {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:pieceLen(size, i)]
		if err := readFull(r, b, pieceAt(size, i)); err != nil {
			return nil, err
		}
		out = binary.BigEndian.AppendUint32(out, crc32.Checksum(b, castagnoli))
	}
	return out, nil
}

// resolve finds the blob: whole, or else under way.
func (s *session) resolve(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.src.whole != nil {
		return nil
	}
	var err error
	for range 2 { // a fetch may end between the two questions
		var b Blob
		b, err = s.store.Open(ctx, s.want.digest)
		if err == nil && b.Size() == s.want.size {
			s.src = source{whole: b}
			return nil
		}
		if err == nil {
			b.Close()
			return errors.New("the blob has another size")
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
		if g := s.p.underWay(s.want); g != nil {
			if _, _, ended := g.since(0); !ended {
				s.src = source{part: g}
				return nil
			}
		}
	}
	return err
}

func (s *session) source() source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.src
}

// news tells the peer what this node has, first and whenever it changes, and who else
// fetches the blob.
func (s *session) news(ctx context.Context) error {
	src := s.source()
	logged, err := s.tellAll(src)
	told, pause := map[string]bool{}, firstTold
	due := time.NewTimer(pause)
	defer due.Stop()
	var quiet <-chan time.Time // set while pieces that come are gathered
	for err == nil {
		var pieceCame <-chan struct{}
		if src.part != nil && quiet == nil {
			more, changed, ended := src.part.since(logged)
			pieceCame = changed
			if ended {
				if err := s.resolve(ctx); err != nil {
					return errors.Join(err, s.write(have{state: stateNone}.encode()))
				}
				src = s.source()
				logged, err = s.tellAll(src)
				continue
			}
			for part := range slices.Chunk(more, maxMore) {
				if err := s.write(encodeMore(part)); err != nil {
					return err
				}
			}
			if logged += len(more); len(more) > 0 {
				pieceCame, quiet = nil, time.After(newsTime)
			}
		}
		select {
		case <-pieceCame:
		case <-quiet:
			quiet = nil
		case <-due.C:
			err = s.tellOthers(told)
			pause = min(2*pause, lastTold)
			due.Reset(pause)
		case <-ctx.Done():
			return nil
		}
	}
	return err
}

// tellAll says all that a source has, and how much of a fetch's log that covers.
func (s *session) tellAll(src source) (logged int, err error) {
	if src.whole != nil {
		return 0, s.write(have{state: stateWhole}.encode())
	}
	got, logged := src.part.snapshot()
	return logged, s.write(have{state: stateSome, pieces: got}.encode())
}

func (s *session) write(b []byte) error {
	s.writing <- struct{}{}
	defer func() { <-s.writing }()
	s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := s.conn.Write(b)
	return err
}

// answer serves requests in their order.
func (s *session) answer(ctx context.Context, r *bufio.Reader) error {
	for {
		s.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		kind, body, err := readFrame(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case kindGet:
			var piece uint32
			if piece, err = decodePiece(body); err == nil && int(piece) >= s.pieces {
				err = errors.New("asked for a piece beyond the blob")
			}
			if err == nil {
				err = s.send(ctx, int(piece), piece)
			}
		case kindNext:
			var wanted bitmap
			if wanted, err = decodeBitmap(body, s.pieces); err == nil {
				err = s.sendNext(ctx, wanted)
			}
		case kindCheck:
			select {
			case s.check <- struct{}{}:
			default: // once is enough
			}
		default:
			err = errors.New("unexpected frame")
		}
		if err != nil {
			return err
		}
	}
}

// sendNext sends the piece that serves all who fetch the blob best.
func (s *session) sendNext(ctx context.Context, wanted bitmap) error {
	var got bitmap
	if src := s.source(); src.part != nil {
		got, _ = src.part.snapshot()
	}
	piece, ok := s.p.pick(s.blob, wanted, got, s.given)
	if !ok {
		return s.write(encodePiece(kindNone, noPiece))
	}
	return s.send(ctx, piece, noPiece)
}

var buffers = sync.Pool{New: func() any { return new([headerSize + dataHeadSize + dataSize]byte) }}

// send sends a piece, or none (with the given number) if it isn't there.
func (s *session) send(ctx context.Context, piece int, none uint32) error {
	buf := buffers.Get().(*[headerSize + dataHeadSize + dataSize]byte)
	defer buffers.Put(buf)
	const head = headerSize + dataHeadSize
	length := pieceLen(s.want.size, piece)
	for off := 0; off < length; {
		n := min(dataSize, length-off)
		verified, err := s.read(ctx, buf[head:head+n], piece, off)
		if err != nil && off == 0 {
			s.p.log.Debug("read a piece to serve", "digest", s.want.digest.String(), "piece", piece, "err", err)
			return s.write(encodePiece(kindNone, none))
		}
		if err != nil {
			return err
		}
		putDataHead(buf[:], dataHead{piece: uint32(piece), verified: verified, last: off+n == length}, n)
		if err := s.write(buf[:head+n]); err != nil {
			return err
		}
		s.p.atWork(s.blob)
		off += n
	}
	s.given.set(piece)
	return nil
}

// read reads a part of a piece from what there is: a fetch that has ended since is
// looked up again.
func (s *session) read(ctx context.Context, b []byte, piece, off int) (verified bool, err error) {
	at := pieceAt(s.want.size, piece) + int64(off)
	src := s.source()
	if src.part != nil {
		if !src.part.has(piece) {
			return false, errors.New("not here yet")
		}
		if err := readFull(src.part.r, b, at); err == nil {
			return false, nil
		}
		if err := s.resolve(ctx); err != nil {
			return false, err
		}
		if src = s.source(); src.whole == nil {
			return false, errors.New("not here any more")
		}
	}
	return true, readFull(src.whole, b, at)
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	return unexpected(err)
}

// underWay is the progress of a fetch of a blob, or nil.
func (p *Peers) underWay(w want) *progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fetches[w.digest]
	if f == nil || f.size != w.size {
		return nil
	}
	return f.progress
}
