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
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
)

// Lister is a Store that can say what it holds. Without it, and without
// PeersConfig.Chunks, every blob moves whole.
type Lister interface {
	// Blobs yields the blobs that are held whole, in any order; an error ends it.
	Blobs(ctx context.Context) iter.Seq2[ocispec.Descriptor, error]
}

// recipes remembers how blobs are cut, as files beside the store, one a blob:
//
//	DIR/<digest in hex>   magic, size of the blob (8 bytes), chunks, SHA-256 of all that
//
// They are made when they are first asked for. One that is damaged is made again.
type recipes struct {
	dir string
	one sync.Mutex // held while a blob is cut: one at a time, as it takes a whole processor
}

const recipeMagic = "shoal chunks 1\n\n"

// of is the recipe of a blob that is held whole; NotFound if it should move whole.
func (c *recipes) of(ctx context.Context, store Store, d digest.Digest) (chunk.Recipe, error) {
	b, err := store.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if !worthCutting(b) {
		return nil, api.NotFound("blob %s is not cut into chunks", d)
	}
	if r, err := c.load(d, b.Size()); err == nil {
		return r, nil
	}
	c.one.Lock()
	defer c.one.Unlock()
	if r, err := c.load(d, b.Size()); err == nil {
		return r, nil // made meanwhile
	}
	r, err := chunk.Split(&untilDone{ctx, io.NewSectionReader(b, 0, b.Size())})
	if err != nil {
		return nil, err
	}
	return r, c.save(d, r)
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

// worthCutting is false for blobs that are small, huge or compressed: compression hides
// likeness, as one changed byte changes all that follow.
func worthCutting(b Blob) bool {
	if b.Size() < minDelta || b.Size() > maxDelta {
		return false
	}
	var head [4]byte
	if err := readFull(b, head[:], 0); err != nil {
		return false
	}
	gzip, zstd := []byte{0x1f, 0x8b}, []byte{0x28, 0xb5, 0x2f, 0xfd}
	return !bytes.HasPrefix(head[:], gzip) && !bytes.HasPrefix(head[:], zstd)
}

func (c *recipes) path(d digest.Digest) string { return filepath.Join(c.dir, d.Encoded()) }

func (c *recipes) load(d digest.Digest, size int64) (chunk.Recipe, error) {
	raw, err := os.ReadFile(c.path(d))
	if err != nil {
		return nil, err
	}
	return decodeRecipe(raw, size)
}

func encodeRecipe(r chunk.Recipe) []byte {
	b := make([]byte, 0, len(recipeMagic)+8+len(r)*chunk.EntrySize+sha256.Size)
	b = binary.BigEndian.AppendUint64(append(b, recipeMagic...), uint64(r.Size()))
	b = r.Append(b)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeRecipe reads a recipe's file, of a blob of the given size.
func decodeRecipe(raw []byte, size int64) (chunk.Recipe, error) {
	body, ok := bytes.CutPrefix(raw, []byte(recipeMagic))
	if !ok || len(body) < 8+sha256.Size {
		return nil, api.InvalidArgument("not a chunk list")
	}
	end := len(raw) - sha256.Size
	if sum := sha256.Sum256(raw[:end]); !bytes.Equal(sum[:], raw[end:]) {
		return nil, api.InvalidArgument("chunk list is damaged")
	}
	r, err := chunk.Decode(body[8 : len(body)-sha256.Size])
	if err != nil {
		return nil, err
	}
	if r.Size() != size || binary.BigEndian.Uint64(body) != uint64(size) {
		return nil, api.InvalidArgument("chunk list is of another blob")
	}
	return r, nil
}

// save makes the file appear whole or not at all. It needn't outlive a power cut.
func (c *recipes) save(d digest.Digest, r chunk.Recipe) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, err)
	}
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, err)
	}
	_, err = f.Write(encodeRecipe(r))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.path(d))
	}
	if err != nil {
		return api.Internal("keep the chunks of blob %s: %w", d, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
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
