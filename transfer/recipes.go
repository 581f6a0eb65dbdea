package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer/chunk"
)

const (
	// minDelta is the smallest blob that is worth looking for likeness.
	minDelta = 1 << 20
	// maxDelta bounds recipes to about 5 MiB.
	maxDelta = 4 << 30
	// maxRecipe is the most chunks a recipe may have.
	maxRecipe = maxDelta / chunk.Min
	// gentleness is the niceness of what isn't waited for.
	gentleness = 10
)

// Lister is a Store that can say what it holds. Without it, and without
// PeersConfig.Chunks, every blob moves whole.
type Lister interface {
	// Blobs yields the blobs that are held whole, in any order; an error ends it.
	Blobs(ctx context.Context) iter.Seq2[ocispec.Descriptor, error]
}

// recipe is how a blob's content is cut: the blob's own bytes, or, of one that is
// compressed, what it unpacks to. One without chunks says that the blob moves whole.
type recipe struct {
	packing packing
	chunks  chunk.Recipe
}

// recipes remembers how blobs are cut, as files beside the store, one a blob:
//
//	DIR/<digest in hex>   magic, size of the blob (8 bytes), packing, chunks, SHA-256 of all that
//
// They are made ahead by Prepare, or when they are first asked for. One that is damaged
// is made again.
type recipes struct {
	dir string
	one sync.Mutex // held while a blob is cut: one at a time, as it takes a whole processor
}

const recipeMagic = "shoal chunks 2\n\n"

// of is the recipe of a blob that is held whole; it is made if need be.
func (c *recipes) of(ctx context.Context, store Store, d digest.Digest) (recipe, error) {
	b, err := store.Open(ctx, d)
	if err != nil {
		return recipe{}, err
	}
	defer b.Close()
	if !worthCutting(b) {
		return recipe{}, api.NotFound("blob %s is not cut into chunks", d)
	}
	if r, err := c.load(d, b.Size()); err == nil {
		return r, nil
	}
	c.one.Lock()
	defer c.one.Unlock()
	if r, err := c.load(d, b.Size()); err == nil {
		return r, nil // made meanwhile
	}
	var r recipe
	gently(func() { r, err = cutBlob(ctx, b) })
	if err != nil {
		return recipe{}, err
	}
	return r, c.save(d, b.Size(), r)
}

// cutBlob reads the whole blob. One that can't be unpacked, or unpacks to too much, moves
// whole.
func cutBlob(ctx context.Context, b Blob) (recipe, error) {
	r := recipe{packing: recognise(ctx, b)}
	content, err := openContent(b, r.packing)
	if err == nil {
		r.chunks, err = chunk.Split(&untilDone{ctx, content})
		content.Close()
	}
	if ctx.Err() != nil {
		return recipe{}, ctx.Err()
	}
	if err != nil && r.packing.method != packedNot {
		return recipe{packing: packing{method: packedOdd}}, nil
	}
	return r, err
}

// gently runs f on a thread to which others are preferred.
func gently(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		if n, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && 20-n < gentleness {
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, gentleness) // else it is as busy as everything
		}
		f()
	}()
	<-done
}

// untilDone is a reader that ends with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}

// worthCutting is false for blobs that are small or huge.
func worthCutting(b Blob) bool { return b.Size() >= minDelta && b.Size() <= maxDelta }

func (c *recipes) path(d digest.Digest) string { return filepath.Join(c.dir, d.Encoded()) }

// made says whether there is a recipe; it may turn out to be damaged.
func (c *recipes) made(d digest.Digest) bool {
	_, err := os.Stat(c.path(d))
	return err == nil
}

func (c *recipes) load(d digest.Digest, size int64) (recipe, error) {
	raw, err := os.ReadFile(c.path(d))
	if err != nil {
		return recipe{}, err
	}
	return decodeRecipe(raw, size)
}

func encodeRecipe(r recipe, size int64) []byte {
	b := make([]byte, 0, len(recipeMagic)+8+packingSize+len(r.packing.header)+len(r.chunks)*chunk.EntrySize+sha256.Size)
	b = binary.BigEndian.AppendUint64(append(b, recipeMagic...), uint64(size))
	b = r.chunks.Append(r.packing.append(b))
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeRecipe reads a recipe's file, of a blob of the given size.
func decodeRecipe(raw []byte, size int64) (recipe, error) {
	body, ok := bytes.CutPrefix(raw, []byte(recipeMagic))
	if !ok || len(body) < 8+sha256.Size {
		return recipe{}, api.InvalidArgument("not a chunk list")
	}
	end := len(raw) - sha256.Size
	if sum := sha256.Sum256(raw[:end]); !bytes.Equal(sum[:], raw[end:]) {
		return recipe{}, api.InvalidArgument("chunk list is damaged")
	}
	if binary.BigEndian.Uint64(body) != uint64(size) {
		return recipe{}, api.InvalidArgument("chunk list is of another blob")
	}
	var r recipe
	var err error
	body = body[8 : len(body)-sha256.Size]
	if r.packing, body, err = decodePacking(body); err != nil {
		return recipe{}, err
	}
	if r.chunks, err = chunk.Decode(body); err != nil {
		return recipe{}, err
	}
	if r.packing.method == packedNot && r.chunks.Size() != size {
		return recipe{}, api.InvalidArgument("chunk list is of another blob")
	}
	return r, nil
}

// save makes the file appear whole or not at all. It needn't outlive a power cut.
func (c *recipes) save(d digest.Digest, size int64, r recipe) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, err)
	}
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, err)
	}
	_, err = f.Write(encodeRecipe(r, size))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.path(d))
	}
	if err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// scratch is a file that is gone once it is closed.
func (c *recipes) scratch() (*os.File, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".new-"

// prune removes what is remembered of blobs that are gone.
func (c *recipes) prune(held map[digest.Digest]int64) error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		_, ok := held[digest.NewDigestFromEncoded(digest.SHA256, e.Name())]
		if !ok && !strings.HasPrefix(e.Name(), tempPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(c.dir, e.Name())))
		}
	}
	return err
}
