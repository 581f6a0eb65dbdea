package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coder/websocket"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

// attachWebsocket connects browsers and docker-py. A websocket has no half-close
// and Docker doesn't frame the streams in it, so both come as one.
func attachWebsocket(c *call) error {
	o := c.attachOptions()
	if c.version.below(42) {
		o.Stdin, o.Stdout, o.Stderr = true, true, true // which had no such parameters
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	s, err := c.engine.AttachContainer(ctx, c.arg, o)
	if err != nil {
		return err
	}
	defer s.Close()
	// A page of another origin is refused, whatever a browser's user may reach.
	ws, err := websocket.Accept(c.w, c.r, nil)
	if err != nil {
		return nil //nolint:nilerr // Accept has answered already
	}
	c.w.hijacked = true
	defer func() { _ = ws.CloseNow() }()
	go func() {
		defer cancel()
		fromWebsocket(ctx, ws, s, o.Stdin)
	}()
	out := websocketWriter{ctx, ws}
	if s.Multiplexed {
		_, err = stdcopy.Copy(out, out, s)
	} else {
		_, err = io.Copy(out, s)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Debug("stream ended early", "error", err)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	return nil
}

// fromWebsocket carries messages until the client closes.
func fromWebsocket(ctx context.Context, ws *websocket.Conn, s api.Session, stdin bool) {
	for {
		_, r, err := ws.Reader(ctx)
		if err != nil {
			return
		}
		w := io.Discard
		if stdin {
			w = s
		}
		if _, err := io.Copy(w, r); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			return
		}
	}
}

// websocketWriter makes a binary message of every write.
type websocketWriter struct {
	ctx context.Context // of the one call it lives in
	ws  *websocket.Conn
}

func (w websocketWriter) Write(b []byte) (int, error) {
	if err := w.ws.Write(w.ctx, websocket.MessageBinary, b); err != nil {
		return 0, fmt.Errorf("write to websocket: %w", err)
	}
	return len(b), nil
}
