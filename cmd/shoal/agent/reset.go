package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/cmd/shoal/config"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/supervisor"
)

// Reset removes all that an agent made on this host: containers, mounts, links,
// rules, state. It refuses while the agent runs, and may be repeated.
func Reset(ctx context.Context, c config.Config, log *slog.Logger) error {
	held, err := lock(ctx, c.Data)
	if err != nil {
		return err
	}
	defer held.Close()
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	step("end the containers", supervisor.Running(supervisor.Config{Dir: filepath.Join(c.Data, "supervisor"), RunDir: c.Run, Logger: log}).Shutdown(ctx, true))
	step("take down the network", teardown(ctx, c, log))
	step("unmount", unmountBelow(c.Data, filepath.Join(c.Run, "netns")))
	if err := errors.Join(errs...); err != nil {
		return err // deleting below a mount that stayed would delete what isn't ours
	}
	step("delete the data", removeContents(c.Data))
	for _, name := range []string{"shoal.sock", "node.sock", "netns"} {
		step("delete "+name, os.RemoveAll(filepath.Join(c.Run, name)))
	}
	return errors.Join(errs...)
}

func teardown(ctx context.Context, c config.Config, log *slog.Logger) error {
	n, err := network.New(network.Config{
		Root: filepath.Join(c.Data, "network"), RunDir: filepath.Join(c.Run, "netns"), Scope: Scope(c.Data), Logger: log,
	})
	if err != nil {
		return err
	}
	return errors.Join(n.Teardown(ctx), n.Close())
}

// unmountBelow unmounts whatever is mounted in the directories, innermost first.
func unmountBelow(dirs ...string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(m.Mountpoint, d+"/") }), false
	})
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("%s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// removeContents empties a directory but keeps it: whoever made it may want it.
func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
