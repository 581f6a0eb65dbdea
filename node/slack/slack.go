package slack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usual is what the kernel gives the first process, and all that nobody changes it for.
const Usual = 50 * time.Microsecond

// passes bounds how often threads are looked for that came meanwhile.
const passes = 10

// Set lets every timer of this process end up to d late, so that the kernel wakes its
// threads less often: Go's monitor thread alone would else nap for 20 µs at a time,
// beside whatever else the processors have to do. Threads and processes that are made
// afterwards inherit it. The kernel's timers, such as TCP's, are as exact as ever, and
// so is all that waits for a file, a socket or a lock. See PR_SET_TIMERSLACK in prctl(2)
// and /proc/PID/timerslack_ns in proc(5).
func Set(d time.Duration) error {
	want := strconv.FormatInt(d.Nanoseconds(), 10)
	for range passes {
		changed, err := setAll(want)
		if err != nil {
			return fmt.Errorf("set the timers' slack: %w", err)
		}
		if changed == 0 {
			return nil
		}
	}
	return errors.New("set the timers' slack: new threads without it keep coming")
}

// setAll sets the slack of all threads that are there, and counts those that had another.
func setAll(want string) (changed int, err error) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	for _, t := range threads {
		// Threads have this file only in the directory that isn't listed.
		path := filepath.Join("/proc", t.Name(), "timerslack_ns")
		now, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return changed, err
		}
		if strings.TrimSpace(string(now)) == want {
			continue
		}
		if err := os.WriteFile(path, []byte(want), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		changed++
	}
	return changed, nil
}
