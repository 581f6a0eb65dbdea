package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
)

// layerRef is a layer in its place in an image.
type layerRef struct {
	Desc  ocispec.Descriptor `json:"desc"` // its blob
	Diff  digest.Digest      `json:"diff"`
	Chain digest.Digest      `json:"chain"`
}

func layerRefs(descs []ocispec.Descriptor, diffIDs []digest.Digest) []layerRef {
	ids := chains(diffIDs)
	refs := make([]layerRef, len(descs))
	for i, d := range descs {
		refs[i] = layerRef{Desc: d, Diff: diffIDs[i], Chain: ids[i]}
	}
	return refs
}

// layerRecord is an unpacked layer on disk.
type layerRecord struct {
	Chain   digest.Digest `json:"chain"`
	Diff    digest.Digest `json:"diff"`
	Size    int64         `json:"size"` // of its regular files
	Entries int           `json:"entries"`
	// Boot is the boot of the machine that unpacked it.
	Boot string `json:"boot"`
	// Overlay says that whiteouts are marked as overlayfs knows them. Without it
	// they are only listed.
	Overlay   bool     `json:"overlay"`
	Whiteouts []string `json:"whiteouts,omitempty"`
	Opaques   []string `json:"opaques,omitempty"`
	// OpaqueRoot says that nothing of the layers below shows: overlayfs knows no
	// mark for that.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`

	synced bool
}

func (s *Store) layerPath(chain digest.Digest) string { return s.path("layers", chain.Encoded()) }
func (s *Store) layerFS(chain digest.Digest) string   { return filepath.Join(s.layerPath(chain), "fs") }

// loadLayers reads what is unpacked. A layer that can't be trusted, or was unpacked
// for another kind of snapshots, is dropped: its blob is here.
func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := s.path("layers", e.Name())
		if e.Name() == initLayer {
			continue
		}
		var rec layerRecord
		err := readRecord(filepath.Join(path, "layer"), &rec)
		_, statErr := os.Stat(filepath.Join(path, "synced"))
		rec.synced = statErr == nil
		switch {
		case err == nil && rec.Chain.Encoded() != e.Name():
			err = fmt.Errorf("record %s: is of layer %q", path, rec.Chain)
		case err == nil && !rec.synced && rec.Boot != s.boot:
			err = errors.New("may be incomplete since the machine went down")
		case err == nil && rec.Overlay != s.overlay:
			err = errors.New("was unpacked for another kind of snapshots")
		}
		if err != nil {
			s.log.Warn("layer is dropped, and unpacked again when needed", "path", path, "reason", err)
			if err := s.trash(path); err != nil {
				return err
			}
			continue
		}
		s.layers[rec.Chain] = rec
	}
	return nil
}

// source opens the bytes of a layer's blob, which may be arriving still.
type source func(ctx context.Context, ref layerRef) (io.ReadCloser, error)

// held is the source of layers whose blobs are here whole.
func (s *Store) held(_ context.Context, ref layerRef) (io.ReadCloser, error) {
	return s.open(ref.Desc.Digest)
}

// unpacker unpacks an image's layers, in parallel.
type unpacker struct {
	s      *Store
	refs   []layerRef
	source source
	// progress, which may be nil, is called with a layer's place and the bytes read
	// of its blob; done with its place after it was unpacked. Both are called from
	// several goroutines at once.
	progress func(i int, n int64)
	done     func(i int)
}

