package p2p

import (
	"io"
	"math"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// way is a model of a link that senders with windows share. Amounts are fluid.
type way struct {
	rate   float64       // bytes a second
	length time.Duration // there and back, without a queue
	jitter time.Duration // added to it at random, twice this at most
	few    bool
	deep   float64 // bytes that fit into the queue; more is lost, and sent again
}

// sender has as much to send as its own rate allows.
type sender struct {
	window
	rate     float64
	received float64
	smooth   float64 // what the kernel says a round trip takes, in seconds
}

// run lets senders send for a time and says how much of the link they used in its second
// half, and what the queue was then, at the worst and in the mean.
func (l way) run(during time.Duration, ss ...*sender) (share float64, worst, mean time.Duration) {
	rnd := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(0, 0).Add(time.Hour)
	steps := int(during / windowEvery)
	base := l.length.Seconds()
	var carried float64
	var queues []time.Duration
	for i := range steps {
		way := base + 2*rnd.Float64()*l.jitter.Seconds()
		wanted, inFlight := 0.0, 0.0
		for _, s := range ss {
			wanted += min(s.rate, float64(s.size)/way)
			inFlight += min(float64(s.size), s.rate*way)
		}
		queue := min(max(0, inFlight-l.rate*way), l.deep)
		full := min(1, l.rate/wanted)
		for _, s := range ss {
			got := min(s.rate, float64(s.size)/way) * full * windowEvery.Seconds()
			s.received += got
			s.smooth += (way + queue/l.rate - s.smooth) / 2
			if i >= steps/2 {
				carried += got
			}
			s.next(now, sight{uint64(s.received), l.length, time.Duration(s.smooth * float64(time.Second))}, l.few)
		}
		if i >= steps/2 {
			queues = append(queues, time.Duration(queue/l.rate*float64(time.Second)))
		}
		now = now.Add(windowEvery)
	}
	for _, q := range queues {
		worst = max(worst, q)
		mean += q / time.Duration(len(queues))
	}
	return carried / (l.rate * windowEvery.Seconds() * float64(len(queues))), worst, mean
}

func senders(n int, rate float64) (ss []*sender) {
	for range n {
		ss = append(ss, &sender{rate: rate})
	}
	return ss
}

// TestWindowsShareALink: however many send over whatever way, it is used, and what waits
// on it is soon through.
func TestWindowsShareALink(t *testing.T) {
	const mbit = 1e6 / 8
	for _, c := range []struct {
		name    string
		way     way
		senders []*sender
		share   float64       // of the link, at the least
		mean    time.Duration // in the queue, at the most
	}{
		{"one", way{rate: 200 * mbit, length: 200 * time.Microsecond}, senders(1, math.Inf(1)), 0.98, 5 * time.Millisecond},
		{"four", way{rate: 200 * mbit, length: 200 * time.Microsecond}, senders(4, math.Inf(1)), 0.98, 5 * time.Millisecond},
		{"fifteen, whose least windows are more than the goal", way{rate: 200 * mbit, length: 200 * time.Microsecond}, senders(15, math.Inf(1)), 0.98, 11 * time.Millisecond},
		{"a fast one", way{rate: 10000 * mbit, length: 50 * time.Microsecond}, senders(4, math.Inf(1)), 0.98, 5 * time.Millisecond},
		{"a slow one", way{rate: 5 * mbit, length: 20 * time.Millisecond}, senders(1, math.Inf(1)), 0.98, 10 * time.Millisecond},
		{"a long one", way{rate: 200 * mbit, length: 100 * time.Millisecond}, senders(4, math.Inf(1)), 0.98, 30 * time.Millisecond},
		{"senders that can't fill it", way{rate: 200 * mbit, length: 200 * time.Microsecond}, senders(2, 20*mbit), 0.2, 0},
		{"one whose length wavers", way{rate: 200 * mbit, length: 30 * time.Millisecond, jitter: 5 * time.Millisecond}, senders(2, math.Inf(1)), 0.9, 15 * time.Millisecond},
		{"one that wavers by more than is tolerated", way{rate: 200 * mbit, length: 30 * time.Millisecond, jitter: 15 * time.Millisecond}, senders(2, math.Inf(1)), 0.66, 30 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.way.deep = c.way.rate // a second
			c.way.few = true
			for _, s := range c.senders {
				s.next(time.Unix(0, 0), sight{}, true)
			}
			share, worst, mean := c.way.run(time.Minute, c.senders...)
			t.Logf("%.2f of the link used; %v wait in the queue, %v at the worst", share, mean, worst)
			require.GreaterOrEqual(t, share, c.share)
			require.LessOrEqual(t, mean, c.mean)
		})
	}
}

// TestWindowOfASocket holds what the kernel is asked and told.
func TestWindowOfASocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	from, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer from.Close()
	to, err := l.Accept()
	require.NoError(t, err)
	wrapped, err := manet.WrapNetConn(to)
	require.NoError(t, err)
	all := &sending{since: map[*windowed]time.Time{}}
	c, ok := keepWindow(wrapped, all).(*windowed)
	require.True(t, ok)
	defer c.Close()

	_, err = from.Write(make([]byte, 1000))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1000))
	require.NoError(t, err)
	s, err := look(c.raw)
	require.NoError(t, err)
	require.Equal(t, uint64(1000), s.received)
	require.False(t, c.w.at.IsZero(), "reading has a look")

	require.NoError(t, clamp(c.raw, 100_000))
	require.NoError(t, c.raw.Control(func(fd uintptr) {
		n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
		require.NoError(t, err)
		require.Equal(t, 100_000, n)
	}))
	require.NoError(t, c.Close())
	require.Error(t, c.adjust(time.Now()))

	pipe := struct{ manet.Conn }{}
	require.Equal(t, manet.Conn(pipe), keepWindow(pipe, all), "no socket")
}

// TestManySendersAreLeftAlone: small windows are for few.
func TestManySendersAreLeftAlone(t *testing.T) {
	all := &sending{since: map[*windowed]time.Time{}}
	now := time.Unix(0, 0)
	var cs []*windowed
	for i := range fewSenders + 1 {
		cs = append(cs, &windowed{})
		require.Equal(t, i < fewSenders, all.few(cs[i], now))
	}
	require.False(t, all.few(cs[0], now.Add(sendingFor)))
	require.True(t, all.few(cs[0], now.Add(sendingFor+1)), "the others are silent")
	for _, c := range cs {
		all.few(c, now)
	}
	all.forget(cs[1])
	require.True(t, all.few(cs[0], now), "one is gone")

	w := window{size: leastWindow, at: now}
	size, changed := w.next(now.Add(windowEvery), sight{1, time.Millisecond, time.Second}, false)
	require.True(t, changed)
	require.Equal(t, mostWindow, size)
}
