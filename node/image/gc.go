package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// lease keeps blobs and layers that a job needs before any record names them. Take
// it before looking whether something is there.
type lease struct {
	s    *Store
	held []digest.Digest
}

func (s *Store) lease() *lease { return &lease{s: s} }

// hold adds blobs' digests or layers' chain IDs.
func (l *lease) hold(ds ...digest.Digest) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.take(ds...)
}

// take is hold with mu held, for what was found under the same lock.
func (l *lease) take(ds ...digest.Digest) {
	for _, d := range ds {
		l.s.leased[d]++
	}
	l.held = append(l.held, ds...)
}

func (l *lease) release() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, d := range l.held {
		if l.s.leased[d]--; l.s.leased[d] == 0 {
			delete(l.s.leased, d)
		}
	}
	l.held = nil
}

// end releases the lease of a job that ended so. If that was for want of space, what the
// job brought and nothing else needs goes at once: it would keep the host from all else
// until sweep finds it.
func (l *lease) end(err error) {
	held := l.held
	l.release()
	if !errors.Is(err, unix.ENOSPC) {
		return
	}
	if err := l.s.sweepOne(needed{chains: held, blobs: held}); err != nil {
		l.s.log.Warn("remove what a full disk had no room for", "error", err)
	}
	l.s.changed() // for what has to be unmounted first
}

// needed is what a record keeps: chain IDs bottom first, and blobs.
type needed struct{ chains, blobs []digest.Digest }

func (n needed) all() []digest.Digest { return slices.Concat(n.chains, n.blobs) }

func (e *entry) needs() needed {
	n := needed{chains: chains(e.cfg.RootFS.DiffIDs), blobs: []digest.Digest{e.rec.ID}}
	for i, m := range e.rec.Manifests {
		n.blobs = append(n.blobs, m.Target.Digest, m.Manifest.Digest)
		for _, l := range e.bodies[i].Layers {
			n.blobs = append(n.blobs, l.Digest)
		}
	}
	return n
}

// live is everything that must stay; with mu held.
func (s *Store) live() map[digest.Digest]struct{} {
	live := make(map[digest.Digest]struct{})
	add := func(n needed) {
		for _, d := range n.chains {
			live[d] = struct{}{}
		}
		for _, d := range n.blobs {
			live[d] = struct{}{}
		}
	}
	for _, e := range s.images {
		add(e.needs())
	}
	for _, c := range s.boxes {
		add(c.needs())
	}
	for _, k := range s.kept {
		add(needed{blobs: append(slices.Clone(k.Blobs), k.Target)})
	}
	for d := range s.leased {
		live[d] = struct{}{}
	}
	for chain, rec := range s.layers {
		if _, ok := live[chain]; ok && rec.Tar != "" { // another image's blob, perhaps
			live[rec.Tar] = struct{}{}
		}
	}
	return live
}

// free removes those of n that nothing needs any more and returns the chain IDs of
// the layers among them, topmost first; with mu held.
func (s *Store) free(n needed) ([]digest.Digest, error) {
	live := s.live()
	var errs []error
	blobs := slices.Clone(n.blobs)
	var freed []digest.Digest
	for _, chain := range slices.Backward(n.chains) {
		if _, ok := live[chain]; ok {
			continue
		}
		if rec, ok := s.layers[chain]; ok {
			delete(s.layers, chain)
			errs = append(errs, s.trashLayer(chain))
			if rec.Tar != "" {
				blobs = append(blobs, rec.Tar)
			}
		}
		freed = append(freed, chain)
	}
	for _, d := range blobs {
		if _, ok := live[d]; !ok {
			errs = append(errs, s.removeBlob(d))
		}
	}
	return freed, errors.Join(errs...)
}

func (s *Store) removeBlob(d digest.Digest) error {
	if err := os.Remove(s.blobPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob %s: %w", d, err)
	}
	return nil
}

// sweep frees what nothing needs and was not touched for Config.Keep: left-overs of
// transfers that nobody went on with.
func (s *Store) sweep(now time.Time) error {
	old := now.Add(-s.cfg.Keep)
	var errs []error
	each := func(dir string, f func(d digest.Digest) error) {
		entries, err := os.ReadDir(s.path(dir))
		errs = append(errs, err)
		for _, e := range entries {
			fi, err := e.Info()
			d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			if err != nil || fi.ModTime().After(old) || d.Validate() != nil {
				continue
			}
			errs = append(errs, f(d))
		}
	}
	each("blobs/sha256", func(d digest.Digest) error { return s.sweepOne(needed{blobs: []digest.Digest{d}}) })
	each("layers", func(d digest.Digest) error { return s.sweepOne(needed{chains: []digest.Digest{d}}) })
	each("ingest", s.sweepIngest)
	return errors.Join(append(errs, s.emptyTrash())...)
}

func (s *Store) sweepOne(n needed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.free(n)
	return err
}

func (s *Store) sweepIngest(d digest.Digest) error {
	s.ingests.mu.Lock()
	defer s.ingests.mu.Unlock()
	if s.ingests.m[d] != nil {
		return nil
	}
	return errors.Join(os.Remove(s.ingestPath(d)), dropNote(s.ingestPath(d)))
}

// sweepEvery is how often left-overs are looked for.
const sweepEvery = time.Hour

// Run does what can wait: removes trees, marks layers as safe from a power cut, and
// sweeps. It returns when ctx ends.
func (s *Store) Run(ctx context.Context) error {
	s.resume()
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	idle := time.NewTicker(keepMounted)
	defer idle.Stop()
	for {
		if err := s.sweep(time.Now()); err != nil {
			s.log.Warn("sweep failed", "error", err)
		}
		if err := s.syncLayers(); err != nil {
			s.log.Warn("layers could not be synced", "error", err)
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case now := <-idle.C:
				if err := s.unmountIdle(now.Add(-keepMounted)); err != nil {
					s.log.Warn("layers could not be unmounted", "error", err)
				}
				continue
			case <-t.C:
			case <-s.wake:
			}
			wait = false
		}
	}
}

// changed wakes Run.
func (s *Store) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// syncLayers brings the layers' files to the disk and notes it, so that Open trusts
// them after the machine went down.
func (s *Store) syncLayers() error {
	s.mu.Lock()
	var due []digest.Digest
	for chain, rec := range s.layers {
		if !rec.synced {
			due = append(due, chain)
		}
	}
	s.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	dir, err := os.Open(s.path("layers"))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, chain := range due {
		rec, ok := s.layers[chain]
		if !ok {
			continue
		}
		if err := os.WriteFile(filepath.Join(s.layerPath(chain), "synced"), nil, 0o600); err != nil {
			return err
		}
		rec.synced = true
		s.layers[chain] = rec
	}
	return nil
}
