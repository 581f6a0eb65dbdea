package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

const (
	// maxUnsized bounds blobs whose size the fetcher doesn't know. Only the root of
	// an image, its manifest or index, is known by its digest alone.
	maxUnsized = 8 << 20
	// askPause is how long a peer has to answer before the next one is asked, too.
	askPause = 200 * time.Millisecond
	// maxAsked bounds how many peers are asked for a size.
	maxAsked = 16
)

// noSize says that the peer doesn't hold the blob whole.
const noSize = ^uint64(0)

func encodeAsk(d digest.Digest) []byte { return frame(kindAsk, []byte(d)...) }

func decodeAsk(b []byte) (digest.Digest, error) {
	d := digest.Digest(b)
	if err := d.Validate(); err != nil {
		return "", api.InvalidArgument("ask frame: digest: %w", err)
	}
	return d, nil
}

func encodeSize(n uint64) []byte { return frame(kindSize, binary.BigEndian.AppendUint64(nil, n)...) }

func decodeSize(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, api.InvalidArgument("size frame of %d bytes", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

// tellSize answers an ask; the session ends with it.
func (s *session) tellSize(ctx context.Context, body []byte) error {
	d, err := decodeAsk(body)
	if err != nil {
		return err
	}
	n := noSize
	if err := s.permit(ctx, d); err != nil {
		return errors.Join(err, s.write(encodeSize(n)))
	}
	if desc, err := s.store.Stat(ctx, d); err == nil {
		n = uint64(desc.Size)
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	return s.write(encodeSize(n))
}

// isEmpty says whether a digest is of no bytes at all, the one blob whose size is truly zero.
func isEmpty(d digest.Digest) bool { return d.Validate() == nil && d == d.Algorithm().FromBytes(nil) }

// fetchUnsized fetches a blob whose size nobody told us. A size is only a peer's
// word, so while the blob doesn't come with one, the next peer's is tried.
func (p *Peers) fetchUnsized(ctx context.Context, dst Store, want ocispec.Descriptor, progress func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tried []uint64
	var failed error
	for size := range p.sizes(ctx, want.Digest) {
		if size == noSize || slices.Contains(tried, size) {
			continue
		}
		if size > maxUnsized {
			failed = errors.Join(failed, api.InvalidArgument("a peer says that it has %d bytes; at most %d are taken unannounced", size, maxUnsized))
			continue
		}
		tried = append(tried, size)
		sized := want
		sized.Size = int64(size)
		err := p.Fetch(ctx, dst, sized, progress)
		if err == nil || ctx.Err() != nil || errdefs.IsAlreadyExists(err) {
			return err
		}
		failed = errors.Join(failed, err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed != nil {
		return failed
	}
	return api.NotFound("fetch blob %s: no peer has it", want.Digest)
}

// sizes asks peers what size a blob has. The channel is closed when all have
// answered, or failed to.
func (p *Peers) sizes(ctx context.Context, d digest.Digest) <-chan uint64 {
	out := make(chan uint64)
	go func() {
		defer close(out)
		answers := make(chan uint64)
		waiting := 0
		asked := 0
		for peer, err := range p.cfg.Locator.Find(ctx, d) {
			if err != nil {
				p.log.Warn("locate blob", "digest", d.String(), "err", err)
				break
			}
			if peer.ID == p.cfg.Self || p.isBanned(peer.ID) {
				continue
			}
			if asked++; asked > maxAsked {
				break
			}
			waiting++
			go func() {
				n, err := p.askSize(ctx, peer.ID, d)
				if err != nil {
					p.log.Debug("ask for a blob's size", "peer", peer.ID, "err", err)
					n = noSize
				}
				select {
				case answers <- n:
				case <-ctx.Done():
				}
			}()
			if !collect(ctx, answers, out, &waiting, askPause) {
				return
			}
		}
		for waiting > 0 && collect(ctx, answers, out, &waiting, 0) {
		}
	}()
	return out
}

// collect passes one answer on, or gives up waiting after a pause (0: never). false
// means that nobody wants further answers.
func collect(ctx context.Context, answers <-chan uint64, out chan<- uint64, waiting *int, pause time.Duration) bool {
	var late <-chan time.Time
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		late = t.C
	}
	select {
	case n := <-answers:
		*waiting--
		select {
		case out <- n:
			return true
		case <-ctx.Done():
			return false
		}
	case <-late:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *Peers) askSize(ctx context.Context, peer string, d digest.Digest) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := p.cfg.Dial(ctx, peer)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(encodeAsk(d)); err != nil {
		return 0, err
	}
	kind, body, err := readFrame(bufio.NewReaderSize(conn, 64))
	if err != nil {
		return 0, unexpected(err)
	}
	if kind != kindSize {
		return 0, api.InvalidArgument("frame of kind %d answers an ask", kind)
	}
	return decodeSize(body)
}
