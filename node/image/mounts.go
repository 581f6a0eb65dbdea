package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image/erofs"
)

// mounts are the layers that are image files and mounted, each once, so that all
// containers share its pages.
//
// Overlayfs holds on to what it was mounted over, so no mount is needed to keep a
// container running: they are there to be found by the next container. Nothing about
// them is on disk; Open finds the ones that are there.
type mounts struct {
	mu    sync.Mutex
	last  int                                   // number of the last temporary user
	users map[string]map[digest.Digest]struct{} // what each needs, by chain ID
	count map[digest.Digest]int                 // how many users
	idle  map[digest.Digest]time.Time           // mounted without a user, and since when
}

func newMounts() *mounts {
	return &mounts{users: map[string]map[digest.Digest]struct{}{}, count: map[digest.Digest]int{}, idle: map[digest.Digest]time.Time{}}
}

// keepMounted is how long a layer stays mounted that no container uses: the next one
// is likely to be of the same image, and finds the layer's pages in memory.
const keepMounted = time.Minute

// temporary names a user that is no container.
func (m *mounts) temporary() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	return "/" + strconv.Itoa(m.last) // no container's ID has a slash
}

// add notes that user needs a layer; with mu held.
func (m *mounts) add(user string, chain digest.Digest) {
	if m.users[user] == nil {
		m.users[user] = map[digest.Digest]struct{}{}
	}
	if _, ok := m.users[user][chain]; !ok {
		m.users[user][chain] = struct{}{}
		m.count[chain]++
	}
	delete(m.idle, chain)
}

// leave ends user's need of all its layers.
func (m *mounts) leave(user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for chain := range m.users[user] {
		if m.count[chain]--; m.count[chain] == 0 {
			delete(m.count, chain)
			m.idle[chain] = time.Now()
		}
	}
	delete(m.users, user)
}

// use returns a layer's directory and keeps it usable until user leaves. The caller
// has a lease on the layer, or a container.
func (s *Store) use(user string, chain digest.Digest) (string, error) {
	s.mu.Lock()
	rec, ok := s.layers[chain]
	e := s.earlyLayers[chain]
	if !ok && e != nil {
		e.users[user] = struct{}{}
	}
	s.mu.Unlock()
	if !ok && e != nil {
		return e.fs(), nil
	}
	if !ok {
		return "", api.Internal("layer %s vanished", chain)
	}
	fs := s.layerFS(chain)
	if !rec.Image {
		return fs, nil
	}
	s.mounts.mu.Lock()
	defer s.mounts.mu.Unlock()
	on, err := mountinfo.Mounted(fs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("look at layer %s: %w", chain, err)
	}
	if !on {
		if err := s.mountLayer(rec, fs); err != nil {
			if slices.ContainsFunc(imageErrors, func(e error) bool { return errors.Is(err, e) }) {
				return "", &damaged{chain, err}
			}
			return "", fmt.Errorf("layer %s: %w", chain, err)
		}
	}
	s.mounts.add(user, chain)
	return fs, nil
}

// imageErrors are what the kernel says of an image that is none, or not as it was.
var imageErrors = []error{unix.EINVAL, unix.EUCLEAN, unix.EBADMSG, unix.ENOENT}

// damaged is the error of a layer whose image can't be mounted.
type damaged struct {
	chain digest.Digest
	err   error
}

func (d *damaged) Error() string { return fmt.Sprintf("mount layer %s: %v", d.chain, d.err) }
func (d *damaged) Unwrap() error { return d.err }

// again makes sure that layers are there and does f, once more for each of them that
// proves to be damaged: such a layer is made again of its blob.
func (s *Store) again(ctx context.Context, refs []layerRef, f func() error) error {
	for range refs {
		err := s.ensure(ctx, refs)
		if err == nil {
			err = f()
		}
		if dropped, e := s.dropDamaged(err); !dropped || e != nil {
			return errors.Join(err, e)
		}
	}
	return f()
}

// dropDamaged drops the layer that err is about, if it is about one.
func (s *Store) dropDamaged(err error) (dropped bool, _ error) {
	var d *damaged
	if !errors.As(err, &d) {
		return false, nil
	}
	s.log.Warn("layer is dropped, and unpacked again", "layer", d.chain, "reason", d.err)
	return true, s.dropLayer(d.chain)
}

func (s *Store) dropLayer(chain digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.layers, chain)
	return s.trashLayer(chain)
}

// trashLayer moves a layer that nobody needs out of the way; with mu held.
func (s *Store) trashLayer(chain digest.Digest) error {
	s.mounts.mu.Lock()
	defer s.mounts.mu.Unlock()
	delete(s.mounts.idle, chain)
	if err := unmountLayer(s.layerFS(chain), unix.MNT_DETACH); err != nil {
		return err
	}
	return s.trash(s.layerPath(chain))
}

// detachTar unmounts the layers whose contents are in a blob, so that whoever mounts
// them next finds the blob that is there then. It counts the containers that run over
// one of them, which keep the one that was there.
func (s *Store) detachTar(blob digest.Digest) (running int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts.mu.Lock()
	defer s.mounts.mu.Unlock()
	users := map[string]struct{}{}
	var errs []error
	for chain, rec := range s.layers {
		if rec.Tar != blob {
			continue
		}
		errs = append(errs, unmountLayer(s.layerFS(chain), unix.MNT_DETACH))
		for id := range s.boxes {
			if _, uses := s.mounts.users[id][chain]; uses {
				users[id] = struct{}{}
			}
		}
	}
	return int64(len(users)), errors.Join(errs...)
}

