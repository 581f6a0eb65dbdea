package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/slack"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// readyFD is where the process that started us waits for "ok" or what went wrong.
const readyFD = 3

// Main is the whole of a supervisor's process. Its arguments are the directory on
// disk and that of the socket. It gives the exit code.
func Main(args []string) int {
	closeInherited()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ready := os.NewFile(readyFD, "ready")
	if len(args) != 2 {
		_, _ = ready.WriteString("usage: shoal-supervisor supervisor DIR RUNDIR") // or nobody is there
		return 2
	}
	err := serve(args[0], args[1], log, func() { answer(ready, "ok") })
	if err != nil {
		answer(ready, err.Error())
		log.Error("supervisor failed", "err", err)
		return 1
	}
	log.Info("supervisor ends")
	return 0
}

func answer(ready *os.File, text string) {
	_, _ = ready.WriteString(text) // fails the second time, or if nobody is there any more
	_ = ready.Close()
}

func serve(dir, runDir string, log *slog.Logger, ready func()) error {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := takeLock(lock); err != nil {
		return fmt.Errorf("another supervisor of %s runs, but does not answer in %s: %w", dir, runDir, err)
	}
	// Children of containers that share our PID namespace come to us.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	preferSurvival(log)
	// Ours is the agent's; containers get what they would have from anybody else.
	if err := slack.Set(slack.Usual); err != nil {
		log.Debug("containers' timers are as late as the agent's", "err", err)
	}
	d, err := New(dir, runDir, log)
	if err != nil {
		return err
	}
	l, err := listen(runDir, wire.Socket(dir))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Info("supervisor listens", "pid", os.Getpid(), "dir", dir, "containers", len(d.ids()))
	ready()
	err = d.Run(context.Background(), l)
	return errors.Join(err, os.Remove(filepath.Join(runDir, wire.Socket(dir))))
}

// takeLock locks a file, and gives a supervisor that is just exiting the time for
// it.
func takeLock(f *os.File) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		<-tick.C
	}
	return unix.EWOULDBLOCK
}

// listen makes the socket, through its directory: its path may be longer than a
// socket's may be. Holding the lock, we may replace one that was left there.
func listen(runDir, name string) (*net.UnixListener, error) {
	path := filepath.Join(runDir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, err := os.OpenFile(runDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	short := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the short path is another one's
	return l, os.Chmod(path, 0o600)
}

// closeInherited closes files that came with us by mistake. Those of Go's own
// event loop are anonymous inodes, which nobody else passes on.
func closeInherited() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= readyFD {
			continue
		}
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && !strings.HasPrefix(target, "anon_inode:") {
			_ = unix.Close(fd) // the directory's own is closed already
		}
	}
	unix.CloseOnExec(readyFD)
}

// preferSurvival makes the supervisor the last to be killed for lack of memory,
// where it may.
func preferSurvival(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Debug("oom_score_adj not lowered", "err", err)
	}
}
