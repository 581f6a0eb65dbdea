package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// linger is how long a client may take to close after it was told that all output
// is over. Closing at once, with input unread, would reset the connection and
// could take the last bytes of output away from the client.
const linger = 2 * time.Second

// hijack takes the connection over and joins it with a session until the session
// ends, the client is gone, or the request's context ends. From here on no error
// can be answered.
func (c *call) hijack(s api.Session, stdin bool) error {
	defer s.Close()
	conn, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return fmt.Errorf("hijack connection: %w", err)
	}
	defer conn.Close()
	c.w.hijacked = true
	if _, err := io.WriteString(conn, c.upgradeHead(s.Multiplexed)); err != nil {
		return nil //nolint:nilerr // the client is gone, nobody is left to tell
	}
	if strings.HasPrefix(c.r.UserAgent(), "docker-sdk-python/") {
		settle(conn)
	}
	stop := context.AfterFunc(c.r.Context(), func() {
		_ = conn.Close()
		_ = s.Close()
	})
	defer stop()
	// Beyond what is buffered, net/http's reader must not be used: it takes the
	// end of stdin for the end of the request and cancels its context.
	early, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		return fmt.Errorf("read what came with the request: %w", err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		pumpIn(s, io.MultiReader(bytes.NewReader(early), conn), stdin)
	}()
	if _, err := io.Copy(conn, s); err != nil && c.r.Context().Err() == nil {
		c.log.Debug("stream ended early", "error", err)
	}
	_ = s.Close()
	waitClosed(conn, gone)
	_ = conn.Close()
	<-gone
	return nil
}

// waitClosed tells the client that the output is over and gives it a moment.
func waitClosed(conn net.Conn, gone <-chan struct{}) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	t := time.NewTimer(linger)
	defer t.Stop()
	select {
	case <-gone:
	case <-t.C:
	}
}

// upgradeHead is the answer's first part. Without Upgrade the client gets a plain
// 200, whose body goes both ways all the same.
func (c *call) upgradeHead(multiplexed bool) string {
	if c.r.Header.Get("Upgrade") == "" {
		return "HTTP/1.1 200 OK\r\nContent-Type: " + string(rawType) + "\r\n\r\n"
	}
	return "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + c.streamType(multiplexed) +
		"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nApi-Version: " + newest.String() + "\r\n\r\n"
}

// streamType names what a client is about to read; before 1.42 all of it was
// called raw.
func (c *call) streamType(multiplexed bool) string {
	if multiplexed && !c.version.below(42) {
		return string(multiType)
	}
	return string(rawType)
}

// pumpIn carries what the client sends until the client half-closes. A process
// that reads no more is no reason to stop reading: the client would be stuck in a
// write and never see the output's end.
func pumpIn(s api.Session, from io.Reader, stdin bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && stdin {
			if _, werr := s.Write(buf[:n]); werr != nil {
				stdin = false
			}
		}
		switch {
		case err == nil:
			continue
		case err == io.EOF && stdin: //nolint:errorlint // io.Reader promises the bare value
			_ = s.CloseWrite()
		case err != io.EOF: //nolint:errorlint // the same
			_ = s.Close() // the connection broke: nobody reads the output either
		}
		return
	}
}
