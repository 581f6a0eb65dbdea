package image

import (
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// spoolPrefix begins the names of files whose digest is not known yet.
const spoolPrefix = "tmp-"

// spooled is a file of an archive on its way to be a blob.
type spooled struct {
	path   string // empty: the blob was here already
	digest digest.Digest
	size   int64
	packed compression
	synced *syncing // nil: not begun
}

// syncing is a file's way to the disk.
type syncing struct {
	done chan struct{} // closed: err is set
	err  error
}

// syncFrom is from which size on a file is synced while others arrive. Small ones
// may not be needed at all.
const syncFrom = 1 << 20

// beginSync syncs f, and closes it.
func beginSync(f *os.File) *syncing {
	s := &syncing{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = errors.Join(f.Sync(), f.Close())
	}()
	return s
}

// spoolBuffer is how much is read, written and hashed at once; what an archive has of
// small files is less.
const (
	spoolBuffer  = 1 << 20
	spoolBuffers = 3
)

// hashing hashes in a goroutine of its own, because that takes as long as all else that
// is done to bytes which go to a file.
type hashing struct {
	hash       hash.Hash
	todo, free chan []byte
	made       int
	done       chan struct{} // closed: all of todo is hashed
}

func beginHashing() *hashing {
	h := &hashing{
		hash: digest.SHA256.Hash(), done: make(chan struct{}),
		todo: make(chan []byte, spoolBuffers), free: make(chan []byte, spoolBuffers),
	}
	go func() {
		defer close(h.done)
		for b := range h.todo {
			h.hash.Write(b)
			h.free <- b[:cap(b)]
		}
	}()
	return h
}

// buffer is one to be filled and given to todo.
func (h *hashing) buffer() []byte {
	if len(h.free) == 0 && h.made < spoolBuffers {
		h.made++
		return make([]byte, spoolBuffer)
	}
	return <-h.free
}

// end waits, and returns the digest of all that came.
func (h *hashing) end() digest.Digest {
	close(h.todo)
	<-h.done
	return digest.NewDigest(digest.SHA256, h.hash)
}

// spool writes r to disk and says what it is. begun, which may be nil, is told of the
// file once its first bytes are there, to read it while it grows.
func (s *Store) spool(r io.Reader, begun func(g *growing, head []byte)) (spooled, error) {
	f, err := os.CreateTemp(s.path("ingest"), spoolPrefix)
	if err != nil {
		return spooled{}, api.Internal("store archive: %w", err)
	}
	sp := spooled{path: f.Name()}
	g := newGrowing(f.Name())
	err = sp.fill(f, r, g, begun)
	g.end(sp.digest, err)
	if err == nil && sp.size >= syncFrom {
		sp.synced = beginSync(f)
		return sp, nil
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(f.Name())
		if errdefs.IsInvalidArgument(err) || errors.Is(err, io.ErrUnexpectedEOF) {
			return spooled{}, badTar(err)
		}
		return spooled{}, api.Internal("store archive: %w", err)
	}
	return sp, nil
}

const pushEvery = 8 << 20

// writeBack has the kernel begin to write what f has from one place to another, so that
// little is left to wait for when f is synced. Where it can't, syncing takes longer.
func writeBack(f *os.File, from, to int64) int64 {
	_ = unix.SyncFileRange(int(f.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE)
	return to
}

// fill copies r to f, and tells g.
func (sp *spooled) fill(f *os.File, r io.Reader, g *growing, begun func(*growing, []byte)) error {
	hash := beginHashing()
	defer func() { sp.digest = hash.end() }()
	pushed := int64(0)
	for {
		buf := hash.buffer()
		n, err := readFull(r, buf)
		if _, e := f.Write(buf[:n]); e != nil {
			return e
		}
		if sp.size += int64(n); sp.size-pushed >= pushEvery {
			pushed = writeBack(f, pushed, sp.size)
		}
		g.grow(int64(n))
		if sp.size == int64(n) {
			sp.packed = detect(buf[:n])
			if begun != nil {
				begun(g, buf[:n])
			}
		}
		hash.todo <- buf[:n]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type onlyReader struct{ io.Reader }

// adopt makes a spooled file a blob, which the caller has leased.
func (s *Store) adopt(sp spooled) error {
	if sp.path == "" {
		return nil
	}
	if s.has(sp.digest) {
		if err := os.Remove(sp.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return blobError(sp.digest, err)
		}
		return nil
	}
	if sp.synced == nil {
		f, err := os.Open(sp.path)
		if err != nil {
			return blobError(sp.digest, err)
		}
		sp.synced = beginSync(f)
	}
	if <-sp.synced.done; sp.synced.err != nil {
		return blobError(sp.digest, sp.synced.err)
	}
	if err := os.Rename(sp.path, s.blobPath(sp.digest)); err != nil {
		return blobError(sp.digest, err)
	}
	return syncDir(filepath.Dir(s.blobPath(sp.digest)))
}

// putBlob keeps bytes made here, a manifest or a config, which the caller has leased.
func (s *Store) putBlob(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	if s.has(d) {
		return d, nil
	}
	f, err := os.CreateTemp(s.path("ingest"), spoolPrefix)
	if err != nil {
		return "", blobError(d, err)
	}
	_, err = f.Write(b)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", blobError(d, err)
	}
	return d, s.adopt(spooled{path: f.Name(), digest: d})
}
