package libcontainer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// fork runs a function that forks children nobody else knows yet.
func (f *Factory) fork(start func() error) error {
	f.starting.RLock()
	defer f.starting.RUnlock()
	return start()
}

func (f *Factory) remember(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pids == nil {
		f.pids = map[int]bool{}
	}
	f.pids[pid] = true
}

func (f *Factory) forget(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pids, pid)
}

func (f *Factory) knows(pid int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pids[pid]
}

// ReapOrphans reaps ended processes that became our children when their parents
// died: those of containers in the host's PID namespace. It does nothing while
// processes are being started, whose intermediate children look the same; done
// says whether it ran.
func (f *Factory) ReapOrphans() (done bool, err error) {
	if !f.starting.TryLock() {
		return false, nil
	}
	defer f.starting.Unlock()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return true, fmt.Errorf("list children: %w", err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that ended
		}
		for _, field := range bytes.Fields(b) {
			pid, err := strconv.Atoi(string(field))
			if err != nil || f.knows(pid) {
				continue
			}
			// Reaps it if it has ended; if not, its signal comes later.
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
	return true, nil
}
