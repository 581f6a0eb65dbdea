package transfer

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// turnBeat is how often both sides of a session about a turn say something, and
	// turnSilence for how long one may hear nothing of the other.
	turnBeat    = 500 * time.Millisecond
	turnSilence = 3 * time.Second
)

// serveTurn tells a peer whether it is its turn to ask a source for a blob, and from
// whom to get it if not, until it goes.
func (s *session) serveTurn(ctx context.Context, r *bufio.Reader, body []byte) error {
	first, err := decodeTurn(body)
	if err != nil {
		return err
	}
	s.want.digest = first.digest
	desk := &s.p.desk
	t := desk.join(first.digest, s.peer, first.stand)
	defer desk.leave(first.digest, t)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		beat := time.NewTicker(turnBeat)
		defer beat.Stop()
		for {
			if err := s.write(desk.tell(first.digest, t).encode()); err != nil {
				s.conn.Close() // ends the reading below
				return
			}
			select {
			case <-t.news:
			case <-beat.C:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		s.conn.SetReadDeadline(time.Now().Add(turnSilence))
		kind, body, err := readFrame(r)
		if err == io.EOF {
			return nil
		}
		if err == nil && kind != kindStand {
			err = errors.New("unexpected frame")
		}
		if err != nil {
			return err
		}
		stands, err := decodeStand(body)
		if err != nil {
			return err
		}
		desk.hear(first.digest, t, stands)
	}
}
