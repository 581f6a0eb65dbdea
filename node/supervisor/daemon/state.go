package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// stateFile is where a container's directory says how it stands.
const stateFile = "supervisor.json"

// unknownExit is the code of a container that ended while no supervisor was there.
const unknownExit = 255

// record is what the file holds. Fields are only ever added.
type record struct {
	ID     string      `json:"id"`
	Status wire.Status `json:"status"`
	Failed *wire.Error `json:"failed,omitempty"`
}

// validID says whether an ID can be a file's name.
func validID(id string) bool { return idPattern.MatchString(id) }

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_+.-]{0,127}$`)

// index is where a container's directory is found by its ID.
func (d *Daemon) index(id string) string { return filepath.Join(d.dir, "containers", id) }

// save keeps the state. It is for supervisors after this one and need not survive
// the machine, so nothing is synced.
func (c *container) save() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	b, err := json.Marshal(record{ID: c.id, Status: c.state, Failed: c.failed})
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	tmp, err := os.CreateTemp(c.dir, "."+stateFile+"-*")
	if err != nil {
		return fmt.Errorf("keep state: %w", err)
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(c.dir, stateFile))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep state: %w", err), os.Remove(tmp.Name()))
	}
	if err := os.Symlink(c.dir, c.d.index(c.id)); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("keep state: %w", err)
	}
	return nil
}

func (c *container) unsave() error {
	err := os.Remove(filepath.Join(c.dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// restore finds the containers of the supervisor before this one.
func (d *Daemon) restore() error {
	entries, err := os.ReadDir(d.index(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		c, err := d.load(e.Name())
		if err != nil {
			d.log.Warn("container not found again", "id", e.Name(), "err", err)
			if err := errors.Join(d.factory.Discard(e.Name()), os.Remove(d.index(e.Name()))); err != nil {
				d.log.Warn("remains of container not removed", "id", e.Name(), "err", err)
			}
			continue
		}
		d.containers[c.id] = c
	}
	return nil
}

func (d *Daemon) load(id string) (*container, error) {
	dir, err := os.Readlink(d.index(id))
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, err
	}
	c := d.newContainer(id, dir)
	defer close(c.made)
	c.state, c.failed = r.Status, r.Failed
	if c.failed != nil || c.state.State == wire.Stopped {
		return c, nil
	}
	lc, err := d.factory.Load(id)
	if err != nil {
		d.log.Warn("container ended while no supervisor was there", "id", id, "reason", err)
		c.state.State, c.state.Pid = wire.Stopped, 0
		c.state.Exit = wire.Exit{Code: unknownExit, At: time.Now()}
		return c, c.save()
	}
	// Its streams are lost with the supervisor that held them.
	d.log.Info("container found again", "id", id, "pid", lc.Init().Pid())
	c.lc, c.main = lc, newProcess(lc.Init(), ends{}, d.log.With("id", id))
	c.state.Pid = lc.Init().Pid()
	go c.main.run(c.ended)
	return c, nil
}

func decodeRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, fmt.Errorf("decode state: %w", err)
	}
	switch r.Status.State {
	case wire.Created, wire.Running, wire.Paused, wire.Stopped:
		return r, nil
	}
	return record{}, fmt.Errorf("decode state: unknown state %q", r.Status.State)
}
