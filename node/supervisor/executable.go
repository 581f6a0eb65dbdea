package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/supervisor/embedded"
)

// Program gives what the supervisor, and keepers of images that arrive, run: the small executable if one is
// embedded, or else the one we are. It is a copy in memory that nobody can change
// any more. Every container's first process starts as the supervisor's own
// executable, and must not be able to write to it; of one that is sealed already,
// libcontainer makes no copy for each container. Nor does an upgrade find it busy.
func Program() (_ *os.File, err error) {
	var src io.ReadCloser
	src, ok, err := embedded.Open()
	if err == nil && !ok {
		src, err = os.Open("/proc/self/exe")
	}
	if err != nil {
		return nil, err
	}
	defer src.Close()
	fd, err := unix.MemfdCreate(argv0, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3 has no such flag, and no need of it
		fd, err = unix.MemfdCreate(argv0, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), argv0)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if _, err := io.Copy(f, src); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o555); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}
