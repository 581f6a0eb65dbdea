package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// argv0 is the supervisor's name in the list of processes, and by it an
// executable knows that it shall be one.
const argv0 = "shoal-supervisor"

// lockPoll is how often a lock is tried that another agent holds.
const lockPoll = 20 * time.Millisecond

// start starts the supervisor unless another agent just did, and waits until it
// answers.
func start(ctx context.Context, c *Client) error {
	for _, dir := range []string{c.config.Dir, c.config.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	unlock, err := lock(ctx, filepath.Join(c.config.Dir, "start.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := c.Hello(ctx); err == nil {
		return nil
	}
	if err := spawn(ctx, c.config); err != nil {
		return err
	}
	h, err := c.Hello(ctx)
	if err != nil {
		return err
	}
	c.config.Logger.Info("supervisor started", "pid", h.Pid, "dir", c.config.Dir)
	return nil
}

// lock takes a file's lock, which its holder's death frees.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // which unlocks
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-tick.C:
		}
	}
}

// spawn starts the process and waits until it listens. It belongs to no session
// or terminal of ours, and has none of our files.
func spawn(ctx context.Context, c Config) error {
	exe, err := Program()
	if err != nil {
		return fmt.Errorf("make executable: %w", err)
	}
	defer exe.Close()
	log, err := os.OpenFile(filepath.Join(c.Dir, "supervisor.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	// By the number it has in the child: its own may be another file's there.
	cmd := exec.Command("/proc/self/fd/4")
	cmd.Args = []string{argv0, "supervisor", c.Dir, c.RunDir}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{child, exe}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = child.Close() // the process has it now
	if err != nil {
		return err
	}
	// Reaped if it ends before us; it is meant not to.
	go func() { _ = cmd.Wait() }()
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	answer, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case string(answer) == "ok":
		return nil
	case len(answer) == 0:
		return fmt.Errorf("it ended before it listened; see %s", log.Name())
	}
	return errors.New(string(answer))
}
