package transfer_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// outside is a registry, which counts what it gives.
type outside struct {
	rate int64 // bytes a second, to each who asks

	mu      sync.Mutex
	blobs   map[digest.Digest][]byte
	gave    map[string]int64 // bytes by node
	asked   map[string]int   // requests by node
	asking  map[string]bool  // nodes that get something now
	refused map[string]error // by node
	stuck   map[string]bool  // nodes that get no bytes
	slow    map[string]bool  // nodes that get a thousandth of the rate
	begun   chan string      // if set, gets the names of nodes that got their first bytes
}

func newOutside(rate int64, blobs ...[]byte) *outside {
	o := &outside{
		rate: rate, blobs: map[digest.Digest][]byte{}, gave: map[string]int64{}, asked: map[string]int{},
		asking: map[string]bool{}, refused: map[string]error{}, stuck: map[string]bool{}, slow: map[string]bool{},
	}
	for _, b := range blobs {
		o.blobs[digest.FromBytes(b)] = b
	}
	return o
}

// forNode is the registry as one node asks it.
func (o *outside) forNode(id string) transfer.Fetcher { return asker{o, id} }

type asker struct {
	*outside
	id string
}

var errRefused = api.Errorf(errdefs.ErrUnauthenticated, "no such user")

func (a asker) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, _ func(int64)) error {
	a.mu.Lock()
	a.asked[a.id]++
	content, err := a.blobs[want.Digest], a.refused[a.id]
	a.asking[a.id] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.asking, a.id)
	}()
	if err != nil {
		return cmp.Or(a.wait(ctx, 100<<10), err)
	}
	w, err := dst.Ingest(ctx, want)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	const step = 32 << 10
	for at := w.Offset(); at < int64(len(content)); at += step {
		b := content[at:min(at+step, int64(len(content)))]
		if err := a.wait(ctx, len(b)); err != nil {
			return err
		}
		if _, err := w.WriteAt(b, at); err != nil {
			return err
		}
	}
	return w.Commit(ctx)
}

// wait takes the time that n bytes take.
func (a asker) wait(ctx context.Context, n int) error {
	a.mu.Lock()
	rate := a.rate
	if a.slow[a.id] {
		rate /= 1000
	}
	a.mu.Unlock()
	t := time.NewTicker(time.Duration(int64(n) * int64(time.Second) / rate))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		a.mu.Lock()
		stuck := a.stuck[a.id]
		if !stuck && a.refused[a.id] == nil {
			if a.gave[a.id] == 0 && a.begun != nil {
				a.begun <- a.id
			}
			a.gave[a.id] += int64(n)
		}
		a.mu.Unlock()
		if !stuck {
			return nil
		}
	}
}

// given is what each node was given so far: one that nobody waits for may still ask.
func (o *outside) given() map[string]int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.gave)
}

func (o *outside) total() (n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range o.gave {
		n += k
	}
	return n
}

func (o *outside) set(do func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	do()
}

// through fetches on some nodes at once, and says how that ended.
func (c *cluster) through(ctx context.Context, o *outside, d ocispec.Descriptor, ids ...string) map[string]error {
	var mu sync.Mutex
	out := map[string]error{}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			n := c.nodes[id]
			err := n.peers.Through(o.forNode(id)).Fetch(ctx, n.store, d, nil)
			if err == nil {
				_, err = n.store.Stat(context.Background(), d.Digest)
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = err
		})
	}
	wg.Wait()
	return out
}

func requireAll(t *testing.T, errs map[string]error, n int) {
	t.Helper()
	require.Len(t, errs, n)
	for id, err := range errs {
		require.NoError(t, err, id)
	}
}

func names(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("n%d", i))
	}
	return ids
}

const lan = 50 << 20

// shaped gives all links a rate.
func (c *cluster) shaped(rate int64) {
	for id := range c.nodes {
		c.net.Shape(id, rate, 500*time.Microsecond)
	}
}

