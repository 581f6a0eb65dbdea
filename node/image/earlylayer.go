package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/image/early"
)

const (
	// minEarly is how large a layer must be to be read before it is here.
	minEarly = 4 << 20
	// vouchTime is how long is waited for somebody to vouch for a layer: who holds it may
	// have to cut it first.
	vouchTime = 5 * time.Minute
)

// readableSoon makes those layers of an image that aren't here early blobs, before they
// are fetched, if anybody could vouch for them.
func (s *Store) readableSoon(in *incoming, refs []layerRef) []*earlyBlob {
	if s.cfg.Early == nil || !s.tars || !s.overlay || s.cfg.Directories {
		return nil
	}
	var all []*earlyBlob
	seen := map[digest.Digest]bool{}
	for _, ref := range refs {
		plain := ref.Desc.Digest == ref.Diff
		if seen[ref.Diff] || !plain || ref.Desc.Size < minEarly || s.hasLayer(ref.Chain) || s.has(ref.Desc.Digest) {
			continue
		}
		seen[ref.Diff] = true
		e, mine, err := s.makeEarly(ref)
		if err != nil {
			s.log.Info("a layer can't be read before it is here", "layer", ref.Desc.Digest, "reason", err)
			continue
		}
		if mine {
			s.mu.Lock()
			in.blobs = append(in.blobs, e)
			s.mu.Unlock()
		}
		all = append(all, e)
	}
	return all
}

// findVoucher waits for somebody who vouches for the blob. heard is closed then, or when
// nobody does.
func (e *earlyBlob) findVoucher(ctx context.Context, heard chan<- struct{}) {
	defer close(heard)
	ctx, cancel := context.WithTimeout(ctx, vouchTime)
	defer cancel()
	for {
		v, err := e.s.cfg.Early.Vouch(ctx, e.want)
		if err == nil {
			e.vouch(v)
			return
		}
		e.s.log.Debug("nobody vouches for a layer yet", "layer", e.want.Digest, "reason", err)
		if wait(ctx, bringAgain); ctx.Err() != nil {
			return
		}
	}
}

// makeEarly makes a blob one that containers may read before it is here.
func (s *Store) makeEarly(ref layerRef) (e *earlyBlob, fresh bool, err error) {
	s.ingests.mu.Lock()
	defer s.ingests.mu.Unlock()
	if e := s.ingests.early[ref.Desc.Digest]; e != nil {
		return e, false, nil
	}
	if s.ingests.m[ref.Desc.Digest] != nil {
		return nil, false, errors.New("it is arriving already")
	}
	if e, err = newEarlyBlob(s, ref); err != nil {
		return nil, false, err
	}
	s.ingests.early[ref.Desc.Digest] = e
	return e, true, nil
}

// earlyBlob is the one of a layer in its place, if it may be read but isn't.
func (s *Store) earlyBlob(ref layerRef) *earlyBlob {
	s.ingests.mu.Lock()
	defer s.ingests.mu.Unlock()
	if e := s.ingests.early[ref.Desc.Digest]; e != nil && e.rec.Ref.Chain == ref.Chain {
		return e
	}
	return nil
}

// usable says whether containers can use a layer.
func (s *Store) usable(chain digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, whole := s.layers[chain]
	return whole || s.earlyLayers[chain] != nil
}

func (e *earlyBlob) layerDir() string { return filepath.Join(e.dir, "layer") }
func (e *earlyBlob) fs() string       { return filepath.Join(e.dir, "layer", "fs") }

// open makes the layer readable: it makes its tree of what the one who vouches says, and
// mounts that over what a keeper serves.
func (e *earlyBlob) open(ctx context.Context, below []layerRef) error {
	e.mu.Lock()
	v := e.vouched
	e.mu.Unlock()
	if v == nil {
		return errors.New("nobody vouches for it")
	}
	outline, err := v.Outline(ctx)
	if err != nil {
		return fmt.Errorf("ask for its outline: %w", err)
	}
	tree := &outlined{left: outline, size: e.want.Size}
	needsTar, err := e.plant(ctx, tree, job{turn: len(below) == 0, sum: func() digest.Digest { return e.rec.Ref.Diff }}, below)
	if err == nil && !needsTar {
		err = errors.New("it has no contents of its own")
	}
	if err != nil {
		return fmt.Errorf("make its tree: %w", err)
	}
	program, err := e.s.cfg.Early.Program()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer program.Close()
	file, keeper, err := early.Start(e.dir, program, e.data, e.want.Size)
	if err != nil {
		return err
	}
	defer file.Close()
	e.mu.Lock()
	e.keeper = keeper
	for _, s := range slices.Clone(e.proven) {
		e.prove(s)
	}
	e.mu.Unlock()
	if err := mountImage(filepath.Join(e.layerDir(), "image"), procPath(int(file.Fd()), ""), e.fs()); err != nil {
		return errors.Join(err, keeper.Close())
	}
	return writeRecord(filepath.Join(e.dir, "record"), e.rec, true)
}

