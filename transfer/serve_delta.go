package transfer

import (
	"bufio"
	"context"
	"errors"
	"io"
	"time"
)

// serveDelta tells how a blob is cut, if asked to, and sends the parts that are asked
// for. Only blobs that are held whole are served so.
func (s *session) serveDelta(ctx context.Context, r *bufio.Reader, body []byte) error {
	d, err := decodeDelta(body)
	if err != nil {
		return err
	}
	s.want = want{digest: d.digest, size: d.size}
	var blob Blob
	if err = s.permit(ctx, d.digest); err == nil {
		blob, err = s.store.Open(ctx, d.digest)
	}
	if err == nil {
		defer blob.Close()
		if s.p.recipes == nil || blob.Size() != d.size || !worthCutting(blob) {
			err = errors.New("the blob moves whole")
		}
	}
	if err != nil {
		return errors.Join(err, s.write(encodePiece(kindNone, noPiece)))
	}
	if d.recipe {
		chunks, err := s.p.recipes.of(ctx, s.store, d.digest)
		if err != nil {
			return errors.Join(err, s.write(encodePiece(kindNone, noPiece)))
		}
		for _, b := range encodeChunks(chunks) {
			if err := s.write(b); err != nil {
				return err
			}
		}
	}
	buf := pieceBuffers.Get().(*[maxPiece]byte)
	defer pieceBuffers.Put(buf)
	for {
		s.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		kind, body, err := readFrame(r)
		if err == io.EOF {
			return nil
		}
		if err == nil && kind != kindRead {
			err = errors.New("unexpected frame")
		}
		if err != nil {
			return err
		}
		ask, err := decodeRead(body, d.size)
		if err != nil {
			return err
		}
		if err := readFull(blob, buf[:ask.len], ask.at); err != nil {
			return err
		}
		if err := s.write(encodeRun(s.p.packer, buf[:ask.len])); err != nil {
			return err
		}
	}
}
