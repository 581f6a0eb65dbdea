package server

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// upload is a request's body while its answer is already being written. Whoever
// reads it may go on a moment longer than the handler; net/http must not meet
// that read, so end waits for it.
type upload struct {
	body       io.Reader
	connection *http.ResponseController
	linger     func()
	mu         sync.Mutex    // held while reading
	stop       chan struct{} // closed: no further read begins
}

// upload switches the call to full duplex and gives its body; end must be called
// before the handler returns. The connection takes no other request: where a read of
// the body was cut short, what follows couldn't be told from one.
func (c *call) upload() *upload {
	c.fullDuplex()
	c.w.Header().Set("Connection", "close")
	return &upload{
		body: c.r.Body, connection: http.NewResponseController(c.w), stop: make(chan struct{}),
		linger: func() { closeInOrder(c.r.Context()) },
	}
}

func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case <-u.stop:
		return 0, http.ErrBodyReadAfterClose
	default:
		return u.body.Read(p)
	}
}

// end makes every read fail from now on and waits for one that is under way,
// which a deadline cuts short.
func (u *upload) end() {
	close(u.stop)
	u.linger()
	if u.mu.TryLock() {
		u.mu.Unlock()
		return
	}
	// Where deadlines aren't supported the read ends with the client's bytes.
	_ = u.connection.SetReadDeadline(time.Unix(1, 0))
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.connection.SetReadDeadline(time.Time{})
}
