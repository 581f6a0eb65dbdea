package plugin

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a plugin's process.
type child struct {
	*conn
	put      bool // it wants to be offered blobs
	unusable bool // an exchange broke off in the middle
	in, out  *os.File
	words    lastWords
	done     chan struct{} // closed: the process and its group are gone

	mu     sync.Mutex
	pid    int
	reaped bool
}

// spawn starts a process with a session of its own that has nothing of ours: no
// environment, no descriptors but its pipes.
func spawn(path string, c Config) (*child, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), in.Close())
	}
	k := &child{in: in, out: out, words: lastWords{log: c.Logger}, done: make(chan struct{})}
	cmd := &exec.Cmd{
		Path: path, Args: []string{Prefix + c.Name}, Dir: c.Dir, Stdin: theirIn, Stdout: theirOut, Stderr: &k.words,
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
			"HOME=" + c.Dir, "TMPDIR=" + c.Dir,
		},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		WaitDelay:   time.Second, // for descendants that have left the group with its stderr
	}
	keepDescriptors()
	started := make(chan error, 1)
	go k.run(cmd, started)
	err = errors.Join(<-started, theirIn.Close(), theirOut.Close())
	if err != nil {
		k.kill()
		return nil, err
	}
	arm := func(t time.Time) error { return errors.Join(out.SetReadDeadline(t), in.SetWriteDeadline(t)) }
	k.conn = newConn(out, in, arm, c.Silence, c.Patience)
	return k, nil
}

// keepDescriptors marks what this process itself has inherited as not to be passed on:
// all that Go opens is marked already.
func keepDescriptors() {
	entries, _ := os.ReadDir("/proc/self/fd") // without it there is nothing to go by
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// run starts the process and stays until all of its group is gone. It keeps its
// thread, since the process dies with the thread that began it: so a plugin doesn't
// outlive an agent that is killed.
func (k *child) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(k.done)
	if err := cmd.Start(); err != nil {
		k.reaped = true
		started <- err
		return
	}
	k.mu.Lock()
	k.pid = cmd.Process.Pid
	k.mu.Unlock()
	started <- nil
	for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	// As long as the dead process isn't reaped, its number is the group's and nobody else's.
	k.mu.Lock()
	_ = unix.Kill(-k.pid, unix.SIGKILL) // fails if nobody is left
	k.reaped = true
	k.mu.Unlock()
	_ = cmd.Wait() // how it ended is in nobody's interest; its last words are
}

// kill ends the process and all it has started. It may be called often.
func (k *child) kill() {
	k.mu.Lock()
	if k.pid > 0 && !k.reaped {
		_ = unix.Kill(-k.pid, unix.SIGKILL)
	}
	k.mu.Unlock()
	_ = k.in.Close()
	_ = k.out.Close()
}

// end lets the process end in order, for a moment: its input ends.
func (k *child) end(grace <-chan time.Time) {
	_ = k.in.Close()
	select {
	case <-k.done:
	case <-grace:
	}
	k.kill()
	<-k.done
}

// obituary ends the process and adds to why what it wrote last.
func (k *child) obituary(why error) error {
	k.kill()
	<-k.done
	last := k.words.get()
	if last == "" {
		return why
	}
	if f := (*fault)(nil); errors.As(why, &f) {
		return faultf("%w (its last words: %q)", why, last)
	}
	return fmt.Errorf("%w (its last words: %q)", why, last)
}

// alive says whether the process seems to be there.
func (k *child) alive() bool {
	select {
	case <-k.done:
		return false
	default:
		return true
	}
}

// lastWords keeps the last line that a plugin wrote to its standard error.
type lastWords struct {
	log  *slog.Logger
	mu   sync.Mutex
	line []byte // that is being written
	last string
}

// maxWords bounds a line of standard error; what is beyond is cut.
const maxWords = 500

var _ io.Writer = (*lastWords)(nil)

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range b {
		if c != '\n' {
			if len(w.line) < maxWords {
				w.line = append(w.line, c)
			}
			continue
		}
		if line := strings.TrimSpace(strings.ToValidUTF8(string(w.line), "?")); line != "" {
			w.last = line
			w.log.Debug("plugin's standard error", "line", line)
		}
		w.line = w.line[:0]
	}
	return len(b), nil
}

func (w *lastWords) get() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.line) > 0 {
		return strings.ToValidUTF8(string(w.line), "?")
	}
	return w.last
}
