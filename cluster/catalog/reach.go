package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// reachFile holds the index that a replica has applied, and a few moments old. What
// is applied was on disk before, so a log that ends earlier has lost something: a
// damaged database of segments can look like an old or an empty one, and a voter
// that forgot what it acknowledged would be worse than one that doesn't start.
const reachFile = "reach"

// reachEvery is how often the index is noted, at most.
const reachEvery = time.Second

// keepReach notes how far the replica has come, until ctx ends.
func (c *Catalog) keepReach(ctx context.Context) error {
	if c.cfg.Dir == "" {
		return nil
	}
	tick := time.NewTicker(reachEvery)
	defer tick.Stop()
	noted := uint64(0)
	for {
		if now := c.state.View().Index(); now > noted {
			if err := writeReach(c.cfg.Dir, now); err != nil {
				return fmt.Errorf("note how far the catalog is: %w", err)
			}
			noted = now
		}
		if c.Wait(ctx, noted) != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func writeReach(dir string, index uint64) error {
	tmp := filepath.Join(dir, "."+reachFile)
	if err := os.WriteFile(tmp, []byte(strconv.FormatUint(index, 10)+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, reachFile))
}

// checkReach compares what the stores hold with what was reached before.
func (c *Catalog) checkReach(st stores) error {
	if c.cfg.Dir == "" {
		return nil
	}
	path := filepath.Join(c.cfg.Dir, reachFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return damaged(path, err)
	}
	reached, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return nil // torn by a power cut; it only guards against rarer things
	}
	last, err := st.logs.LastIndex()
	if err != nil {
		return damaged(filepath.Join(c.cfg.Dir, "log"), err)
	}
	snapshots, err := st.snapshots.List()
	if err != nil {
		return damaged(filepath.Join(c.cfg.Dir, "snapshots"), err)
	}
	for _, s := range snapshots {
		last = max(last, s.Index)
	}
	if last < reached {
		return damaged(filepath.Join(c.cfg.Dir, "log"), fmt.Errorf("it ends at %d, but %d had been reached", last, reached))
	}
	return nil
}