// openHeld makes a layer usable whose blob is here, over others that arrive still.
func (s *Store) openHeld(ctx context.Context, ref layerRef, below []layerRef) (*earlyBlob, error) {
	e := &earlyBlob{
		s: s, dir: s.path("early", "held-"+ref.Chain.Encoded()), want: bare(ref.Desc), rec: earlyRecord{Ref: ref},
		held: true, lost: make(chan struct{}), users: map[string]struct{}{},
	}
	if err := os.MkdirAll(e.dir, 0o711); err != nil {
		return nil, err
	}
	src, err := s.open(ref.Desc.Digest)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	needsTar, err := e.plant(ctx, src, job{turn: len(below) == 0}, below)
	if err == nil {
		tar := ""
		if needsTar {
			tar = s.blobPath(ref.Desc.Digest)
		}
		err = mountImage(filepath.Join(e.layerDir(), "image"), tar, e.fs())
	}
	if err != nil {
		return nil, errors.Join(err, s.removeEarly(e.dir))
	}
	return e, nil
}

// hasLayers says whether layers are there.
func (s *Store) hasLayers(refs []layerRef) bool {
	return !slices.ContainsFunc(refs, func(r layerRef) bool { return !s.hasLayer(r.Chain) })
}

// plant makes the layer's tree of what it can be read from, and says whether that needs
// the tar for contents.
func (e *earlyBlob) plant(ctx context.Context, r io.Reader, j job, below []layerRef) (needsTar bool, err error) {
	s, ref := e.s, e.rec.Ref
	st, err := s.unpack(ctx, r, j)
	if err != nil {
		return false, err
	}
	defer st.drop() //nolint:errcheck // what is left of it is swept from staging
	if st.diff != ref.Diff {
		return false, fmt.Errorf("it unpacks to %s, not %s", st.diff, ref.Diff)
	}
	user := s.mounts.temporary()
	defer s.mounts.leave(user)
	at := func(i int) (string, error) { return s.use(user, below[len(below)-1-i].Chain) }
	if err := settle(st.to, lowers{len(below), at}, st.out); err != nil {
		return false, err
	}
	if err := st.to.finish(); err != nil {
		return false, err
	}
	img, ok := st.to.(*imagePlace)
	if !ok {
		return false, errors.New("it is no image")
	}
	if err := st.to.Close(); err != nil {
		return false, err
	}
	e.rec.Layer = layerRecord{
		Chain: ref.Chain, Diff: ref.Diff, Size: st.out.bytes, Entries: st.out.entries, Image: true, Overlay: true,
		Boot: s.boot, Tar: ref.Desc.Digest, TarSize: ref.Desc.Size, OpaqueRoot: slices.Contains(st.out.opaques, "."),
	}
	return img.needsTar, os.Rename(st.dir, e.layerDir())
}

func (s *Store) isOpened(e *earlyBlob) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.opened
}

// sameTree says whether the tree that containers read is the one that the whole blob has.
func (s *Store) sameTree(e *earlyBlob) bool {
	same, err := sameFile(filepath.Join(e.layerDir(), "image"), s.imagePath(e.rec.Ref.Chain))
	if err != nil {
		s.log.Warn("compare a layer's tree with what was said of it", "layer", e.rec.Ref.Chain, "error", err)
	}
	return same
}

