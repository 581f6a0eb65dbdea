package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrPrefix is how tars carry extended attributes, in PAX records.
const xattrPrefix = "SCHILY.xattr."

// procPath is a path to base in an open directory, for calls that take no directory;
// without base, to the open file itself.
func procPath(fd int, base string) string {
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	if base != "" {
		path += "/" + base
	}
	return path
}

// times of an entry. Those the kernel can't say are cut to what it can.
func times(h *tar.Header) []unix.Timespec {
	at, mt := h.AccessTime, h.ModTime
	if at.IsZero() || at.Before(mt) {
		at = mt
	}
	ts := make([]unix.Timespec, 2)
	for i, sec := range []int64{at.Unix(), mt.Unix()} {
		ts[i].Sec = max(math.MinInt32, min(sec, 1<<34-1)) // ext4's range, the narrowest in use
	}
	ts[0].Nsec, ts[1].Nsec = int64(at.Nanosecond()), int64(mt.Nanosecond())
	return ts
}

func owner(h *tar.Header) (uid, gid int, err error) {
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return 0, 0, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

// attributes sets owner, mode, extended attributes and times of what was made by a
// name. Owner first: changing it drops set-user-ID bits and capabilities.
func (x *extractor) attributes(fd int, base string, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	err = x.xattrs(h, func(name string, value []byte) error {
		return unix.Lsetxattr(procPath(fd, base), name, value, 0)
	})
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(fd, base, times(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// fileAttributes is attributes for a file that is open as fd, which saves looking it
// up; it is called base in dir.
func (x *extractor) fileAttributes(fd, dir int, base string, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	err = x.xattrs(h, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	})
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir, base, times(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// xattrs sets an entry's extended attributes. Overlayfs's own are left out: they
// would redirect look-ups to files that the archive has no business with. Those the
// file system doesn't take are skipped, but for file capabilities, without which a
// program would behave otherwise than its image says.
func (x *extractor) xattrs(h *tar.Header, set func(string, []byte) error) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		err := set(name, []byte(value))
		if err == nil {
			continue
		}
		refused := []error{unix.ENOTSUP, unix.EPERM, unix.EINVAL}
		if name == "security.capability" || !slices.ContainsFunc(refused, func(e error) bool { return errors.Is(err, e) }) {
			return fmt.Errorf("set attribute %q: %w", clip(name), err)
		}
		x.out.skipped[name] = true
	}
	return nil
}
