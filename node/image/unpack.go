package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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
	// Image says that the layer is an EROFS image file, mounted where others have
	// their directory.
	Image bool `json:"image,omitempty"`
	// Tar is the blob that has the contents, if the image has only the tree.
	Tar     digest.Digest `json:"tar,omitempty"`
	TarSize int64         `json:"tarSize,omitempty"`
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
func (s *Store) imagePath(chain digest.Digest) string {
	return filepath.Join(s.layerPath(chain), "image")
}

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
		case err == nil && rec.Image && !s.mountable:
			err = errors.New("is an image file, which can't be mounted here")
		case err == nil && rec.Tar != "" && !s.tars:
			err = errors.New("is a tar, which can't be mounted here")
		case err == nil && rec.Tar != "" && !s.has(rec.Tar):
			err = fmt.Errorf("stands on blob %s, which is not here", rec.Tar)
		}
		if err != nil {
			s.log.Warn("layer is dropped, and unpacked again when needed", "path", path, "reason", err)
			if err := errors.Join(unmountLayer(filepath.Join(path, "fs"), unix.MNT_DETACH), s.trash(path)); err != nil {
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
	// ahead, which may be nil, has what was unpacked before it was known to be a
	// layer: it returns a blob's, once.
	ahead func(blob digest.Digest) *staged
}

// run makes sure that every layer is there and returns their sizes. The caller holds
// a lease on the layers.
func (u *unpacker) run(ctx context.Context) ([]int64, error) {
	err := u.all(ctx)
	for range u.refs { // what is below a layer may prove to be damaged
		dropped, e := u.s.dropDamaged(err)
		if e != nil {
			return nil, errors.Join(err, e)
		}
		if !dropped {
			break
		}
		err = u.all(ctx)
	}
	if err != nil {
		return nil, err
	}
	u.s.changed()
	return u.s.layerSizes(u.refs)
}

func (u *unpacker) all(ctx context.Context) error {
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
	return g.Wait()
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
		st, err := u.stage(ctx, i, i == 0)
		if err != nil && !errors.Is(err, errNoRoom) {
			return err
		}
		if i > 0 { // it may lend directories; its flight began before or begins now
			if err := u.layer(ctx, i-1); err != nil {
				return errors.Join(err, st.drop())
			}
		}
		if st == nil {
			if st, err = u.stage(ctx, i, true); err != nil {
				return err
			}
		}
		return errors.Join(u.s.commitLayer(st, ref, u.refs[:i]), st.drop())
	})
}

func (s *Store) hasLayer(chain digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.layers[chain]
	return ok
}

// stage unpacks the i-th layer. turn says that those below it are there.
func (u *unpacker) stage(ctx context.Context, i int, turn bool) (*staged, error) {
	ref := u.refs[i]
	if u.ahead != nil {
		if st := u.ahead(ref.Desc.Digest); st != nil {
			if u.progress != nil {
				u.progress(i, ref.Desc.Size)
			}
			return st.of(i, ref)
		}
	}
	st, err := u.unpack(ctx, i, turn, false)
	if errors.Is(err, errPadding) {
		st, err = u.unpack(ctx, i, turn, true)
	}
	if err != nil {
		return nil, err
	}
	return st.of(i, ref)
}

// unpack unpacks the i-th layer's blob; see Store.unpack for copied.
func (u *unpacker) unpack(ctx context.Context, i int, turn, copied bool) (*staged, error) {
	ref := u.refs[i]
	src, err := u.source(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	counted := counter{r: src, tell: func(n int64) {
		if u.progress != nil {
			u.progress(i, n)
		}
	}}
	var r io.Reader = &counted
	job := job{turn: turn, copied: copied}
	if a, waits := src.(*arriving); waits { // who waits for the network must not keep others from working
		r, job.sum = &skipped{counted, a}, a.digest
	} else {
		free, err := u.s.work(ctx)
		if err != nil {
			return nil, err
		}
		defer free()
	}
	st, err := u.s.unpack(ctx, r, job)
	if err != nil {
		return nil, wrapUnpack(ref.Desc.Digest, err)
	}
	return st, nil
}

// work waits for one of the workers that unpack; free lets the next have it.
func (s *Store) work(ctx context.Context) (free func(), err error) {
	select {
	case s.workers <- struct{}{}:
		return func() { <-s.workers }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// wrapUnpack names the blob. Errors without a class are this host's own.
func wrapUnpack(d digest.Digest, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, errNoRoom) || errors.Is(err, errPadding) || errdefs.IsInvalidArgument(err) || errdefs.IsUnavailable(err) {
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

// skipped is a counter of what can be passed over, which counts, too.
type skipped struct {
	counter
	s skipper
}

func (c *skipped) pass(n int64) {
	c.n += n
	c.tell(c.n)
	c.s.pass(n)
}

// commitLayer makes a staged layer one of the store's. Those below are.
func (s *Store) commitLayer(st *staged, ref layerRef, below []layerRef) error {
	user := s.mounts.temporary()
	defer s.mounts.leave(user)
	at := func(i int) (string, error) { return s.use(user, below[len(below)-1-i].Chain) }
	if err := settle(st.to, lowers{len(below), at}, st.out); err != nil {
		return fmt.Errorf("unpack layer %s: %w", ref.Diff, err)
	}
	if err := st.to.finish(); err != nil {
		return wrapUnpack(ref.Desc.Digest, err)
	}
	if lost := st.to.lost(); len(lost) > 0 {
		s.log.Warn("layer has extended attributes that can't be kept", "layer", ref.Diff, "names", lost)
	}
	if err := st.to.Close(); err != nil {
		return wrapUnpack(ref.Desc.Digest, err)
	}
	img, isImage := st.to.(*imagePlace)
	rec := layerRecord{
		Chain: ref.Chain, Diff: ref.Diff, Size: st.out.bytes, Entries: st.out.entries, Image: isImage,
		Boot: s.boot, Overlay: s.overlay, OpaqueRoot: slices.Contains(st.out.opaques, "."),
	}
	if isImage && img.needsTar {
		blob, err := s.Stat(context.Background(), st.diff)
		if err != nil {
			return fmt.Errorf("keep layer %s: %w", ref.Diff, err)
		}
		rec.Tar, rec.TarSize = blob.Digest, blob.Size
	}
	if !s.overlay {
		rec.Whiteouts, rec.Opaques = st.out.whiteouts, st.out.opaques
	}
	if err := writeRecord(filepath.Join(st.dir, "layer"), rec, false); err != nil {
		return api.Internal("record layer %s: %w", ref.Diff, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[ref.Chain]; ok {
		return nil // st is dropped
	}
	if err := os.Chmod(st.dir, 0o711); err != nil { //nolint:gosec // users of containers look up paths through it
		return err
	}
	if err := os.Rename(st.dir, s.layerPath(ref.Chain)); err != nil {
		return api.Internal("keep layer %s: %w", ref.Diff, err)
	}
	s.layers[ref.Chain] = rec
	return nil
}