// unmountLayer unmounts what is there, if anything is.
func unmountLayer(fs string, flags int) error {
	err := unix.Unmount(fs, unix.UMOUNT_NOFOLLOW|flags)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("unmount %s: %w", fs, err)
	}
	return nil
}

// adoptMounts finds out what processes before this one left mounted, and for whom.
func (s *Store) adoptMounts() {
	m := s.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	for chain, rec := range s.layers {
		if !rec.Image {
			continue
		}
		if on, err := mountinfo.Mounted(s.layerFS(chain)); err == nil && on {
			m.idle[chain] = time.Now()
		}
	}
	for id, rec := range s.boxes {
		if on, err := mountinfo.Mounted(s.containerPath(id, "merged")); err != nil || !on {
			continue
		}
		for _, ref := range rec.Layers {
			m.add(id, ref.Chain)
		}
	}
}

// unmountIdle unmounts layers that nobody used since before.
func (s *Store) unmountIdle(before time.Time) error {
	m := s.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for chain, since := range m.idle {
		if since.After(before) {
			continue
		}
		if err := unmountLayer(s.layerFS(chain), 0); errors.Is(err, unix.EBUSY) {
			continue // somebody looks at it
		} else if err != nil {
			errs = append(errs, err)
		}
		delete(m.idle, chain)
	}
	return errors.Join(errs...)
}

// mountLayer mounts a layer's image file without a loop device. Nothing is run from
// where it is mounted, only from overlays above.
func (s *Store) mountLayer(rec layerRecord, target string) error {
	if rec.Tar == "" {
		return mountImage(s.imagePath(rec.Chain), "", target)
	}
	blob, err := os.Open(s.blobPath(rec.Tar))
	if err != nil {
		return err
	}
	defer blob.Close()
	fi, err := blob.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != rec.TarSize {
		return fmt.Errorf("blob %s has %d bytes, not %d: %w", rec.Tar, fi.Size(), rec.TarSize, unix.EUCLEAN)
	}
	return mountImage(s.imagePath(rec.Chain), procPath(int(blob.Fd()), ""), target)
}

// mountImage mounts an image file; see openImage for tar.
func mountImage(image, tar, target string) error {
	mfd, err := openImage(image, tar)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount EROFS at %s: %w", target, err)
	}
	return nil
}

// openImage returns a mount of an image file that is nowhere yet. tar is where the
// contents are that it refers to; empty if there are none. The mount keeps both open.
func openImage(image, tar string) (int, error) {
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen erofs: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, "source", image); err != nil {
		return -1, fmt.Errorf("EROFS source %s: %w%s", image, err, fsMessages(fsfd))
	}
	if tar != "" {
		if err := unix.FsconfigSetString(fsfd, "device", tar); err != nil {
			return -1, fmt.Errorf("EROFS device %s: %w%s", tar, err, fsMessages(fsfd))
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "ro"); err != nil {
		return -1, fmt.Errorf("EROFS option ro: %w%s", err, fsMessages(fsfd))
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("open EROFS image %s: %w%s", image, err, fsMessages(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("fsmount EROFS: %w", err)
	}
	return mfd, nil
}

// Probe tries how layers can be kept below a directory: as image files, attributes
// that overlayfs needs included, and as tars to which image files refer. Each nil
// error says that it works.
func Probe(below string) (images, tars error) {
	dir, err := os.MkdirTemp(below, ".probe-")
	if err != nil {
		return err, err
	}
	images = tryImage(filepath.Join(dir, "image"), "")
	if tars = images; tars == nil {
		tars = tryImage(filepath.Join(dir, "tree"), filepath.Join(dir, "tar"))
	}
	return images, errors.Join(tars, os.RemoveAll(dir))
}

// tryImage mounts an image, and reads from it what lies in a tar, if there is one.
func tryImage(image, tar string) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	w := erofs.New(f, erofs.Options{Tar: tar != ""})
	if err := w.AddXattr(erofs.Root, erofs.Xattr{Name: opaqueXattr, Value: "y"}); err != nil {
		return err
	}
	want := bytes.Repeat([]byte("tar"), 3000) // some pages, and no whole number of blocks
	if tar != "" {
		if err := os.WriteFile(tar, slices.Concat(make([]byte, tarBlock), want, make([]byte, tarBlock)), 0o600); err != nil {
			return err
		}
		if _, err := w.CreateAt(erofs.Root, "file", int64(len(want)), tarBlock); err != nil {
			return err
		}
	}
	if _, err := w.Finish(); err != nil {
		return err
	}
	mfd, err := openImage(image, tar)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	root, err := unix.Openat(mfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open EROFS root: %w", err)
	}
	file := os.NewFile(uintptr(root), image)
	defer file.Close()
	if !isOpaque(file) {
		return errors.New("this kernel's EROFS keeps no extended attributes")
	}
	if tar == "" {
		return nil
	}
	got, err := os.ReadFile(procPath(root, "file"))
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("this kernel's EROFS reads something else than a tar has")
	}
	return err
}
