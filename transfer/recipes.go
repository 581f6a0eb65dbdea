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
	"github.com/shoal-engine/shoal/transfer/tokens"
)

const (
	// minDelta is the smallest blob that is worth looking for likeness.
	minDelta = 1 << 20
	// maxDelta bounds recipes to about 5 MiB.
	maxDelta = 4 << 30
	// maxRecipe is the most chunks a recipe may have.
	maxRecipe = maxDelta / chunk.Min
	// topLayout bounds layouts of what is large.
	topLayout = 32 << 20
	// gentleness is the niceness of what isn't waited for.
	gentleness = 10
)

// Lister is a Store that can say what it holds. Without it, and without
// PeersConfig.Chunks, every blob moves whole.
type Lister interface {
	// Blobs yields the blobs that are held whole, in any order; an error ends it.
	Blobs(ctx context.Context) iter.Seq2[ocispec.Descriptor, error]
}

// form is by which form of it a blob is cut; it ends the names of files.
type form string

const (
	byContent form = ""        // by its own bytes or, if it is compressed, by what it unpacks to
	byTokens  form = ".tokens" // of a gzip stream, by its tokens
)

// recipe is how a form of a blob is cut. One without chunks says that the blob moves
// whole, or that there is no such form of it.
type recipe struct {
	packing packing
	chunks  chunk.Recipe
}

// recipes remembers how blobs are cut, as files beside the store, one a blob:
//
//	DIR/<digest in hex>          magic, size of the blob (8 bytes), packing, length of the
//	                             layout (4 bytes), layout, chunks, SHA-256 of all that
//	DIR/<digest in hex>.tokens   the same, cut by tokens
//
// They are made ahead by Prepare, or when they are first asked for. One that is damaged
// is made again.
type recipes struct {
	dir string
	one sync.Mutex // held while a blob is cut: one at a time, as it takes a whole processor
}

const recipeMagic = "shoal chunks 3\n\n"

// of is the recipe of a blob that is held whole; it is made if need be.
func (c *recipes) of(ctx context.Context, store Store, d digest.Digest, by form) (recipe, error) {
	b, err := store.Open(ctx, d)
	if err != nil {
		return recipe{}, err
	}
	defer b.Close()
	if !worthCutting(b) {
		return recipe{}, api.NotFound("blob %s is not cut into chunks", d)
	}
	if r, err := c.load(d, b.Size(), by); err == nil {
		return r, nil
	}
	c.one.Lock()
	defer c.one.Unlock()
	if r, err := c.load(d, b.Size(), by); err == nil {
		return r, nil // made meanwhile
	}
	cut := cutContent
	if by == byTokens {
		cut = cutTokens
	}
	var r recipe
	gently(func() { r, err = cut(ctx, b) })
	if err != nil {
		return recipe{}, err
	}
	return r, c.save(d, b.Size(), r, by)
}

// cutTokens reads the whole blob. What isn't a gzip stream that could be made again has
// no chunks.
func cutTokens(ctx context.Context, b Blob) (recipe, error) {
	z := tokens.NewReader(&untilDone{ctx, io.NewSectionReader(b, 0, b.Size())}, maxLayout(b.Size()))
	chunks, err := chunk.Fine.Split(z)
	if ctx.Err() != nil {
		return recipe{}, ctx.Err()
	}
	if err != nil || len(chunks) > maxRecipe || chunks.Size() > maxDelta {
		return recipe{packing: packing{method: packedOdd}}, nil
	}
	return recipe{packing{method: packedTokens, layout: z.Layout()}, chunks}, nil
}

// cutContent reads the whole blob. One that can't be unpacked, or unpacks to too much,
// moves whole.
func cutContent(ctx context.Context, b Blob) (recipe, error) {
	r := recipe{packing: recognise(ctx, b)}
	content, err := openContent(b, r.packing)
	if err == nil {
		r.chunks, err = chunk.Coarse.Split(&untilDone{ctx, content})
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

func (c *recipes) path(d digest.Digest, by form) string {
	return filepath.Join(c.dir, d.Encoded()+string(by))
}

// made says whether there is a recipe; it may turn out to be damaged.
func (c *recipes) made(d digest.Digest, by form) bool {
	_, err := os.Stat(c.path(d, by))
	return err == nil
}

func (c *recipes) load(d digest.Digest, size int64, by form) (recipe, error) {
	raw, err := os.ReadFile(c.path(d, by))
	if err != nil {
		return recipe{}, err
	}
	return decodeRecipe(raw, size)
}

func encodeRecipe(r recipe, size int64) []byte {
	layout := r.packing.layout
	b := make([]byte, 0, len(recipeMagic)+8+packingSize+len(r.packing.header)+4+len(layout)+len(r.chunks)*chunk.EntrySize+sha256.Size)
	b = binary.BigEndian.AppendUint64(append(b, recipeMagic...), uint64(size))
	b = binary.BigEndian.AppendUint32(r.packing.append(b), uint32(len(layout)))
	b = r.chunks.Append(append(b, layout...))
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
	if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
		return recipe{}, api.InvalidArgument("chunk list has no layout")
	}
	n := 4 + binary.BigEndian.Uint32(body)
	r.packing.layout = body[4:n]
	if r.chunks, err = chunk.Decode(body[n:]); err != nil {
		return recipe{}, err
	}
	if r.packing.method == packedNot && r.chunks.Size() != size {
		return recipe{}, api.InvalidArgument("chunk list is of another blob")
	}
	return r, nil
}

// save makes the file appear whole or not at all. It needn't outlive a power cut.
func (c *recipes) save(d digest.Digest, size int64, r recipe, by form) error {
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
		err = os.Rename(f.Name(), c.path(d, by))
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
		name := strings.TrimSuffix(e.Name(), string(byTokens))
		_, ok := held[digest.NewDigestFromEncoded(digest.SHA256, name)]
		if !ok && !strings.HasPrefix(e.Name(), tempPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(c.dir, e.Name())))
		}
	}
	return err
}
