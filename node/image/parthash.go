package image

import (
	"context"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// besideStep is from how many bytes on what is written in order is hashed meanwhile, on
// another processor.
const besideStep = 64 << 10

// startHash says whether the caller shall hash what it is about to write.
func (p *partial) startHash(off int64, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < besideStep || p.busy > 0 || off != p.hashed {
		return false
	}
	p.busy, p.again = off+int64(n), false
	return true
}

// writeHashing writes and hashes bytes that startHash was asked about.
func (p *partial) writeHashing(b []byte, off int64) (int, error) {
	hashed := make(chan struct{})
	go func() {
		p.hash.Write(b)
		close(hashed)
	}()
	n, err := p.f.WriteAt(b, off)
	<-hashed
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hashed = off + int64(len(b))
	if p.busy = 0; p.again || n < len(b) {
		p.hash.Reset()
		p.hashed = 0
	}
	return n, p.written(off, n, err)
}

// sendStep is how many further leading bytes the kernel is asked to write to disk at a
// time.
const sendStep = 4 << 20

// sendOff has the kernel begin to write to disk what is there in order, so that Commit
// needn't wait for all of it. It is called as catchUp is.
func (p *partial) sendOff() {
	from, to := p.sent, p.prefix()
	if to-from < sendStep {
		return
	}
	p.sent = to
	p.mu.Unlock()
	_ = unix.SyncFileRange(int(p.f.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE) // a hint
	p.mu.Lock()
}

// hashStep is how much is read back at a time for the hash.
const hashStep = 256 << 10

var hashBuffers = sync.Pool{New: func() any { return new([hashStep]byte) }}

// catchUp hashes what pieces that came out of order have joined to the front, so that
// Commit finds little left to read. It is called with io held for reading and mu held,
// which it lets go of meanwhile.
func (p *partial) catchUp() {
	if p.busy > 0 || p.prefix() <= p.hashed {
		return
	}
	p.again = false
	buf := hashBuffers.Get().(*[hashStep]byte)
	defer hashBuffers.Put(buf)
	for !p.again && p.hashed < p.prefix() {
		from := p.hashed
		part := buf[:min(hashStep, p.prefix()-from)]
		p.busy = from + int64(len(part))
		p.mu.Unlock()
		_, err := p.f.ReadAt(part, from)
		if err == nil {
			p.hash.Write(part)
		}
		p.mu.Lock()
		if err != nil {
			p.again = true // Commit will meet the error, too
			break
		}
		p.hashed = from + int64(len(part))
	}
	if p.busy = 0; p.again {
		p.hash.Reset()
		p.hashed = 0
	}
}

// verify is called with mu held.
func (p *partial) verify(ctx context.Context) error {
	size := p.prefix()
	if p.want.Size > 0 && size != p.want.Size || len(p.have) > 1 {
		return api.Errorf(errdefs.ErrDataLoss, "blob %s: %d of %d bytes came", p.want.Digest, size, p.want.Size)
	}
	buf := hashBuffers.Get().(*[hashStep]byte)
	defer hashBuffers.Put(buf)
	for p.hashed < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := p.f.ReadAt(buf[:min(hashStep, size-p.hashed)], p.hashed)
		if n == 0 {
			return api.Internal("read back blob %s: %w", p.want.Digest, err)
		}
		p.hash.Write(buf[:n])
		p.hashed += int64(n)
	}
	if got := digest.NewDigest(digest.SHA256, p.hash); got != p.want.Digest {
		return api.Errorf(errdefs.ErrDataLoss, "blob %s: what came has digest %s", p.want.Digest, got)
	}
	return nil
}