func sameFile(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ba, bb := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errA := io.ReadFull(fa, ba)
		m, errB := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:n], bb[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			if errors.Is(errA, io.ErrUnexpectedEOF) || errA == io.EOF {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

// dropEarly forgets an early blob. Who has it mounted keeps it, and its keeper.
func (s *Store) dropEarly(e *earlyBlob) {
	s.mu.Lock()
	if s.earlyLayers[e.rec.Ref.Chain] == e {
		delete(s.earlyLayers, e.rec.Ref.Chain)
	}
	s.mu.Unlock()
	s.ingests.mu.Lock()
	if s.ingests.early[e.want.Digest] == e {
		delete(s.ingests.early, e.want.Digest)
	}
	s.ingests.mu.Unlock()
	e.close()
	if err := s.removeEarly(e.dir); err != nil {
		s.log.Warn("remove what was read before it was here", "path", e.dir, "error", err)
	}
}

func (s *Store) removeEarly(dir string) error {
	return errors.Join(unmountLayer(filepath.Join(dir, "layer", "fs"), unix.MNT_DETACH), s.trash(dir))
}

// trouble tells of those containers that read an early blob; stop says that they must
// not go on.
func (s *Store) trouble(e *earlyBlob, reason error, stop bool) {
	s.log.Error("trouble with an image that containers run on", "layer", e.rec.Ref.Chain, "error", reason)
	s.mu.Lock()
	if stop && s.earlyLayers[e.rec.Ref.Chain] == e {
		delete(s.earlyLayers, e.rec.Ref.Chain) // nobody else begins with it
	}
	var ids []string
	for id := range e.users {
		if _, ok := s.boxes[id]; ok {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	s.notify.Lock()
	defer s.notify.Unlock()
	for _, id := range ids {
		for _, f := range s.troubled {
			f(id, reason, stop)
		}
	}
}

// OnTrouble registers a function to be told of containers whose image proves to be wrong
// (stop: they must not go on) or has stopped arriving. It must not change the store, nor
// block.
func (s *Store) OnTrouble(f func(container string, reason error, stop bool)) {
	s.notify.Lock()
	defer s.notify.Unlock()
	s.troubled = append(s.troubled, f)
}

// adoptEarly finds what an earlier process let containers read before it was here, and
// the images that were arriving. What has no keeper any more is removed.
func (s *Store) adoptEarly() error {
	entries, err := os.ReadDir(s.path("early"))
	if err != nil {
		return err
	}
	var found []*earlyBlob
	for _, d := range entries {
		dir := s.path("early", d.Name())
		e, err := s.adoptOne(dir)
		if err == nil {
			found = append(found, e)
			continue
		}
		s.log.Info("what was arriving for containers is dropped", "path", dir, "reason", err)
		if err := s.removeEarly(dir); err != nil {
			return err
		}
	}
	return eachRecord(s.path("records", "arriving"), func(path string) error {
		return s.adoptIncoming(path, found)
	}, s.logRefused)
}

func (s *Store) adoptOne(dir string) (*earlyBlob, error) {
	var rec earlyRecord
	if err := readRecord(filepath.Join(dir, "record"), &rec); err != nil {
		return nil, err
	}
	keeper, have, err := early.Dial(dir)
	if err != nil {
		return nil, err
	}
	if s.has(rec.Ref.Desc.Digest) { // it was about to be forgotten
		return nil, errors.Join(errors.New("it is whole"), keeper.Have(early.Span{End: keeper.Size()}), keeper.Close())
	}
	e := &earlyBlob{s: s, dir: dir, want: bare(rec.Ref.Desc), rec: rec, keeper: keeper, proven: have, written: slices.Clone(have), lost: make(chan struct{}), users: map[string]struct{}{}, vouches: 1, opened: true}
	on, err := mountinfo.Mounted(e.fs())
	if err == nil && !on {
		err = errors.New("it isn't mounted")
	}
	if err == nil {
		e.data, err = os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR, 0)
	}
	if err != nil {
		return nil, errors.Join(err, keeper.Close())
	}
	for id, box := range s.boxes {
		if slices.ContainsFunc(box.Layers, func(l layerRef) bool { return l.Chain == rec.Ref.Chain }) {
			e.users[id] = struct{}{}
		}
	}
	s.ingests.early[e.want.Digest] = e
	s.earlyLayers[rec.Ref.Chain] = e
	return e, nil
}

// adoptIncoming goes on with an image that was arriving. Run fetches the rest.
func (s *Store) adoptIncoming(path string, found []*earlyBlob) error {
	var rec incomingRecord
	if err := readRecord(path, &rec); err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(rec.Ref)
	if err != nil || path != s.incomingPath(rec.Target) {
		return fmt.Errorf("record %s: is of %q", path, rec.Ref)
	}
	in := s.newIncoming(rec, named)
	p := &pull{s: s, l: s.lease(), target: rec.Target, p: rec.Platform}
	defer p.l.release()
	manifest, target := p.heldManifest()
	if manifest != "" {
		m := target
		m.Digest = manifest
		if add, err := s.addition(target, m); err == nil {
			in.know(add)
			for _, e := range found {
				if slices.ContainsFunc(add.refs, func(r layerRef) bool { return r.Chain == e.rec.Ref.Chain }) {
					in.blobs = append(in.blobs, e)
				}
			}
		}
	}
	s.incoming[rec.Target] = in
	return nil
}

// resume goes on with images that were arriving when the last process ended.
func (s *Store) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.incoming {
		if !in.resumed && s.jobs.begin() {
			in.resumed = true
			go in.run(s.jobs.life)
		}
	}
}
