package membership

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/membership/memtransport"
)

var testKey = bytes.Repeat([]byte{7}, keySize)

// wires is a network whose cables can be cut.
type wires struct {
	*memtransport.Network
	mu   sync.Mutex
	side map[string]int
}

func newWires() *wires {
	w := &wires{side: map[string]int{}}
	w.Network = memtransport.NewNetwork(func(from, to string) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.side[from] == w.side[to]
	})
	return w
}

func (w *wires) put(side int, ids ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.side[id] = side
	}
}

// node is a running member.
type node struct {
	*Membership
	stop func() // waits until it has ended
}

func start(t *testing.T, w *wires, id string, key []byte) *node {
	t.Helper()
	m, err := New(Config{ID: id, Name: "name of " + id, Transport: w.Transport(id), Key: key, Meta: []byte("meta")})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	var once sync.Once
	n := &node{m, func() { once.Do(func() { cancel(); <-done }) }}
	t.Cleanup(func() {
		n.stop()
		time.Sleep(10 * time.Second) // fake time: memberlist doesn't wait for its probes, a bubble does
	})
	<-m.Ready()
	return n
}

func cluster(t *testing.T, w *wires, size int) []*node {
	t.Helper()
	nodes := make([]*node, size)
	for i := range nodes {
		nodes[i] = start(t, w, fmt.Sprintf("n%02d", i), testKey)
		if i > 0 {
			require.NoError(t, nodes[i].Join(t.Context(), []string{nodes[0].Addr()}))
		}
	}
	until(t, nodes, func(n *node) bool { return len(n.Members()) == size })
	return nodes
}

// until waits for a condition on all nodes, in fake time, and says how long it took.
func until(t *testing.T, nodes []*node, ok func(*node) bool) time.Duration {
	t.Helper()
	start := time.Now()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for _, n := range nodes {
		for !ok(n) {
			if time.Since(start) > time.Minute {
				t.Fatalf("node %s still has %v", n.cfg.ID, n.Members())
			}
			<-again.C
		}
	}
	return time.Since(start)
}

func TestLoseAndRegain(t *testing.T) {
	for _, size := range []int{3, 5, 7, 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires()
				nodes := cluster(t, w, size)
				last, rest := nodes[size-1], nodes[:size-1]
				time.Sleep(time.Minute) // fake time: at rest nobody is lost
				until(t, nodes, func(n *node) bool { return len(n.Members()) == size })
				_, events := rest[0].Watch(t.Context())

				last.stop()
				id := last.cfg.ID
				took := until(t, rest, func(n *node) bool { return !n.Alive(id) })
				t.Logf("%d nodes: all know of the death after %v", size, took)
				require.Greater(t, took, 2500*time.Millisecond)
				require.Less(t, took, 8*time.Second)
				if size <= 7 {
					require.Less(t, took, 5500*time.Millisecond)
				}
				require.Equal(t, Event{Down, Member{ID: id, Name: "name of " + id, Addr: last.Addr(), Meta: []byte("meta")}}, <-events)

				again := start(t, w, id, testKey)
				took = until(t, rest, func(n *node) bool { return n.Alive(id) })
				t.Logf("and of its return after %v, though it called nobody", took)
				until(t, []*node{again}, func(n *node) bool { return len(n.Members()) == size })
				require.Equal(t, Up, (<-events).Kind)
			})
		})
	}
}

func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		nodes := cluster(t, w, 5)
		w.put(1, "n03", "n04")
		until(t, nodes[:3], func(n *node) bool { return len(n.Members()) == 3 })
		until(t, nodes[3:], func(n *node) bool { return len(n.Members()) == 2 })
		time.Sleep(10 * time.Minute) // fake time: longer than gossip remembers the dead
		w.put(0, "n03", "n04")
		took := until(t, nodes, func(n *node) bool { return len(n.Members()) == 5 })
		t.Logf("whole again after %v", took)
		require.Less(t, took, 30*time.Second)
	})
}

func TestWrongKeyStaysOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		nodes := cluster(t, w, 2)
		stranger := start(t, w, "stranger", bytes.Repeat([]byte{8}, keySize))
		err := stranger.Join(t.Context(), []string{nodes[0].Addr()})
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		time.Sleep(time.Minute) // fake time: many rounds of gossip, in none of which it may get in
		for _, n := range nodes {
			require.False(t, n.Alive("stranger"))
		}
		require.Len(t, stranger.Members(), 1)
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		nodes := cluster(t, w, 3)
		_, events := nodes[0].Watch(t.Context())
		require.NoError(t, nodes[2].Leave(t.Context()))
		nodes[2].stop()
		require.Error(t, nodes[2].Leave(t.Context()), "it has ended")
		took := until(t, nodes[:2], func(n *node) bool { return !n.Alive("n02") })
		require.Less(t, took, 2*time.Second)
		require.Equal(t, Left, (<-events).Kind)
		require.Len(t, nodes[0].Members(), 2)
		require.Empty(t, nodes[0].view.someLost(), "who left isn't called up")
	})
}

func TestSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		nodes := cluster(t, w, 3)
		members, events := nodes[0].Watch(t.Context())
		require.Len(t, members, 3)

		// A false alarm.
		nodes[0].Suspect("n02")
		nodes[0].Suspect("n02")
		require.False(t, nodes[0].Alive("n02"))
		require.Len(t, nodes[0].Members(), 2)
		require.True(t, nodes[1].Alive("n02"), "it is this node's own matter")
		took := until(t, nodes, func(n *node) bool { return n.Alive("n02") })
		require.Less(t, took, 2*time.Second)
		require.Equal(t, Down, (<-events).Kind)
		require.Equal(t, Up, (<-events).Kind)

		// A real death: down at once, once.
		nodes[2].stop()
		nodes[0].Suspect("n02")
		require.False(t, nodes[0].Alive("n02"))
		require.Equal(t, Down, (<-events).Kind)
		time.Sleep(30 * time.Second) // fake time: longer than a late word of its life would travel
		require.False(t, nodes[0].Alive("n02"))
		select {
		case e := <-events:
			t.Fatalf("unexpected %+v", e)
		default:
		}
		nodes[0].Suspect("n00")
		require.True(t, nodes[0].Alive("n00"), "never itself")
		nodes[0].Forget("n02")
		require.Empty(t, nodes[0].view.someLost())
	})
}

func TestMetaAndWatchLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		nodes := cluster(t, w, 2)
		ctx, cancel := context.WithCancel(t.Context())
		_, events := nodes[0].Watch(ctx)
		for i := range 50 { // nobody reads meanwhile
			require.NoError(t, nodes[1].SetMeta(t.Context(), fmt.Append(nil, i)))
		}
		var last Event
		for string(last.Member.Meta) != "49" {
			last = <-events
			require.Equal(t, Updated, last.Kind)
		}
		require.ErrorIs(t, nodes[1].SetMeta(t.Context(), make([]byte, 600)), errdefs.ErrInvalidArgument)
		cancel()
		_, open := <-events
		require.False(t, open)
	})
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no id":     {Bind: "127.0.0.1:0", Key: testKey},
		"no key":    {ID: "a", Bind: "127.0.0.1:0"},
		"short key": {ID: "a", Bind: "127.0.0.1:0", Key: testKey[:16]},
		"bind":      {ID: "a", Bind: "localhost", Key: testKey},
		"advertise": {ID: "a", Bind: "127.0.0.1:0", Advertise: "x", Key: testKey},
		"long meta": {ID: "a", Bind: "127.0.0.1:0", Key: testKey, Meta: make([]byte, 600)},
	} {
		_, err := New(c)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	m, err := New(Config{ID: "a", Bind: "127.0.0.1:0", Key: testKey})
	require.NoError(t, err)
	require.Empty(t, m.Addr())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, m.Join(ctx, []string{"127.0.0.1:1"}), context.Canceled)
}

// TestSockets runs two members on loopback.
func TestSockets(t *testing.T) {
	var logs bytes.Buffer
	var nodes []*Membership
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer wg.Wait()
	defer cancel()
	for _, id := range []string{"a", "b"} {
		m, err := New(Config{ID: id, Bind: "127.0.0.1:0", Key: testKey, Logger: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelInfo}))})
		require.NoError(t, err)
		wg.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		<-m.Ready()
		nodes = append(nodes, m)
	}
	_, events := nodes[0].Watch(ctx)
	require.NoError(t, nodes[1].Join(ctx, []string{nodes[0].Addr()}))
	require.Equal(t, "b", (<-events).Member.ID)
	require.True(t, nodes[1].Alive("a"))
	taken, err := New(Config{ID: "c", Bind: nodes[0].Addr(), Key: testKey})
	require.NoError(t, err)
	require.ErrorContains(t, taken.Run(ctx), "address already in use")
	require.ErrorContains(t, taken.Join(ctx, []string{nodes[0].Addr()}), "address already in use")
	cancel()
	wg.Wait()
	require.Empty(t, logs.String(), "gossip's own log is for debugging")
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeMeta(flagLeaving, "name", []byte("meta")))
	f.Add([]byte{0, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		flags, name, meta, err := decodeMeta(b)
		if err == nil {
			require.Equal(t, b, encodeMeta(flags, name, meta))
		}
	})
}