// run makes sure that every layer is there and returns their sizes. The caller holds
// a lease on the layers.
func (u *unpacker) run(ctx context.Context) ([]int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	for i := range u.refs {
		g.Go(func() error {
			if err := u.layer(ctx, i); err != nil {
				return err
			}
			if u.done != nil {
				u.done(i)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	u.s.changed()
	return u.s.layerSizes(u.refs)
}

func (s *Store) layerSizes(refs []layerRef) ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sizes := make([]int64, len(refs))
	for i, ref := range refs {
		rec, ok := s.layers[ref.Chain]
		if !ok {
			return nil, api.Internal("layer %s vanished", ref.Chain)
		}
		sizes[i] = rec.Size
	}
	return sizes, nil
}

// layer makes sure that the i-th layer and those below it are there. What several
// images want at once is unpacked once.
func (u *unpacker) layer(ctx context.Context, i int) error {
	ref := u.refs[i]
	if u.s.hasLayer(ref.Chain) {
		return nil
	}
	return u.s.unpacks.do(ctx, ref.Chain, func(ctx context.Context) error {
		if u.s.hasLayer(ref.Chain) {
			return nil
		}
		dir, err := os.MkdirTemp(u.s.path("staging"), "layer-")
		if err != nil {
			return api.Internal("unpack layer %s: %w", ref.Diff, err)
		}
		out, err := u.stage(ctx, i, dir)
		if err == nil && i > 0 {
			err = u.layer(ctx, i-1) // it may lend directories; its flight began before or begins now
		}
		if err == nil {
			err = u.s.commitLayer(dir, ref, u.refs[:i], out)
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
		return nil
	})
}

func (s *Store) hasLayer(chain digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.layers[chain]
	return ok
}

// stage unpacks the i-th layer into dir/fs: reading and decompressing, hashing and
// writing files run beside each other.
func (u *unpacker) stage(ctx context.Context, i int, dir string) (extracted, error) {
	ref := u.refs[i]
	src, err := u.source(ctx, ref)
	if err != nil {
		return extracted{}, err
	}
	defer src.Close()
	if _, waits := src.(*arriving); !waits { // who waits for the network must not keep others from working
		select {
		case u.s.workers <- struct{}{}:
			defer func() { <-u.s.workers }()
		case <-ctx.Done():
			return extracted{}, context.Cause(ctx)
		}
	}
	counted := &counter{r: src, tell: func(n int64) {
		if u.progress != nil {
			u.progress(i, n)
		}
	}}
	out, diff, err := unpackTo(ctx, counted, filepath.Join(dir, "fs"), u.s.cfg.Limits, u.s.overlay)
	if err != nil {
		return out, wrapUnpack(ref.Desc.Digest, err)
	}
	if diff != ref.Diff {
		return out, api.Errorf(errdefs.ErrDataLoss, "invalid diffID for layer %d: expected %q, got %q", i, ref.Diff, diff)
	}
	return out, nil
}

// wrapUnpack names the blob. Errors without a class are this host's own.
func wrapUnpack(d digest.Digest, err error) error {
	if errors.Is(err, context.Canceled) || errdefs.IsInvalidArgument(err) || errdefs.IsUnavailable(err) {
		return fmt.Errorf("unpack layer %s: %w", d, err)
	}
	return api.Internal("unpack layer %s: %w", d, err)
}

// counter tells how many bytes were read through it.
type counter struct {
	r    io.Reader
	n    int64
	tell func(int64)
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if n > 0 {
		c.tell(c.n)
	}
	return n, err
}

// unpackTo unpacks a layer, compressed or not, into the new directory dir and
// returns its diff ID.
func unpackTo(ctx context.Context, blob io.Reader, dir string, limits Limits, overlay bool) (extracted, digest.Digest, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return extracted{}, "", err
	}
	plainTar, _, err := decompress(blob)
	if err != nil {
		return extracted{}, "", err
	}
	defer plainTar.Close()
	digester := digest.SHA256.Digester()
	// A tar of many small files is larger than its files: 512 bytes of header and
	// up to 511 of padding each, more with long names.
	bound := &bounded{r: plainTar, left: limits.LayerBytes + int64(limits.LayerEntries)*4096}
	ahead := newReadAhead(io.TeeReader(bound, digester.Hash()))
	defer ahead.Close()
	x, err := newExtractor(dir, limits, overlay)
	if err != nil {
		return extracted{}, "", err
	}
	defer x.Close()
	out, err := x.run(ctx, ahead)
	if err != nil {
		return out, "", err
	}
	// What follows the end mark counts for the digest.
	if _, err := io.Copy(io.Discard, ahead); err != nil {
		return out, "", badTar(err)
	}
	return out, digester.Digest(), nil
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

// commitLayer makes a staged layer one of the store's.
func (s *Store) commitLayer(dir string, ref layerRef, below []layerRef, out extracted) error {
	var lower []string
	for _, b := range slices.Backward(below) {
		lower = append(lower, s.layerFS(b.Chain))
	}
	if err := inheritDirs(filepath.Join(dir, "fs"), lower, out.implicit); err != nil {
		return api.Internal("unpack layer %s: %w", ref.Diff, err)
	}
	if s.overlay {
		if err := pruneWhiteouts(filepath.Join(dir, "fs"), lower, out.whiteouts); err != nil {
			return api.Internal("unpack layer %s: %w", ref.Diff, err)
		}
	}
	if len(out.skipped) > 0 {
		s.log.Warn("layer has extended attributes that the file system does not take", "layer", ref.Diff, "names", slices.Sorted(maps.Keys(out.skipped)))
	}
	rec := layerRecord{
		Chain: ref.Chain, Diff: ref.Diff, Size: out.bytes, Entries: out.entries,
		Boot: s.boot, Overlay: s.overlay, OpaqueRoot: slices.Contains(out.opaques, "."),
	}
	if !s.overlay {
		rec.Whiteouts, rec.Opaques = out.whiteouts, out.opaques
	}
	if err := writeRecord(filepath.Join(dir, "layer"), rec, false); err != nil {
		return api.Internal("record layer %s: %w", ref.Diff, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[ref.Chain]; ok {
		return os.RemoveAll(dir)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // users of containers look up paths through it
		return err
	}
	if err := os.Rename(dir, s.layerPath(ref.Chain)); err != nil {
		return api.Internal("keep layer %s: %w", ref.Diff, err)
	}
	s.layers[ref.Chain] = rec
	return nil
}
