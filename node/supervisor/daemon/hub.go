package daemon

import (
	"sync"
	"time"

	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// patience is how long output waits for a client that doesn't read. One that is
// alone slows its process down, as a terminal would; with others beside it, it
// must not slow them down. A client that is an exec's only reader is waited for
// for as long as it is there.
const (
	patienceAlone  = 30 * time.Second
	patienceShared = time.Second
)

// hub hands a process's output to all clients that are attached to it.
type hub struct {
	private bool // of an exec: the only client is waited for without limit

	mu       sync.Mutex
	sessions map[*session]struct{}
	ended    bool
}

// add attaches a client; at the end of the output it ends, too.
func (h *hub) add(s *session) {
	h.mu.Lock()
	ended := h.ended
	if !ended {
		if h.sessions == nil {
			h.sessions = map[*session]struct{}{}
		}
		h.sessions[s] = struct{}{}
	}
	h.mu.Unlock()
	if ended {
		s.end()
	}
}

func (h *hub) remove(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
}

// write hands out one piece of output. It blocks while a client's buffer is full,
// until patience with that client ends.
func (h *hub) write(stream byte, output []byte) {
	h.mu.Lock()
	list := make([]*session, 0, len(h.sessions))
	for s := range h.sessions {
		list = append(list, s)
	}
	h.mu.Unlock()
	patience := patienceAlone
	switch {
	case h.private:
		patience = 0
	case len(list) > 1:
		patience = patienceShared
	}
	for _, s := range list {
		if !s.push(stream, output, patience) {
			h.remove(s)
		}
	}
}

// end says that no more output comes.
func (h *hub) end() {
	h.mu.Lock()
	h.ended = true
	list := h.sessions
	h.sessions = nil
	h.mu.Unlock()
	for s := range list {
		s.end()
	}
}

// wants says whether a session takes a stream.
func (s *session) wants(stream byte) bool {
	if s.raw || stream == wire.Stdout {
		return s.want.Stdout
	}
	return s.want.Stderr
}
