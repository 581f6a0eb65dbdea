package node

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
)

// AttachContainer implements api.Terminals. A container that doesn't run is
// connected when it starts.
func (n *Node) AttachContainer(ctx context.Context, id string, o api.AttachOptions) (api.Session, error) {
	c, err := n.find(ctx, id)
	if err != nil {
		return api.Session{}, err
	}
	keys, err := parseKeys(o.DetachKeys)
	if err != nil {
		return api.Session{}, err
	}
	r := c.get()
	var session api.Duplex = ended{}
	switch {
	case r.State.Status == container.StatePaused:
		return api.Session{}, api.Conflict("container %s is paused, unpause the container before attach", id)
	case r.State.Status == container.StateRestarting:
		return api.Session{}, api.Conflict("container %s is restarting, wait until the container is running", id)
	case o.Stream:
		session, err = n.attach(ctx, c, runtime.Streams{
			Stdin: o.Stdin && r.Config.OpenStdin, Stdout: o.Stdout, Stderr: o.Stderr,
		})
	}
	if err != nil {
		return api.Session{}, err
	}
	if o.Stdin && r.Config.Tty {
		session = &detachable{Duplex: session, keys: keys, onDetach: func() { n.emit(c.get(), events.ActionDetach, nil) }}
	}
	if o.Logs {
		session = n.replay(ctx, r, o, session)
	}
	context.AfterFunc(ctx, func() { session.Close() })
	n.emit(r, events.ActionAttach, nil)
	return api.Session{Duplex: session, Multiplexed: !r.Config.Tty}, nil
}

// attach connects with a process now or when there is one.
func (n *Node) attach(ctx context.Context, c *ctr, s runtime.Streams) (api.Duplex, error) {
	c.mu.Lock()
	task := c.task
	if task == nil {
		defer c.mu.Unlock()
		select {
		case <-c.removed:
			return ended{}, nil
		default:
			return c.attachLater(s), nil
		}
	}
	c.mu.Unlock()
	session, err := task.Attach(ctx, s)
	return session.Duplex, err
}

// replay puts what was written before in front of a session.
func (n *Node) replay(ctx context.Context, r record, o api.AttachOptions, after api.Duplex) api.Duplex {
	logs := n.readLogs(ctx, r, api.LogsOptions{
		Stdout: o.Stdout, Stderr: o.Stderr, Until: time.Now(), Tail: -1,
	}, nil)
	return &replayed{Duplex: after, Reader: io.MultiReader(logs, after), logs: logs}
}

type replayed struct {
	api.Duplex
	io.Reader
	logs io.Closer
}

func (r *replayed) Read(p []byte) (int, error) { return r.Reader.Read(p) }

func (r *replayed) Close() error {
	r.logs.Close()
	return r.Duplex.Close()
}

// ended is a session in which nothing comes.
type ended struct{}

func (ended) Read([]byte) (int, error)  { return 0, io.EOF }
func (ended) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (ended) CloseWrite() error         { return nil }
func (ended) Close() error              { return nil }

// ResizeContainer implements api.Terminals.
func (n *Node) ResizeContainer(ctx context.Context, id string, s api.TerminalSize) error {
	c, err := n.find(ctx, id)
	if err != nil {
		return err
	}
	r, task, err := c.running()
	if err != nil {
		return err
	}
	if err := task.Resize(ctx, s); err != nil {
		return err
	}
	n.emit(r, events.ActionResize, map[string]string{
		"height": strconv.FormatUint(uint64(s.Height), 10), "width": strconv.FormatUint(uint64(s.Width), 10),
	})
	return nil
}
