package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/cmd/shoal/config"
)

// Scope names what an agent makes outside its directories: links, tables, cgroups.
// It comes from the data directory, so that two agents can share a machine.
func Scope(data string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(data)))
	return hex.EncodeToString(sum[:3])
}

// lockWait is how long an agent waits for the one before to be gone: a killed
// process counts as dead before its last thread has closed its files.
const lockWait = 3 * time.Second

// lock makes the data directory this process's own until it ends.
func lock(ctx context.Context, data string) (*os.File, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(data, "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := flock(ctx, f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder := make([]byte, 32)
			n, _ := f.Read(holder)
			return nil, fmt.Errorf("the data directory %s belongs to another agent (pid %s): end that one, or give this one its own `data` and `run`",
				data, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

func flock(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// makeDirs makes the directories, closed to everyone else.
func makeDirs(c config.Config) error {
	for _, d := range []string{c.Data, c.Run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	if c.SocketGroup == "" {
		return nil
	}
	// The group passes through to the sockets, and sees nothing else.
	gid, err := groupID(c.SocketGroup)
	if err != nil {
		return err
	}
	if err := os.Chown(c.Run, 0, gid); err != nil {
		return fmt.Errorf("give %s to group %s: %w", c.Run, c.SocketGroup, err)
	}
	return os.Chmod(c.Run, 0o710)
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("setting socket_group: %w; make it with `groupadd %s`", err, name)
	}
	return strconv.Atoi(g.Gid)
}
