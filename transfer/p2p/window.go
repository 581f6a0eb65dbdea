package p2p

import (
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

const (
	// queueGoal is how long a receiver lets what is sent to it queue on the way: answers
	// and heartbeats that come over the same link wait behind it. On long ways it is a
	// queueShare of the way, whose length is never quite the same.
	queueGoal  = 4 * time.Millisecond
	queueShare = 4
	// windowEvery is how often a window is set anew.
	windowEvery = 25 * time.Millisecond
	// probeEvery is how many steps pass before a window is doubled to see whether more
	// would come: a way that has become longer looks like one that is full.
	probeEvery = 200
	// fewSenders is up to how many windows are kept small. Each of more has so little on the
	// way that small windows cost more, in packets and in turns of processors, than they
	// gain; and in a swarm of many a link is rarely full all the time.
	fewSenders = 4
	// sendingFor is how long one who sent something counts as a sender.
	sendingFor = 100 * time.Millisecond
	// A window is never below leastWindow, which keeps requests of any size going, nor
	// above mostWindow.
	leastWindow = 16 << 10
	mostWindow  = 64 << 20
)

// A window bounds what a peer may have on the way to this host over one connection.
//
// Senders that keep queues short do so each for itself: of four that send to one host,
// each takes the others' queue for the way's length. Only the receiver sees them all. It
// advertises to each what its own rate brings in the time that the way takes without a
// queue, and queueGoal more; what all of them have on the way is then no more than the
// link carries in that time. On a way that isn't full the rate grows with the window.
//
// A way whose length wavers, or that others fill, looks like one that this connection
// fills. Taking the window back then takes the rate with it, and so on to nothing; so it
// never goes below what the highest rate of the latest seconds brings in the way's length.
type window struct {
	rates    [4]float64 // bytes a second, of the latest steps
	best     [2]float64 // the highest since the latest probe, and between that and the one before
	step     int
	received uint64
	at       time.Time
	size     int
}

// sight is what the kernel says of a connection.
type sight struct {
	received      uint64        // bytes, so far
	shortest, now time.Duration // round trips: the least seen, and that of what arrives
}

// next is the size that the window should have after what was seen at a time, if few send,
// and whether it is another than before.
func (w *window) next(now time.Time, s sight, few bool) (size int, changed bool) {
	elapsed := now.Sub(w.at).Seconds()
	first := w.at.IsZero()
	if !first && elapsed > 0 {
		rate := float64(s.received-w.received) / elapsed
		w.rates[w.step%len(w.rates)] = rate
		w.best[0] = max(w.best[0], rate)
	}
	w.received, w.at = s.received, now
	if first {
		w.size = mostWindow
		return w.size, false
	}
	w.step++
	goal := s.shortest + max(queueGoal, s.shortest/queueShare)
	switch {
	case !few:
		size = mostWindow
	case w.step%probeEvery == 0:
		size, w.best = 2*w.size, [2]float64{0, w.best[0]}
	case s.shortest > 0 && s.now > goal:
		// The highest of the latest rates: a pause of the sender's isn't the way's limit.
		size = min(w.size, int(slices.Max(w.rates[:])*goal.Seconds()))
		size = max(size, int(slices.Max(w.best[:])*s.shortest.Seconds()))
	default:
		size = w.size + w.size/4
	}
	size = min(max(size, leastWindow), mostWindow)
	changed = size != w.size
	w.size = size
	return size, changed
}

// look asks the kernel.
func look(raw syscall.RawConn) (s sight, err error) {
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil {
		return s, e
	}
	if err != nil {
		return s, err
	}
	return sight{
		received: info.Bytes_received,
		shortest: time.Duration(info.Min_rtt) * time.Microsecond,
		now:      time.Duration(info.Rcv_rtt) * time.Microsecond,
	}, nil
}

// clamp sets the largest window that the kernel advertises.
func clamp(raw syscall.RawConn, size int) (err error) {
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, size)
	}); e != nil {
		return e
	}
	return err
}

// socket is what a connection of the kernel's can do; libp2p, too, sets it up.
type socket interface {
	manet.Conn
	syscall.Conn
	SetLinger(seconds int) error
	SetKeepAlive(on bool) error
	SetKeepAlivePeriod(d time.Duration) error
}

// windowed is a connection that keeps its window right while something arrives.
type windowed struct {
	socket
	raw syscall.RawConn
	all *sending
	w   window // of the one who reads
}

// sending is from which connections a host gets something.
type sending struct {
	mu    sync.Mutex
	since map[*windowed]time.Time // the latest adjustment
}

// few notes that a connection brings something, and says whether not many do.
func (s *sending) few(c *windowed, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since[c] = now
	if len(s.since) > fewSenders {
		maps.DeleteFunc(s.since, func(_ *windowed, at time.Time) bool { return now.Sub(at) > sendingFor })
	}
	return len(s.since) <= fewSenders
}

// forget drops a connection that has ended.
func (s *sending) forget(c *windowed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.since, c)
}

// keepWindow returns the connection as it is if it isn't a socket.
func keepWindow(c manet.Conn, all *sending) manet.Conn {
	s, ok := c.(socket)
	if !ok {
		return c
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return c
	}
	return &windowed{socket: s, raw: raw, all: all}
}

func (c *windowed) Read(b []byte) (int, error) {
	n, err := c.socket.Read(b)
	if err != nil {
		c.all.forget(c)
		return n, err
	}
	if now := time.Now(); c.raw != nil && now.Sub(c.w.at) >= windowEvery {
		if c.adjust(now) != nil {
			c.raw = nil // closed, or a kernel that can't
		}
	}
	return n, nil
}

func (c *windowed) adjust(now time.Time) error {
	s, err := look(c.raw)
	if err != nil {
		return err
	}
	if size, changed := c.w.next(now, s, c.all.few(c, now)); changed {
		return clamp(c.raw, size)
	}
	return nil
}
