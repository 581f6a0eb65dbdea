package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// Daemon is a supervisor. Its methods may be called concurrently.
type Daemon struct {
	dir     string
	log     *slog.Logger
	factory *libcontainer.Factory
	started time.Time
	quit    chan struct{} // closed: nothing is left to do
	once    sync.Once     // closes quit

	mu         sync.Mutex
	containers map[string]*container
	closing    bool // no container is made any more
	leaving    bool // Run ends with the last container
}

// New makes the supervisor of a directory and finds the containers that one
// before it left there. What does not outlive a reboot is kept in runDir.
func New(dir, runDir string, log *slog.Logger) (*Daemon, error) {
	d := &Daemon{
		dir: dir, log: log, started: time.Now(),
		factory: &libcontainer.Factory{
			Root:         filepath.Join(runDir, "lc-"+wire.Tag(dir)),
			CgroupParent: "shoal-" + wire.Tag(dir),
			Logger:       log,
		},
		quit:       make(chan struct{}),
		containers: map[string]*container{},
	}
	if err := os.MkdirAll(d.index(""), 0o700); err != nil {
		return nil, err
	}
	if err := d.restore(); err != nil {
		return nil, fmt.Errorf("find containers: %w", err)
	}
	return d, nil
}

// Run serves a socket until Shutdown or, once no container runs, SIGTERM.
func (d *Daemon) Run(ctx context.Context, l *net.UnixListener) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	accepting := make(chan error, 1)
	go func() { accepting <- d.accept(ctx, l) }()
	retry := time.NewTicker(reapRetry)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(l.Close(), <-accepting)
		case err := <-accepting:
			return err
		case <-d.quit:
			return errors.Join(l.Close(), <-accepting)
		case s := <-signals:
			if s == unix.SIGCHLD {
				d.reap(retry)
				continue
			}
			d.log.Info("ends when no container runs any more", "signal", s.String())
			d.quitWhenIdle()
		case <-retry.C:
			d.reap(retry)
		}
	}
}

// reapRetry is when orphans are looked for again that couldn't be told apart from
// children just being started.
const reapRetry = 500 * time.Millisecond

func (d *Daemon) reap(retry *time.Ticker) {
	done, err := d.factory.ReapOrphans()
	if err != nil {
		d.log.Warn("orphans not reaped", "err", err)
	}
	if done {
		retry.Stop()
	} else {
		retry.Reset(reapRetry)
	}
}

// find gives a container by its ID.
func (d *Daemon) find(id string) (*container, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.containers[id]
	if !ok {
		return nil, wire.Errorf(wire.NotFound, "no such container: %s", id)
	}
	return c, nil
}

func (d *Daemon) all() []*container {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*container, 0, len(d.containers))
	for _, c := range d.containers {
		list = append(list, c)
	}
	return list
}

func (d *Daemon) ids() []string {
	var ids []string
	for _, c := range d.all() {
		ids = append(ids, c.id)
	}
	slices.Sort(ids)
	return ids
}

// forget removes a deleted container.
func (d *Daemon) forget(c *container) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.containers, c.id)
	err := os.Remove(d.index(c.id))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

// shutdown deletes all containers; running ones are a Conflict unless force.
func (d *Daemon) shutdown(force bool) error {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	all := d.all()
	if !force {
		for _, c := range all {
			if c.alive() {
				d.mu.Lock()
				d.closing = false
				d.mu.Unlock()
				return wire.Errorf(wire.Conflict, "container %s is running", c.id)
			}
		}
	}
	errs := make([]error, len(all)+1)
	var group sync.WaitGroup
	for i, c := range all {
		group.Go(func() { errs[i] = c.delete() })
	}
	group.Wait()
	errs[len(all)] = d.factory.RemoveParent()
	return errors.Join(errs...)
}

// quitWhenIdle ends Run when no container runs, and makes no new ones.
func (d *Daemon) quitWhenIdle() {
	d.mu.Lock()
	d.closing, d.leaving = true, true
	d.mu.Unlock()
	for _, c := range d.all() {
		if c.alive() {
			return // its end comes here again
		}
	}
	d.once.Do(func() { close(d.quit) })
}

// containerEnded is called after each end of a container.
func (d *Daemon) containerEnded() {
	d.mu.Lock()
	leaving := d.leaving
	d.mu.Unlock()
	if leaving {
		d.quitWhenIdle()
	}
}