// TestThrough: eight nodes want three blobs at once that nobody has. Each byte leaves
// the registry once, and it takes hardly longer than one node would need alone.
func TestThrough(t *testing.T) {
	ids := names(8)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		var blobs [][]byte
		var wants []ocispec.Descriptor
		size := 0
		for _, n := range []int{12 << 20, 5<<20 + 77, 900} {
			b, d := storetest.Blob(t, n)
			blobs, wants, size = append(blobs, b), append(wants, d), size+n
		}
		o := newOutside(4<<20, blobs...)
		start := time.Now()
		var wg sync.WaitGroup
		for _, d := range wants {
			wg.Go(func() {
				for id, err := range c.through(t.Context(), o, d, ids...) {
					if err != nil {
						t.Error(id, err)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, int64(size), o.total(), "%v", o.given())
		require.Less(t, time.Since(start), 4500*time.Millisecond, "3 s is what the largest takes one node")
		for i, d := range wants {
			for _, id := range ids {
				require.Equal(t, blobs[i], storetest.Get(t, c.nodes[id].store, d.Digest))
			}
		}
	})
}

// TestThroughLater: who comes later gets what is here, as long as anybody has it.
func TestThroughLater(t *testing.T) {
	ids := names(4)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		b, d := storetest.Blob(t, 2<<20)
		o := newOutside(4<<20, b)
		requireAll(t, c.through(t.Context(), o, d, "n0"), 1)
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, "n1"), 1)
		require.Less(t, time.Since(start), 400*time.Millisecond)
		require.Equal(t, int64(len(b)), o.total())

		// Those who had it are gone, so nobody can be asked but the registry, soon.
		c.net.Isolate("n0", "n1")
		start = time.Now()
		requireAll(t, c.through(t.Context(), o, d, "n2", "n3"), 2)
		require.Less(t, time.Since(start), 5*time.Second)
		require.LessOrEqual(t, o.total(), int64(3*len(b)))
	})
}

// TestThroughAlone: without others, or for what has no size, it is the source itself.
func TestThroughAlone(t *testing.T) {
	bubble(t, []string{"n0"}, func(t *testing.T, c *cluster) {
		b, d := storetest.Blob(t, 2<<20)
		o := newOutside(4<<20, b)
		requireAll(t, c.through(t.Context(), o, d, "n0"), 1)
		require.Equal(t, 1, o.asked["n0"])
		require.NoError(t, c.nodes["n0"].peers.Through(o.forNode("n0")).Fetch(t.Context(), c.nodes["n0"].store, d, nil), "held already")
	})
}

// holder waits for the node that the registry gives something.
func holder(o *outside) <-chan string {
	o.begun = make(chan string, 16)
	return o.begun
}

// TestThroughTurnPasses: whoever asks the registry is lost in the middle; another goes
// on where it ended.
func TestThroughTurnPasses(t *testing.T) {
	const rate = 4 << 20
	for name, lose := range map[string]func(c *cluster, o *outside, id string, cancel func()){
		"its process ends": func(c *cluster, _ *outside, id string, cancel func()) { c.net.Host(id).Close(); cancel() },
		"its cable breaks": func(c *cluster, o *outside, id string, _ func()) {
			c.net.Isolate(id)
			o.set(func() { o.stuck[id] = true })
		},
		"its pull is given up": func(_ *cluster, _ *outside, _ string, cancel func()) { cancel() },
		"the registry stalls":  func(_ *cluster, o *outside, id string, _ func()) { o.set(func() { o.stuck[id] = true }) },
		"the registry is slow": func(_ *cluster, o *outside, id string, _ func()) { o.set(func() { o.slow[id] = true }) },
	} {
		t.Run(name, func(t *testing.T) {
			ids := names(5)
			bubble(t, ids, func(t *testing.T, c *cluster) {
				c.shaped(lan)
				b, d := storetest.Blob(t, 12<<20)
				o := newOutside(rate, b)
				first := holder(o)
				ctxs := map[string]context.CancelFunc{}
				var mu sync.Mutex
				errs := map[string]error{}
				var wg sync.WaitGroup
				start := time.Now()
				done := map[string]time.Duration{}
				for _, id := range ids {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					ctxs[id] = cancel
					wg.Go(func() {
						defer cancel()
						e := c.through(ctx, o, d, id)
						mu.Lock()
						defer mu.Unlock()
						errs[id], done[id] = e[id], time.Since(start)
					})
				}
				lost := <-first
				<-time.After(1500 * time.Millisecond) // half of it
				lose(c, o, lost, ctxs[lost])
				wg.Wait()
				for _, id := range ids {
					if id == lost && !strings.HasPrefix(name, "the registry") {
						require.Error(t, errs[id])
						continue
					}
					require.NoError(t, errs[id], id)
					require.Less(t, done[id], 7*time.Second, "size/rate is 3 s, and whoever had nothing under way from the one that is lost hears of it from the desk")
				}
				t.Logf("%v of %d bytes left the registry; %v", o.given(), len(b), done)
				require.Less(t, o.total(), int64(len(b))+1<<20, "what had arrived isn't asked for again")
			})
		})
	}
}

