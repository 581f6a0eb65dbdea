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

// keepReach notes how far the replica has come, until ctx ends. Where it can't, as on a
// full disk, the note stays an older one, which is as true.
func (c *Catalog) keepReach(ctx context.Context) error {
	if c.cfg.Dir == "" {
		return nil
	}
	tick := time.NewTicker(reachEvery)
	defer tick.Stop()
	noted, failed := uint64(0), false
	for {
		if now := c.state.View().Index(); now > noted {
			err := writeReach(c.cfg.Dir, now)
			if err != nil && !failed {
				c.log.Warn("how far the catalog is can't be noted", "err", err)
			}
			noted, failed = now, err != nil
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

// writeReach writes in place, always as many bytes: that needs no room on the disk, and
// so few are written wholly or not at all.
func writeReach(dir string, index uint64) error {
	f, err := os.OpenFile(filepath.Join(dir, reachFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%020d\n", index)
	return errors.Join(err, f.Close())
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
