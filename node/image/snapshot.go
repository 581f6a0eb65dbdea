package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// containerRecord is a container's writable layer on disk. It has all that its image
// had to say, so that the image may be removed by force.
type containerRecord struct {
	ID     string        `json:"id"`
	Image  digest.Digest `json:"image"`
	Layers []layerRef    `json:"layers"` // bottom first
	// Base is the size of a copied root file system before the container wrote;
	// 0 where it is an overlay.
	Base int64 `json:"base,omitempty"`
	// Copied says that the root file system is a copy.
	Copied bool `json:"copied,omitempty"`
}

func (c containerRecord) needs() needed {
	var n needed
	for _, l := range c.Layers {
		n.chains = append(n.chains, l.Chain)
		n.blobs = append(n.blobs, l.Desc.Digest)
	}
	return n
}

// containerID is what may name a container's directory.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (s *Store) containerPath(id string, elem ...string) string {
	return s.path(append([]string{"containers", id}, elem...)...)
}

func (s *Store) loadContainers() error {
	entries, err := os.ReadDir(s.path("containers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var rec containerRecord
		err := readRecord(s.containerPath(e.Name(), "snapshot"), &rec)
		if err == nil && rec.ID != e.Name() {
			err = fmt.Errorf("is of container %q", rec.ID)
		}
		if err != nil {
			// What the container wrote is worth keeping for whoever can use it.
			s.log.Error("container's layer has no usable record and is left alone", "path", s.containerPath(e.Name()), "error", err)
			continue
		}
		s.boxes[rec.ID] = rec
	}
	return nil
}

// Prepare makes a container's writable layer over an image. Layers of the image that
// are not unpacked are unpacked first.
func (s *Store) Prepare(ctx context.Context, containerID string, img digest.Digest) error {
	if err := checkContainerID(containerID); err != nil {
		return err
	}
	l := s.lease()
	defer l.release()
	rec, err := s.prepareRecord(containerID, img, l)
	if err != nil || rec == nil {
		return err
	}
	if err := s.ensure(ctx, rec.Layers); err != nil {
		return fmt.Errorf("prepare container %s: %w", containerID, err)
	}
	dir, err := os.MkdirTemp(s.path("staging"), "container-")
	if err != nil {
		return api.Internal("prepare container %s: %w", containerID, err)
	}
	if err := s.prepareIn(ctx, dir, rec); err != nil {
		return errors.Join(fmt.Errorf("prepare container %s: %w", containerID, err), os.RemoveAll(dir))
	}
	return nil
}

func checkContainerID(id string) error {
	if !containerID.MatchString(id) {
		return api.InvalidArgument("invalid container ID %q", clip(id))
	}
	return nil
}

// prepareRecord leases what a container needs; nil if the container is there already.
func (s *Store) prepareRecord(id string, img digest.Digest, l *lease) (*containerRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, ok := s.boxes[id]
	e := s.images[img]
	if ok {
		if have.Image != img {
			return nil, api.Conflict("container %s is prepared over image %s already", id, have.Image)
		}
		return nil, nil
	}
	if e == nil {
		e = s.comingByID(img)
	}
	if e == nil {
		return nil, api.NotFound("No such image: %s", img)
	}
	rec := &containerRecord{ID: id, Image: img, Layers: e.refs(0), Copied: !s.overlay}
	l.take(rec.needs().all()...)
	return rec, nil
}

// ensure unpacks those of the layers that are not.
func (s *Store) ensure(ctx context.Context, refs []layerRef) error {
	if coming, err := s.awaitComing(ctx, refs); coming || err != nil {
		return err
	}
	u := &unpacker{s: s, refs: refs, source: s.held}
	_, err := u.run(ctx)
	return err
}

func (s *Store) prepareIn(ctx context.Context, dir string, rec *containerRecord) error {
	for _, sub := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // containers' users look up paths through it
		return err
	}
	if rec.Copied {
		n, err := s.copyLayers(ctx, filepath.Join(dir, "merged"), rec.Layers)
		if err != nil {
			return err
		}
		rec.Base = n
	} else if err := s.again(ctx, rec.Layers, func() error { return s.inheritRoot(rec.Layers, filepath.Join(dir, "upper")) }); err != nil {
		return err
	}
	if err := writeRecord(filepath.Join(dir, "snapshot"), rec, false); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.boxes[rec.ID]; ok { // made meanwhile
		return os.RemoveAll(dir)
	}
	if err := os.Rename(dir, s.containerPath(rec.ID)); err != nil {
		return err
	}
	s.boxes[rec.ID] = *rec
	return nil
}

