package jsonlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// pollInterval is how often a log is looked at where the kernel has no watch left
// to give (fs.inotify.max_user_instances).
const pollInterval = 250 * time.Millisecond

// watch tells that something happened in a log's directory.
type watch struct {
	news  chan struct{} // one is kept while nobody listens
	ended chan struct{} // closed: the goroutine is gone
	stop  func()
}

func newWatch(path string) (*watch, error) {
	w := &watch{news: make(chan struct{}, 1), ended: make(chan struct{})}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		w.poll()
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO)
	if errors.Is(err, unix.ENOSPC) {
		_ = events.Close() // nothing was written to it
		w.poll()
		return w, nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch log: %w", err), events.Close())
	}
	w.stop = func() { _ = events.Close() } // unblocks the reading
	go func() {
		defer close(w.ended)
		buf := make([]byte, 4096)
		for {
			// What happened does not matter: the reader looks for itself.
			if _, err := events.Read(buf); err != nil {
				return
			}
			w.tell()
		}
	}()
	return w, nil
}

func (w *watch) poll() {
	ticker, stop := time.NewTicker(pollInterval), make(chan struct{})
	w.stop = func() { close(stop) }
	go func() {
		defer close(w.ended)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				w.tell()
			case <-stop:
				return
			}
		}
	}()
}

func (w *watch) tell() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *watch) close() {
	w.stop()
	<-w.ended
}
