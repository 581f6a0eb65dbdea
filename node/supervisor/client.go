package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// Config says where a supervisor is.
type Config struct {
	// Dir is the supervisor's own directory on disk: its executable, its log and
	// what it needs to find containers again. One supervisor runs per Dir.
	Dir string
	// RunDir holds its socket. It shall not outlive a reboot; empty means Dir.
	RunDir string
	Logger *slog.Logger
}

// complete fills in what was left out, and makes the paths mean the same to the
// supervisor, which runs elsewhere.
func (c Config) complete() Config {
	if c.RunDir == "" {
		c.RunDir = c.Dir
	}
	for _, dir := range []*string{&c.Dir, &c.RunDir} {
		if abs, err := filepath.Abs(*dir); err == nil { // else our own directory is gone
			*dir = abs
		}
	}
	return c
}

// Client is the runtime.Runtime that a supervisor offers. Its methods may be
// called concurrently.
type Client struct {
	config Config
}

// Connect reaches the supervisor of a directory, and starts it if it does not
// run. Several processes may connect at once; they reach the same one. A Client
// holds no resources, so there is nothing to close.
func Connect(ctx context.Context, c Config) (*Client, error) {
	client := Running(c)
	if _, err := client.Hello(ctx); err == nil {
		return client, nil
	}
	if err := start(ctx, client); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	return client, nil
}

// Hello is what a supervisor says of itself.
type Hello struct {
	Version int // of the protocol it speaks
	Pid     int
	Seccomp bool // filters can be installed
}

// Hello asks the supervisor who it is. Unavailable if it doesn't run.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	r, err := c.call(ctx, wire.Request{Op: wire.OpHello})
	if err != nil {
		return Hello{}, err
	}
	if r.Hello == nil {
		return Hello{}, api.Internal("the supervisor doesn't say who it is")
	}
	return Hello{Version: r.Version, Pid: r.Hello.Pid, Seccomp: r.Hello.Seccomp}, nil
}

// Shutdown ends the supervisor. Conflict if containers are running, unless force
// kills them. All containers are forgotten, their logs are not. It returns when
// the supervisor is gone; that none runs is no error.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	conn, err := c.dial(ctx)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return c.explain(ctx, err)
	}
	defer conn.Close()
	defer closeWhenDone(ctx, conn)()
	if _, err := exchange(conn, wire.Request{Op: wire.OpShutdown, Force: force}); err != nil {
		return c.explain(ctx, err)
	}
	// It closes its end when there is nothing left but to exit.
	if _, err := conn.Read(make([]byte, 1)); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err == nil {
		return api.Internal("the supervisor goes on talking")
	}
	return nil
}

// Create implements runtime.Runtime.
func (c *Client) Create(ctx context.Context, id string, b runtime.Bundle) (runtime.Task, error) {
	_, err := c.call(ctx, wire.Request{Op: wire.OpCreate, ID: id, Bundle: &wire.Bundle{
		Spec: b.Spec, Dir: b.Dir,
		LogPath: b.LogPath, LogMaxSize: b.LogMaxSize, LogMaxFiles: b.LogMaxFiles,
		OpenStdin: b.OpenStdin, StdinOnce: b.StdinOnce, Size: size(b.Size),
	}})
	if err != nil {
		return nil, err
	}
	return &task{client: c, id: id}, nil
}

// Load implements runtime.Runtime.
func (c *Client) Load(ctx context.Context, id string) (runtime.Task, error) {
	t := &task{client: c, id: id}
	if _, err := t.Status(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// List implements runtime.Runtime.
func (c *Client) List(ctx context.Context) ([]string, error) {
	r, err := c.call(ctx, wire.Request{Op: wire.OpList})
	if err != nil {
		return nil, err
	}
	return r.IDs, nil
}

// call does an operation that needs the connection no longer.
func (c *Client) call(ctx context.Context, r wire.Request) (wire.Reply, error) {
	reply, conn, err := c.open(ctx, r)
	if err != nil {
		return wire.Reply{}, err
	}
	_ = conn.Close() // the answer is here
	return reply, nil
}

// open does an operation and keeps its connection.
func (c *Client) open(ctx context.Context, r wire.Request) (wire.Reply, *net.UnixConn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return wire.Reply{}, nil, c.explain(ctx, err)
	}
	stop := closeWhenDone(ctx, conn)
	reply, err := exchange(conn, r)
	stop()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // the connection may be closed
	}
	if err != nil {
		_ = conn.Close() // of no use any more
		return wire.Reply{}, nil, c.explain(ctx, err)
	}
	return reply, conn, nil
}

func exchange(conn net.Conn, r wire.Request) (wire.Reply, error) {
	r.Version = wire.Version
	if err := wire.Write(conn, r); err != nil {
		return wire.Reply{}, err
	}
	var reply wire.Reply
	if err := wire.Read(conn, &reply); err != nil {
		return wire.Reply{}, err
	}
	return reply, fromWire(reply.Error)
}

// closeWhenDone closes a connection when ctx ends, until the function it returns
// was called.
func closeWhenDone(ctx context.Context, conn net.Conn) (stop func()) {
	cancel := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return func() { cancel() }
}

// explain gives an error of the connection its class.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if api.Status(err) != 500 || isWire(err) {
		return err
	}
	return api.Unavailable("the supervisor of %s does not answer: %w", c.config.Dir, err)
}

// dial reaches the socket through its directory: a socket's path may have 107
// bytes, and a data directory's more.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.OpenFile(c.config.RunDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), wire.Socket(c.config.Dir)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// isGone says that nobody listens.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

var _ runtime.Runtime = (*Client)(nil)
