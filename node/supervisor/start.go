package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/supervisor/embedded"
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
	path, err := executable(c.Dir)
	if err != nil {
		return err
	}
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
	cmd := exec.Command(path)
	cmd.Args = []string{argv0, "supervisor", c.Dir, c.RunDir}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{child}
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

// executable gives the path of what to run: the small executable, written out
// under its content's hash, or else the one we are.
func executable(dir string) (string, error) {
	src, ok, err := embedded.Open()
	if err != nil {
		return "", fmt.Errorf("open embedded supervisor: %w", err)
	}
	if !ok {
		return "/proc/self/exe", nil
	}
	defer src.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, src); err != nil {
		return "", fmt.Errorf("read embedded supervisor: %w", err)
	}
	name := argv0 + "-" + hex.EncodeToString(hash.Sum(nil))[:16]
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		return path, nil
	}
	if err := writeOut(path); err != nil {
		return "", fmt.Errorf("write supervisor: %w", err)
	}
	return path, removeOthers(dir, name)
}

func writeOut(path string) error {
	src, _, err := embedded.Open()
	if err != nil {
		return err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+argv0+"-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, src)
	err = errors.Join(err, tmp.Chmod(0o500), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// removeOthers deletes executables of former versions. None of them runs: the
// start lock is held, and no supervisor answered.
func removeOthers(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old := strings.HasPrefix(e.Name(), argv0+"-") || strings.HasPrefix(e.Name(), "."+argv0+"-")
		if !old || e.Name() == keep {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
