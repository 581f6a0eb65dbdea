package slack_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-engine/shoal/node/slack"
)

func TestAllThreadsAndWhatTheyStart(t *testing.T) {
	var held sync.WaitGroup
	end := make(chan struct{})
	for range 8 { // threads that aren't of this test's making only
		held.Add(1)
		go func() {
			runtime.LockOSThread()
			held.Done()
			<-end
		}()
	}
	held.Wait()
	t.Cleanup(func() { close(end) })
	for _, d := range []time.Duration{time.Millisecond, slack.Usual} {
		if err := slack.Set(d); err != nil {
			if os.Geteuid() != 0 {
				t.Skip("only root may set the slack of other threads:", err)
			}
			t.Fatal(err)
		}
		want := map[time.Duration]string{time.Millisecond: "1000000", slack.Usual: "50000"}[d]
		threads, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(threads) < 8 {
			t.Fatalf("%d threads, %v", len(threads), err)
		}
		for _, thread := range threads {
			raw, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
			if err != nil {
				continue // it has ended
			}
			if got := strings.TrimSpace(string(raw)); got != want {
				t.Errorf("thread %s has a slack of %s ns; want %s", filepath.Base(thread), got, want)
			}
		}
		out, err := exec.Command("cat", "/proc/self/timerslack_ns").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("a process that is started has a slack of %s ns; want %s", got, want)
		}
	}
}