// TestThroughRefused: a node that the registry refuses takes the turn from nobody, and
// gets what others may have.
func TestThroughRefused(t *testing.T) {
	ids := names(4)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		b, d := storetest.Blob(t, 4<<20)
		o := newOutside(4<<20, b)
		for _, id := range ids[:3] {
			o.refused[id] = errRefused
		}
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, ids...), 4)
		require.Less(t, time.Since(start), 2*time.Second)
		require.Equal(t, map[string]int64{"n3": int64(len(b))}, o.given())

		// If all are, each says so at once.
		b, d = storetest.Blob(t, 4<<20)
		o = newOutside(4<<20, b)
		for _, id := range ids {
			o.refused[id] = fmt.Errorf("to %s: %w", id, errRefused)
		}
		start = time.Now()
		for id, err := range c.through(t.Context(), o, d, ids...) {
			require.ErrorIs(t, err, errdefs.ErrUnauthenticated)
			require.ErrorContains(t, err, id)
		}
		require.Less(t, time.Since(start), time.Second)
		for _, id := range ids {
			require.Equal(t, 1, o.asked[id])
		}
	})
}

// TestThroughForbidden: who may not have a blob from the others asks by itself, soon.
func TestThroughForbidden(t *testing.T) {
	ids := names(3)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		for _, n := range c.nodes {
			n.allow = func(_ context.Context, peer string, _ digest.Digest) error {
				if peer == "n2" {
					return errors.New("not you")
				}
				return nil
			}
		}
		b, d := storetest.Blob(t, 32<<20)
		o := newOutside(4<<20, b)
		go func() {
			// Not the first, so that it has somebody to wait for.
			<-time.After(100 * time.Millisecond)
			requireAll(t, c.through(t.Context(), o, d, "n2"), 1)
		}()
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, "n0", "n1"), 2)
		require.Less(t, time.Since(start), 9*time.Second)
		require.Eventually(t, func() bool {
			_, err := c.nodes["n2"].store.Stat(t.Context(), d.Digest)
			return err == nil
		}, 5*time.Second, 100*time.Millisecond)
		synctest.Wait()
		require.Equal(t, int64(len(b)), o.given()["n2"])
		require.Equal(t, int64(2*len(b)), o.total())
	})
}

