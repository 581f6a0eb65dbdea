package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// AttachContainer implements api.Terminals.
func (c *Client) AttachContainer(ctx context.Context, id string, o api.AttachOptions) (api.Session, error) {
	s, err := segment("container", strings.TrimPrefix(id, "/"))
	if err != nil {
		return api.Session{}, err
	}
	q := query().flag("stdin", o.Stdin).flag("stdout", o.Stdout).flag("stderr", o.Stderr).
		flag("logs", o.Logs).flag("stream", o.Stream).str("detachKeys", o.DetachKeys)
	return c.upgrade(ctx, request{method: http.MethodPost, path: "/containers/" + s + "/attach", query: q.Values})
}

// StartExec implements api.Execs.
func (c *Client) StartExec(ctx context.Context, execID string, o api.ExecStartOptions) (api.Session, error) {
	e, err := segment("exec instance", execID)
	if err != nil {
		return api.Session{}, err
	}
	b := container.ExecStartRequest{Detach: o.Detach, Tty: o.Tty}
	if o.Size != (api.TerminalSize{}) {
		b.ConsoleSize = &[2]uint{o.Size.Height, o.Size.Width}
	}
	r := request{method: http.MethodPost, path: "/exec/" + e + "/start", body: b}
	if o.Detach {
		return api.Session{}, c.call(ctx, r, nil)
	}
	return c.upgrade(ctx, r)
}

// upgrade sends a request on a connection of its own, which becomes a session.
func (c *Client) upgrade(ctx context.Context, r request) (api.Session, error) {
	r.header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}}
	req, err := c.newRequest(ctx, r)
	if err != nil {
		return api.Session{}, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return api.Session{}, failed(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	s, err := handshake(ctx, conn, req)
	if err != nil {
		stop()
		_ = conn.Close()
		return api.Session{}, err
	}
	s.Duplex.(*duplex).stop = stop
	return s, nil
}

func handshake(ctx context.Context, conn net.Conn, req *http.Request) (api.Session, error) {
	if err := req.Write(conn); err != nil {
		return api.Session{}, failed(ctx, err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return api.Session{}, failed(ctx, err)
	}
	if err := check(res); err != nil {
		return api.Session{}, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return api.Session{}, api.Internal("the engine answered %q instead of upgrading the connection", res.Status)
	}
	return api.Session{
		Duplex:      &duplex{ctx: ctx, conn: conn, r: r},
		Multiplexed: res.Header.Get("Content-Type") == multiplexed,
	}, nil
}

// duplex is a connection after the upgrade.
type duplex struct {
	ctx  context.Context // of the call that made it, whose end closes it
	conn net.Conn
	r    *bufio.Reader
	stop func() bool // undoes what waits for the end of ctx
	once sync.Once
	err  error // of the one Close
}

var _ api.Duplex = (*duplex)(nil)

func (d *duplex) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF && d.ctx.Err() != nil { //nolint:errorlint // io.Reader promises the bare value
		err = context.Cause(d.ctx)
	}
	return n, err
}

func (d *duplex) Write(p []byte) (int, error) {
	if d.ctx.Err() != nil {
		return 0, context.Cause(d.ctx)
	}
	n, err := d.conn.Write(p)
	if err != nil && d.ctx.Err() != nil {
		err = context.Cause(d.ctx)
	}
	return n, err
}

// CloseWrite implements api.Duplex.
func (d *duplex) CloseWrite() error {
	half, ok := d.conn.(interface{ CloseWrite() error })
	if !ok {
		return api.NotImplemented("this connection can't be closed in one direction")
	}
	err := half.CloseWrite()
	if errors.Is(err, net.ErrClosed) {
		return nil // it is closed in both already
	}
	return err
}

func (d *duplex) Close() error {
	d.once.Do(func() {
		d.stop()
		d.err = d.conn.Close()
	})
	return d.err
}