// inheritRoot gives the root directory the attributes of the image's.
func (s *Store) inheritRoot(refs []layerRef, upper string) error {
	user := s.mounts.temporary()
	defer s.mounts.leave(user)
	lower, err := s.lowerDirs(user, refs[max(0, len(refs)-1):])
	if err != nil {
		return err
	}
	from, err := os.Open(lower[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer to.Close()
	return copyAttributes(int(from.Fd()), int(to.Fd()))
}

// lowerDirs are the directories of an overlay below its upper one, topmost first,
// usable until user leaves. The last has the mount points that an image may lack.
func (s *Store) lowerDirs(user string, refs []layerRef) ([]string, error) {
	var lower []string
	for _, ref := range slices.Backward(refs) {
		dir, err := s.use(user, ref.Chain)
		if err != nil {
			return nil, err
		}
		lower = append(lower, dir)
		s.mu.Lock()
		last := s.layers[ref.Chain].OpaqueRoot
		if e := s.earlyLayers[ref.Chain]; e != nil {
			last = e.rec.Layer.OpaqueRoot
		}
		s.mu.Unlock()
		if last {
			break
		}
	}
	return append(lower, s.path("layers", initLayer, "fs")), nil
}

// Mount makes a prepared container's root file system usable. One that is mounted,
// be it by a process before this one, stays as it is.
func (s *Store) Mount(ctx context.Context, id string) (Root, error) {
	rec, err := s.container(id)
	if err != nil {
		return Root{}, err
	}
	merged := s.containerPath(id, "merged")
	if rec.Copied {
		return Root{Path: merged}, nil
	}
	root := Root{Path: merged, Upper: s.containerPath(id, "upper")}
	on, err := mountinfo.Mounted(merged)
	if err != nil {
		return Root{}, api.Internal("mount container %s: %w", id, err)
	}
	if on {
		return root, nil
	}
	if err := s.again(ctx, rec.Layers, func() error { return s.mountOver(rec, root) }); err != nil {
		return Root{}, fmt.Errorf("mount container %s: %w", id, err)
	}
	if err := fillInit(merged); err != nil {
		return Root{}, errors.Join(api.Internal("mount container %s: %w", id, err), s.Unmount(ctx, id))
	}
	return root, nil
}

// mountOver mounts a container's overlay over its layers.
func (s *Store) mountOver(rec containerRecord, root Root) error {
	lower, err := s.lowerDirs(rec.ID, rec.Layers)
	if err == nil {
		err = mountOverlay(overlayDirs{lower: lower, upper: root.Upper, work: s.containerPath(rec.ID, "work"), target: root.Path})
	}
	if err != nil {
		s.mounts.leave(rec.ID)
	}
	return err
}

func (s *Store) container(id string) (containerRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.boxes[id]
	if !ok {
		return rec, api.NotFound("container %s has no root file system", clip(id))
	}
	return rec, nil
}

// isMounted says whether the container whose ID begins so is mounted, which is to
// say that it runs.
func (s *Store) isMounted(prefix string) bool {
	for id, rec := range s.boxes {
		if strings.HasPrefix(id, prefix) && !rec.Copied {
			on, err := mountinfo.Mounted(s.containerPath(id, "merged"))
			return err == nil && on
		}
	}
	return false
}

// Unmount undoes Mount. What still is used is detached, and goes when it is not.
func (s *Store) Unmount(_ context.Context, id string) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	merged := s.containerPath(id, "merged")
	err := unix.Unmount(merged, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(merged, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return api.Internal("unmount container %s: %w", id, err)
	}
	s.mounts.leave(id)
	return nil
}

// Discard undoes Prepare: what the container wrote is gone.
func (s *Store) Discard(ctx context.Context, id string) error {
	if err := s.Unmount(ctx, id); err != nil {
		return err
	}
	if err := s.forget(id); err != nil {
		return api.Internal("discard container %s: %w", id, err)
	}
	s.changed()
	return nil
}

func (s *Store) forget(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Lstat(s.containerPath(id)); errors.Is(err, fs.ErrNotExist) {
		delete(s.boxes, id)
		return nil
	}
	if err := s.trash(s.containerPath(id)); err != nil {
		return err
	}
	rec := s.boxes[id]
	delete(s.boxes, id)
	_, err := s.free(rec.needs())
	return err
}

// Usage is the size in bytes of what the container wrote.
func (s *Store) Usage(ctx context.Context, id string) (int64, error) {
	rec, err := s.container(id)
	if err != nil {
		return 0, err
	}
	dir := s.containerPath(id, "upper")
	if rec.Copied {
		dir = s.containerPath(id, "merged")
	}
	n, err := TreeSize(ctx, dir)
	if err != nil {
		return 0, api.Internal("measure container %s: %w", id, err)
	}
	return max(0, n-rec.Base), nil
}

// TreeSize sums the regular files of a tree that may change meanwhile, each once.
func TreeSize(ctx context.Context, dir string) (int64, error) {
	var total int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += fi.Size()
		return nil
	})
	return total, err
}
