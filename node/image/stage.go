package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// staged is a layer that was unpacked but isn't one of the store's yet.
type staged struct {
	dir  string // in staging; has the layer, and will have its record
	to   place
	out  extracted
	diff digest.Digest
}

// drop removes what was not committed. A nil one has nothing.
func (st *staged) drop() error {
	if st == nil {
		return nil
	}
	return errors.Join(st.to.Close(), os.RemoveAll(st.dir))
}

// of makes sure that a layer is what its image says; if not, it is dropped.
func (st *staged) of(i int, ref layerRef) (*staged, error) {
	if st.diff != ref.Diff {
		err := api.Errorf(errdefs.ErrDataLoss, "invalid diffID for layer %d: expected %q, got %q", i, ref.Diff, st.diff)
		return nil, errors.Join(err, st.drop())
	}
	return st, nil
}

// job says how a layer is unpacked.
type job struct {
	turn   bool // the layers below are there
	copied bool // contents are copied, even of a blob that has them as they are
	// sum, which may be nil, is the blob's digest once all of it was read: then a blob
	// that isn't compressed need not be hashed again.
	sum func() digest.Digest
}

// unpack unpacks a layer, compressed or not, in a directory of its own below staging:
// reading and decompressing, hashing and writing files run beside each other. It is
// errPadding if only copying will do.
func (s *Store) unpack(ctx context.Context, blob io.Reader, j job) (*staged, error) {
	in := newRawTar(blob, s.cfg.Limits.tarBytes())
	head, err := in.peek(magicSize)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.path("staging"), "layer-")
	if err != nil {
		return nil, err
	}
	raw := s.tars && !j.copied && detect(head) == plain
	to, err := s.newPlace(dir, j.turn, raw)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	st := &staged{dir: dir, to: to}
	if _, isImage := to.(*imagePlace); raw && isImage {
		st.out, st.diff, err = unpackTree(ctx, in, to, s.cfg.Limits, s.overlay, j.sum)
	} else {
		st.out, st.diff, err = unpackTo(ctx, in, to, s.cfg.Limits, s.overlay, j.sum)
	}
	if err != nil {
		return nil, errors.Join(err, st.drop())
	}
	return st, nil
}

// newPlace is where layers go on this host: below dir, an image file or a directory.
func (s *Store) newPlace(dir string, turn, raw bool) (place, error) {
	fs := filepath.Join(dir, "fs")
	if !s.overlay || !s.mountable || s.cfg.Directories {
		return newDirPlace(fs)
	}
	if err := os.Mkdir(fs, 0o755); err != nil {
		return nil, err
	}
	return newImagePlace(filepath.Join(dir, "image"), s.room.share(turn), raw)
}

// unpackTree unpacks a layer's tree to an image, which refers to the tar for contents,
// and returns its diff ID.
func unpackTree(ctx context.Context, in *rawTar, to place, limits Limits, mark bool, sum func() digest.Digest) (extracted, digest.Digest, error) {
	if sum == nil {
		digester, left := digest.SHA256.Digester(), in.left
		sum = digester.Digest
		ahead := newReadAhead(io.TeeReader(in, digester.Hash()))
		defer ahead.Close()
		in = newRawTar(ahead, left)
	}
	x := newExtractor(to, limits, mark)
	x.raw = in
	out, err := x.run(ctx, in)
	if err != nil {
		return out, "", err
	}
	// What follows the end mark counts for the digest.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return out, "", badTar(err)
	}
	return out, sum(), in.end()
}

// unpackTo unpacks a layer to a place and returns its diff ID.
func unpackTo(ctx context.Context, blob io.Reader, to place, limits Limits, mark bool, sum func() digest.Digest) (extracted, digest.Digest, error) {
	plainTar, packed, err := decompress(blob)
	if err != nil {
		return extracted{}, "", err
	}
	defer plainTar.Close()
	digester := digest.SHA256.Digester()
	var r io.Reader = &bounded{r: plainTar, left: limits.tarBytes()}
	diff := digester.Digest
	switch {
	case packed == plain && sum != nil:
		diff = sum
	case packed == plain:
		r = io.TeeReader(r, digester.Hash())
	default: // decompressing takes longest: hashing mustn't wait for the same goroutine
		loose := newReadAhead(r)
		defer loose.Close()
		r = io.TeeReader(loose, digester.Hash())
	}
	ahead := newReadAhead(r)
	defer ahead.Close()
	out, err := newExtractor(to, limits, mark).run(ctx, ahead)
	if err != nil {
		return out, "", err
	}
	if _, err := io.Copy(io.Discard, ahead); err != nil {
		return out, "", badTar(err)
	}
	return out, diff(), nil
}

// bounded fails once more than left bytes were read.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, api.InvalidArgument("archive is larger than allowed")
	}
	return n, err
}
