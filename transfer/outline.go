package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// MaxOutline bounds the outline of a blob, in bytes.
const MaxOutline = 64 << 20

// Outliner is a Store that can say what of a blob, which is a tar, isn't the contents of
// files. What the bytes mean is between stores.
type Outliner interface {
	// Outline is at most MaxOutline bytes; NotFound if the blob is no tar.
	Outline(ctx context.Context, d digest.Digest) ([]byte, error)
}

func encodeOutline(d digest.Digest, size int64) []byte {
	return frame(kindOutline, append(binary.BigEndian.AppendUint64(nil, uint64(size)), d...)...)
}

func decodeOutline(b []byte) (digest.Digest, int64, error) {
	if len(b) < 8 {
		return "", 0, api.InvalidArgument("outline frame of %d bytes", len(b))
	}
	size, d := binary.BigEndian.Uint64(b), digest.Digest(b[8:])
	if err := d.Validate(); err != nil {
		return "", 0, api.InvalidArgument("outline frame: digest: %w", err)
	}
	if size > maxDelta {
		return "", 0, api.InvalidArgument("outline frame: size %d", size)
	}
	return d, int64(size), nil
}

// tellOutline answers with the length of an outline and, in runs, the outline.
func (s *session) tellOutline(ctx context.Context, body []byte) error {
	d, size, err := decodeOutline(body)
	if err != nil {
		return err
	}
	s.want = want{digest: d, size: size}
	b, err := s.outline(ctx, d, size)
	if err != nil {
		return errors.Join(err, s.write(encodeSize(noSize)))
	}
	if err := s.write(encodeSize(uint64(len(b)))); err != nil {
		return err
	}
	for len(b) > 0 {
		part := b[:min(len(b), maxRun)]
		if err := s.write(encodeRun(s.p.packer, part)); err != nil {
			return err
		}
		b = b[len(part):]
	}
	return nil
}

func (s *session) outline(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	if err := s.permit(ctx, d); err != nil {
		return nil, err
	}
	o, ok := s.store.(Outliner)
	if !ok || s.p.packer == nil {
		return nil, errWhole
	}
	desc, err := s.store.Stat(ctx, d)
	if err != nil {
		return nil, err
	}
	if desc.Size != size {
		return nil, errors.New("the blob has another size")
	}
	select {
	case s.p.unpacks <- struct{}{}:
		defer func() { <-s.p.unpacks }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return o.Outline(ctx, d)
}

// Outline asks the peer who vouches for the blob's outline.
func (v *Vouched) Outline(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, recipeTime+time.Duration(v.f.size/recipeRate)*time.Second)
	defer cancel()
	conn, err := v.f.p.cfg.Dial(ctx, v.peer)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(encodeOutline(v.f.digest, v.f.size)); err != nil {
		return nil, err
	}
	return readOutline(v.f.p, bufio.NewReaderSize(conn, 4<<10))
}

func readOutline(p *Peers, r *bufio.Reader) ([]byte, error) {
	kind, body, err := readFrame(r)
	if err != nil {
		return nil, unexpected(err)
	}
	if kind != kindSize {
		return nil, api.InvalidArgument("frame of kind %d answers an outline", kind)
	}
	n, err := decodeSize(body)
	switch {
	case err != nil:
		return nil, err
	case n == noSize:
		return nil, errHasNone
	case n > MaxOutline:
		return nil, api.InvalidArgument("outline of %d bytes", n)
	}
	var out []byte
	for uint64(len(out)) < n {
		kind, body, err := readFrame(r)
		if err != nil {
			return nil, unexpected(err)
		}
		if kind != kindRun {
			return nil, api.InvalidArgument("frame of kind %d within an outline", kind)
		}
		part, err := decodeRun(p.unpacker, body, int(min(n-uint64(len(out)), maxRun)))
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out, nil
}
