package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// reserveFile keeps some of the disk for an agent that starts when the rest is taken:
	// to try what can be mounted, and to put away what was being made.
	reserveFile = "reserve"
	reserveSize = 4 << 20
	// reserveLeast is the smallest that is of any use.
	reserveLeast = 256 << 10
)

// spendReserve gives the reserve back to the disk if that has less than it.
func spendReserve(data string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(data, &s); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", data, err)
	}
	if int64(s.Bfree)*s.Bsize >= reserveSize {
		return nil
	}
	err := os.Remove(filepath.Join(data, reserveFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("spend the reserve: %w", err)
	}
	return nil
}

// keepReserve makes the reserve as large as it is to be, or as there is room for.
func keepReserve(data string) error {
	f, err := os.OpenFile(filepath.Join(data, reserveFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("keep a reserve: %w", err)
	}
	for size := int64(reserveSize); size >= reserveLeast; size /= 2 {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.ENOSPC) {
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // a file system on which there can be none
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep a reserve: %w", err)
	}
	return nil
}