// TestThroughDeskDies: the node that knows whose turn it is is lost, and the next one
// comes to know.
func TestThroughDeskDies(t *testing.T) {
	for name, lose := range map[string]func(c *cluster, id string){
		"at first":         nil,
		"its process ends": func(c *cluster, id string) { c.net.Host(id).Close() },
		"its cable breaks": func(c *cluster, id string) { c.net.Isolate(id) },
	} {
		t.Run(name, func(t *testing.T) {
			ids := names(6)
			bubble(t, ids, func(t *testing.T, c *cluster) {
				c.shaped(lan)
				b, d := storetest.Blob(t, 20<<20)
				o := newOutside(4<<20, b)
				desk := transfer.DeskOrder(d.Digest, ids)[0]
				others := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == desk })
				start := time.Now()
				if lose == nil {
					c.net.Isolate(desk)
				} else {
					time.AfterFunc(2*time.Second, func() { lose(c, desk) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				// One comes when the first knows nothing any more.
				go func() {
					<-time.After(3500 * time.Millisecond)
					c.through(ctx, o, d, others[4])
				}()
				requireAll(t, c.through(ctx, o, d, others[:4]...), 4)
				require.Less(t, time.Since(start), 6500*time.Millisecond, "size/rate is 5 s")
				t.Logf("%v of %d bytes left the registry in %v", o.given(), len(b), time.Since(start))
				require.Less(t, o.total(), int64(len(b))+3<<20, "the one that came late may have begun anew, before the first was back")
			})
		})
	}
}

// TestThroughPartition: both sides go on, and neither waits for the other.
func TestThroughPartition(t *testing.T) {
	ids := names(6)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		b, d := storetest.Blob(t, 12<<20)
		o := newOutside(4<<20, b)
		order := transfer.DeskOrder(d.Digest, ids)
		time.AfterFunc(time.Second, func() { c.net.Partition(order[:3], order[3:]) })
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, ids...), 6)
		t.Logf("%v of %d bytes left the registry in %v", o.given(), len(b), time.Since(start))
		require.Less(t, time.Since(start), 8*time.Second, "size/rate is 3 s")
		require.Less(t, o.total(), int64(3*len(b)))
	})
}

// TestThroughWrongBytes: what a peer made of the blob doesn't keep the source's from us.
func TestThroughWrongBytes(t *testing.T) {
	ids := names(3)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		b, d := storetest.Blob(t, 4<<20)
		bad := bytes.Clone(b)
		bad[3<<20] ^= 1
		good := newOutside(4<<20, b)
		wrong := newOutside(4 << 20)
		wrong.blobs[d.Digest] = bad
		first := holder(wrong)
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, err := range c.through(t.Context(), wrong, d, "n0") {
				if !errdefs.IsDataLoss(err) {
					t.Error(err)
				}
			}
		})
		<-first
		requireAll(t, c.through(t.Context(), good, d, "n1"), 1)
		require.Equal(t, b, storetest.Get(t, c.nodes["n1"].store, d.Digest))
		wg.Wait()
		require.Equal(t, map[string]string{"n0": "unproven"}, c.nodes["n1"].liars)
	})
}

// TestThroughNarrow: where links are no faster than the registry, the node that asks it
// sends each piece about once, and the others pass it on.
func TestThroughNarrow(t *testing.T) {
	ids := names(6)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		const rate = 8 << 20
		c.shaped(rate)
		b, d := storetest.Blob(t, 32<<20)
		o := newOutside(rate, b)
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, ids...), 6)
		took := time.Since(start)
		require.Equal(t, int64(len(b)), o.total())
		var sent int64
		for _, id := range ids {
			for asker := range o.given() {
				sent += c.nodes[id].from[asker]
			}
		}
		t.Logf("%v; the one that asked sent %.2f copies", took, float64(sent)/float64(len(b)))
		require.Less(t, took, 6500*time.Millisecond, "size/rate is 4 s")
		require.Less(t, float64(sent)/float64(len(b)), 1.5)
	})
}

// TestThroughMany: more nodes than the one that asks serves at a time don't lose patience.
func TestThroughMany(t *testing.T) {
	ids := names(40)
	bubble(t, ids, func(t *testing.T, c *cluster) {
		c.shaped(lan)
		b, d := storetest.Blob(t, 8<<20)
		o := newOutside(1<<20, b)
		start := time.Now()
		requireAll(t, c.through(t.Context(), o, d, ids...), len(ids))
		require.Equal(t, int64(len(b)), o.total(), "%v", o.given())
		require.Less(t, time.Since(start), 10*time.Second, "size/rate is 8 s")
	})
}
