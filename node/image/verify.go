package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// CheckState is what Verify made of something.
type CheckState string

// What can be the matter.
const (
	CheckOK       CheckState = "ok"
	CheckRepaired CheckState = "repaired" // was damaged or missing, and is here again
	CheckDropped  CheckState = "dropped"  // was damaged, and nothing needs it
	CheckLost     CheckState = "lost"     // is needed, and nobody has it
	CheckFailed   CheckState = "failed"   // Verify itself could not go on; the last line on the wire
)

// What is checked.
const (
	CheckBlob  = "blob"
	CheckLayer = "layer" // the record of an unpacked one; Digest is its chain ID
)

// Checked is one thing that Verify looked at.
type Checked struct {
	Kind   string        `json:"kind,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
	Images []string      `json:"images"` // that need it: a name of each, or its ID
	Size   int64         `json:"size"`
	State  CheckState    `json:"state"`
	Why    string        `json:"why,omitempty"` // what was wrong, and what came of it
}

// quarantine is where damaged blobs are put, below the root. They are evidence, and
// keep a bad spot of a disk from being used again at once; a later Verify removes
// those that are older than Config.Keep and held anew.
const quarantine = "quarantine"

// item is a blob or layer to look at, with all that is known of it.
type item struct {
	Checked
	size   int64           // of the blob; 0 if not known
	wholes []digest.Digest // what it is part of, for those who know only holders of wholes
	layers []layerRef      // of kind layer: an image's, up to this one
	needed bool
}

// Verify reads everything that images need, or the store holds if refs is empty,
// from the disk again and compares it with its digest. What doesn't match is moved
// to the quarantine and fetched again as in a pull. Containers run on meanwhile. The
// stream ends early with an error only if ctx does.
func (s *Store) Verify(ctx context.Context, refs []string) (api.Stream[Checked], error) {
	items, err := s.inventory(refs)
	if err != nil {
		return nil, err
	}
	if !s.jobs.begin() {
		return nil, api.Unavailable("the image store is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.jobs.life, cancel)
	stream, send, finish := api.Pipe[Checked](ctx)
	go func() {
		defer s.jobs.end()
		defer cancel()
		defer unhook()
		finish(s.verify(ctx, items, send))
	}()
	return verification{stream, cancel}, nil
}

// verification ends its work when it is closed.
type verification struct {
	api.Stream[Checked]
	cancel context.CancelFunc
}

func (v verification) Close() error {
	v.cancel()
	return v.Stream.Close()
}

func (s *Store) verify(ctx context.Context, items []*item, send func(Checked) error) error {
	for _, it := range items {
		l := s.lease()
		l.hold(it.Digest)
		check := s.verifyBlob
		if it.Kind == CheckLayer {
			check = s.verifyLayer
		}
		err := check(ctx, it)
		l.release()
		if err != nil {
			return err
		}
		if it.State == "" { // went while we were on the way
			continue
		}
		if it.State != CheckOK {
			s.log.Warn("image store: damage found", "kind", it.Kind, "digest", it.Digest, "state", it.State, "detail", it.Why)
		}
		if err := send(it.Checked); err != nil {
			return err
		}
	}
	return s.thinQuarantine(time.Now())
}

// inventory lists what there is to look at: blobs first, since layers are made of them.
func (s *Store) inventory(refs []string) ([]*item, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := inventory{s: s, blobs: map[digest.Digest]*item{}, layers: map[digest.Digest]*item{}}
	if len(refs) > 0 {
		for _, ref := range refs {
			e, _, err := s.find(ref)
			if err != nil {
				return nil, err
			}
			v.image(e)
		}
		return v.sorted(), nil
	}
	for _, e := range s.images {
		v.image(e)
	}
	for _, k := range s.kept {
		for _, d := range append([]digest.Digest{k.Target}, k.Blobs...) {
			v.blob(ocispec.Descriptor{Digest: d}, k.Name, k.Target)
		}
	}
	for _, c := range s.boxes {
		for i, l := range c.Layers {
			v.blob(l.Desc, "", "")
			v.layer(c.Layers[:i+1], "")
		}
	}
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return nil, api.Internal("list blobs: %w", err)
	}
	live := s.live()
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil || v.blobs[d] != nil {
			continue
		}
		v.blob(ocispec.Descriptor{Digest: d}, "", "")
		_, v.blobs[d].needed = live[d]
	}
	return v.sorted(), nil
}

type inventory struct {
	s             *Store
	blobs, layers map[digest.Digest]*item
}

func (v *inventory) image(e *entry) {
	name := short(e.rec.ID)
	if tags, _ := v.s.namesOf(e.rec.ID); len(tags) > 0 {
		name = tags[0]
	}
	for i, m := range e.rec.Manifests {
		whole, body := m.Target.Digest, e.bodies[i]
		v.blob(m.Target, name, whole)
		v.blob(m.Manifest, name, whole)
		v.blob(body.Config, name, whole)
		for _, l := range body.Layers {
			v.blob(l, name, whole)
		}
		refs := layerRefs(body.Layers, e.cfg.RootFS.DiffIDs)
		for j := range refs {
			v.layer(refs[:j+1], name)
		}
	}
}

func (v *inventory) blob(d ocispec.Descriptor, image string, whole digest.Digest) {
	it := v.blobs[d.Digest]
	if it == nil {
		it = &item{Checked: Checked{Kind: CheckBlob, Digest: d.Digest, Images: []string{}}, needed: true}
		v.blobs[d.Digest] = it
	}
	it.size = max(it.size, d.Size)
	if whole != "" && !slices.Contains(it.wholes, whole) {
		it.wholes = append(it.wholes, whole)
	}
	it.of(image)
}

func (v *inventory) layer(refs []layerRef, image string) {
	chain := refs[len(refs)-1].Chain
	it := v.layers[chain]
	if it == nil {
		it = &item{Checked: Checked{Kind: CheckLayer, Digest: chain, Images: []string{}}, layers: refs, needed: true}
		v.layers[chain] = it
	}
	it.of(image)
}

func (it *item) of(image string) {
	if image != "" && !slices.Contains(it.Images, image) {
		it.Images = append(it.Images, image)
	}
}

func (v *inventory) sorted() []*item {
	blobs := slices.SortedFunc(maps.Values(v.blobs), func(a, b *item) int { return cmp.Compare(a.Digest, b.Digest) })
	// Lower layers first.
	layers := slices.SortedFunc(maps.Values(v.layers), func(a, b *item) int {
		return cmp.Or(cmp.Compare(len(a.layers), len(b.layers)), cmp.Compare(a.Digest, b.Digest))
	})
	for _, it := range slices.Concat(blobs, layers) {
		slices.Sort(it.Images)
	}
	return slices.Concat(blobs, layers)
}

// verifyBlob looks at one blob and mends it if need be. An error is ctx's.
func (s *Store) verifyBlob(ctx context.Context, it *item) error {
	f, err := os.Open(s.blobPath(it.Digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if s.stillNeeded(it.Digest) {
			s.mend(ctx, it, "missing")
		}
		return ctx.Err()
	case err != nil:
		it.State, it.Why = CheckLost, err.Error()
		return nil
	}
	defer f.Close()
	n, damage, err := rehash(ctx, f, it.Digest)
	if err != nil {
		return err
	}
	it.Size = n
	if damage == "" {
		it.State = CheckOK
		return nil
	}
	if err := s.setAside(f, it.Digest); err != nil {
		it.State, it.Why = CheckLost, damage+"; could not be put aside: "+err.Error()
		return nil
	}
	n, err = s.detachTar(it.Digest)
	if err != nil {
		s.log.Warn("layers of a damaged blob could not be unmounted", "blob", it.Digest, "error", err)
	}
	if n > 0 {
		damage += fmt.Sprintf("; %d running containers see what is damaged until they are started again", n)
	}
	s.mend(ctx, it, damage)
	return ctx.Err()
}

// rehash reads a file and says what is wrong with it; an error is ctx's.
func rehash(ctx context.Context, f *os.File, want digest.Digest) (n int64, damage string, err error) {
	// What the page cache has is not what the disk has.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	h, buf := digest.SHA256.Hash(), make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return n, "", context.Cause(ctx)
		}
		k, err := f.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		switch {
		case err == io.EOF:
			if got := digest.NewDigest(digest.SHA256, h); got != want {
				return n, "its digest is " + got.String(), nil
			}
			return n, "", nil
		case err != nil:
			return n, fmt.Sprintf("can't be read at byte %d: %v", n, err), nil
		}
	}
}

// stillNeeded says whether anything but the lease of who asks needs a blob.
func (s *Store) stillNeeded(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.images {
		if slices.Contains(e.needs().blobs, d) {
			return true
		}
	}
	for _, c := range s.boxes {
		if slices.Contains(c.needs().blobs, d) {
			return true
		}
	}
	for _, k := range s.kept {
		if k.Target == d || slices.Contains(k.Blobs, d) {
			return true
		}
	}
	return s.leased[d] > 1
}

// setAside moves the blob that f is open on to the quarantine, unless another file
// has taken its place meanwhile. From then on nobody is served it, and it can be
// fetched.
func (s *Store) setAside(f *os.File, d digest.Digest) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.path(quarantine), 0o700); err != nil {
		return err
	}
	s.ingests.mu.Lock() // no blob comes under its name while this is held
	defer s.ingests.mu.Unlock()
	now, err := os.Stat(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, now) {
		return nil
	}
	if err != nil {
		return err
	}
	aside := s.path(quarantine, d.Encoded())
	if err := os.Rename(s.blobPath(d), aside); err != nil {
		return err
	}
	at := time.Now()
	return errors.Join(os.Chtimes(aside, at, at), syncDir(filepath.Dir(s.blobPath(d))))
}

// mend fetches a blob that is not held any more.
func (s *Store) mend(ctx context.Context, it *item, damage string) {
	if !it.needed {
		it.State, it.Why = CheckDropped, damage+"; nothing needs it"
		return
	}
	wholes := it.wholes
	if len(wholes) == 0 {
		wholes = []digest.Digest{it.Digest}
	}
	var errs []error
	for _, whole := range wholes {
		err := s.fetch(transfer.PartOf(ctx, whole), ocispec.Descriptor{Digest: it.Digest, Size: it.size})
		if err == nil {
			if d, err := s.Stat(ctx, it.Digest); err == nil {
				it.Size = d.Size
			}
			it.State, it.Why = CheckRepaired, damage+"; fetched again"
			return
		}
		errs = append(errs, err)
	}
	it.State, it.Why = CheckLost, damage+"; "+strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ")
}

// verifyLayer looks at the record of an unpacked layer. What is in memory was read
// from it, or written to it, and is the truth while the store is open.
func (s *Store) verifyLayer(ctx context.Context, it *item) error {
	s.mu.Lock()
	rec, known := s.layers[it.Digest]
	s.mu.Unlock()
	if !known {
		return nil // unpacked when it is needed
	}
	it.Size = rec.Size
	path, tree := s.layerPath(it.Digest), s.layerFS(it.Digest)
	if rec.Image {
		tree = s.imagePath(it.Digest)
	}
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		return s.unpackAgain(ctx, it)
	}
	var onDisk layerRecord
	err := readRecord(filepath.Join(path, "layer"), &onDisk)
	if err == nil && onDisk.Chain != it.Digest {
		err = fmt.Errorf("is of layer %s", onDisk.Chain)
	}
	if err == nil {
		it.State = CheckOK
		return nil
	}
	it.State, it.Why = CheckRepaired, err.Error()+"; written again"
	if werr := writeRecord(filepath.Join(path, "layer"), rec, true); werr != nil {
		it.State, it.Why = CheckLost, err.Error()+"; "+werr.Error()
	}
	return nil
}

// unpackAgain makes a layer anew whose tree is gone.
func (s *Store) unpackAgain(ctx context.Context, it *item) error {
	l := s.lease()
	defer l.release()
	for _, ref := range it.layers {
		l.hold(ref.Chain, ref.Desc.Digest)
	}
	err := s.dropLayer(it.Digest)
	if err == nil {
		err = s.ensure(ctx, it.layers)
	}
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		it.State, it.Why = CheckLost, "missing; "+err.Error()
		return nil
	}
	it.State, it.Why = CheckRepaired, "missing; unpacked again"
	return nil
}

// thinQuarantine removes what has been there for long and is held anew.
func (s *Store) thinQuarantine(now time.Time) error {
	entries, err := os.ReadDir(s.path(quarantine))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		fi, err := e.Info()
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if err == nil && d.Validate() == nil && s.has(d) && now.Sub(fi.ModTime()) > s.cfg.Keep {
			errs = append(errs, os.Remove(s.path(quarantine, e.Name())))
		}
	}
	return errors.Join(append(errs, err)...)
}
