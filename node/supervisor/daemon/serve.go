package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// requestTimeout is how long a caller may take to say what it wants.
const requestTimeout = 10 * time.Second

// call is an operation in progress.
type call struct {
	wire.Request
	conn *net.UnixConn
	peer int // the caller's pid
	// stream, if set, is run after the reply and owns the connection.
	stream func()
}

// accept serves connections until the listener is closed.
func (d *Daemon) accept(ctx context.Context, l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			d.log.Warn("connection not accepted", "err", err)
			select { // files may become free
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go d.serve(conn) // ends with its caller, or with the process
	}
}

func (d *Daemon) serve(conn *net.UnixConn) {
	c := &call{conn: conn}
	reply := d.answer(c)
	reply.Version = wire.Version
	err := wire.Write(conn, reply)
	switch {
	case c.stream != nil:
		c.stream() // it finds out by itself if nobody is there
	case err != nil:
		d.log.Debug("nobody took the reply", "op", c.Op, "err", err)
		_ = conn.Close() // nobody is there
	default:
		_ = conn.Close() // all was said
	}
}

// answer does one operation. A defect in one must not end the containers of all.
func (d *Daemon) answer(c *call) (reply wire.Reply) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("operation failed", "op", c.Op, "panic", p, "stack", string(debug.Stack()))
			reply = wire.Reply{Error: wire.Errorf(wire.Internal, "the supervisor failed: %v", p)}
		}
	}()
	if err := d.receive(c); err != nil {
		return wire.Reply{Error: asWire(err)}
	}
	op, ok := operations[c.Op]
	if !ok {
		return wire.Reply{Error: wire.Errorf(wire.Unsupported, "this supervisor does not know %q", c.Op)}
	}
	if err := op(d, c, &reply); err != nil {
		return wire.Reply{Error: asWire(err)}
	}
	return reply
}

func (d *Daemon) receive(c *call) error {
	cred, err := peer(c.conn)
	if err != nil {
		return err
	}
	if cred.Uid != uint32(os.Geteuid()) {
		return wire.Errorf(wire.Invalid, "user %d has no business here", cred.Uid)
	}
	c.peer = int(cred.Pid)
	if err := c.conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if err := wire.Read(c.conn, &c.Request); err != nil {
		return wire.Errorf(wire.Invalid, "%s", err)
	}
	return c.conn.SetReadDeadline(time.Time{})
}

func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}

// gone gives a channel that is closed when the caller is there no more. It is for
// operations that wait; the connection can't be read otherwise then.
func (c *call) gone() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.conn.Read(make([]byte, 1)) // nothing is sent; closing ends it
	}()
	return gone
}

// asWire gives an error its class.
func asWire(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	switch {
	case errors.Is(err, libcontainer.ErrExists):
		return wire.Errorf(wire.Conflict, "%s", err)
	case errors.Is(err, libcontainer.ErrInvalidID), errors.Is(err, libcontainer.ErrNoSeccomp):
		return wire.Errorf(wire.Invalid, "%s", err)
	case errors.Is(err, libcontainer.ErrNotRunning):
		return wire.Errorf(wire.Conflict, "container is not running")
	}
	return wire.Errorf(wire.Internal, "%s", err)
}
