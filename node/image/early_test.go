package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/image/early"
	"github.com/shoal-engine/shoal/transfer"
)

func TestMain(m *testing.M) {
	if early.IsChild(os.Args) {
		os.Exit(early.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// wire is how one node reaches another that has an image. What the swarm asks for waits
// until the gate is open; what is asked for on demand doesn't.
type wire struct {
	gate  chan struct{}
	conns chan net.Conn
	done  chan struct{}

	mu  sync.Mutex
	cut bool
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.done:
		return nil, net.ErrClosed
	}
}
func (w *wire) Close() error   { return nil }
func (w *wire) Addr() net.Addr { return peerName("holder") }

type peerName string

func (p peerName) Network() string { return "test" }
func (p peerName) String() string  { return string(p) }

type namedConn struct {
	net.Conn
	peer string
}

func (c namedConn) RemoteAddr() net.Addr { return peerName(c.peer) }

// heldBack holds back sessions that want a blob whole.
type heldBack struct {
	namedConn
	w    *wire
	once *sync.Once
}

func (c heldBack) Write(b []byte) (int, error) {
	c.once.Do(func() {
		if large := len(b) > 14 && b[0] == 1 && bytes.Compare(b[6:14], []byte{0, 0, 0, 0, 0, 16, 0, 0}) > 0; large {
			select {
			case <-c.w.gate:
			case <-c.w.done:
			}
		}
	})
	return c.Conn.Write(b)
}

func (w *wire) dial(context.Context, string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, errors.New("cut")
	}
	near, far := net.Pipe()
	select {
	case w.conns <- namedConn{far, "asker"}:
	case <-w.done:
		return nil, net.ErrClosed
	}
	return heldBack{namedConn{near, "holder"}, w, &sync.Once{}}, nil
}

type holderOnly struct{}

func (holderOnly) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) { yield(transfer.Peer{ID: "holder"}, nil) }
}

// earlyWorld is a node that starts early, and one that has what it wants.
type earlyWorld struct {
	t        *testing.T
	wire     *wire
	root     string
	peers    *transfer.Peers
	store    *image.Store
	stop     func() // the store
	target   digest.Digest
	id       digest.Digest
	contents map[string][]byte

	mu      sync.Mutex
	blamed  []string
	trouble []string // containers that were to stop
}

// lying serves other bytes than a blob's from some place on.
type lying struct {
	*image.Store
	blob digest.Digest
	at   int64
}

type lyingBlob struct {
	transfer.Blob
	at int64
}

func (l lying) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := l.Store.Open(ctx, d)
	if err == nil && d == l.blob {
		b = &lyingBlob{b, l.at}
	}
	return b, err
}

func (b *lyingBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Blob.ReadAt(p, off)
	if i := b.at - off; i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	return n, err
}

func (b *lyingBlob) Read(p []byte) (int, error) {
	off, err := b.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	n, err := b.ReadAt(p, off)
	_, seek := b.Seek(int64(n), io.SeekCurrent)
	return n, errors.Join(seek, ignoreEOF(err, n))
}

func ignoreEOF(err error, n int) error {
	if n > 0 && err == io.EOF {
		return nil
	}
	return err
}

// newEarlyWorld has an image of a layer of three files and a small one above it; with lie, a byte of "last" is
// another one than its digest says.
func newEarlyWorld(t *testing.T, lie bool) *earlyWorld {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); os.Geteuid() != 0 || err != nil {
		t.Skip("needs root and FUSE")
	}
	w := &earlyWorld{t: t, root: t.TempDir(), contents: map[string][]byte{}}
	rnd := rand.NewChaCha8([32]byte{9})
	var entries []entry
	for _, name := range []string{"first", "middle", "last"} {
		b := make([]byte, 3<<20)
		_, _ = rnd.Read(b)
		w.contents[name] = b
		entries = append(entries, file(name, string(b)))
	}
	layer := tarOf(t, entries...)
	w.contents["top"] = []byte("small")
	holder, err := image.Open(image.Config{Root: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, holder.Close()) })
	s, err := holder.Load(t.Context(), bytes.NewReader(layered(t, "early:1", layer, tarOf(t, file("top", "small")))), api.LoadOptions{})
	require.NoError(t, err)
	for _, err := range api.All(s) {
		require.NoError(t, err)
	}
	img := get(t, holder, "early:1")
	w.target, w.id = img.Target.Digest, img.ID
	var served transfer.Store = holder
	if lie {
		at := int64(bytes.Index(layer, w.contents["last"])) + 2<<20
		w.contents["last"][2<<20] ^= 1
		served = lying{holder, img.Layers[0].Digest, at}
	}
	w.wire = &wire{gate: make(chan struct{}), conns: make(chan net.Conn), done: make(chan struct{})}
	peers := transfer.NewPeers(transfer.PeersConfig{Self: "holder", Dial: w.wire.dial, Locator: holderOnly{}, Chunks: t.TempDir()})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = peers.Serve(ctx, w.wire, served) })
	t.Cleanup(func() { close(w.wire.done); cancel(); wg.Wait() })
	w.peers = transfer.NewPeers(transfer.PeersConfig{
		Self: "asker", Dial: w.wire.dial, Locator: holderOnly{}, Chunks: t.TempDir(),
		OnWrongBytes: func(peer string, _ digest.Digest, _ bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.blamed = append(w.blamed, peer)
		},
	})
	w.open()
	t.Cleanup(func() { w.stop() })
	return w
}

// open begins a process with the store, as it is.
func (w *earlyWorld) open() {
	w.t.Helper()
	var err error
	w.store, err = image.Open(image.Config{Root: w.root, Fetchers: []transfer.Fetcher{w.peers}, Early: &image.Early{
		Program: func() (*os.File, error) { return os.Open("/proc/self/exe") },
		Vouch:   w.peers.Vouch, Wanted: w.peers.Wanted, Arrived: w.peers.Arrived,
	}})
	require.NoError(w.t, err)
	w.store.OnTrouble(func(id string, _ error, stop bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if stop {
			w.trouble = append(w.trouble, id)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	store := w.store
	wg.Go(func() { _ = store.Run(ctx) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		require.NoError(w.t, store.Close())
	})
}

// pull pulls early, and returns once containers can be made.
func (w *earlyWorld) pull() {
	w.t.Helper()
	s, err := w.store.Pull(w.t.Context(), api.PullOptions{Ref: "early:1", Digest: w.target.String(), Early: true})
	require.NoError(w.t, err)
	defer s.Close()
	for p, err := range api.All(s) {
		require.NoError(w.t, err)
		require.Nil(w.t, p.Error)
	}
}

// read wants a file of a container's to be what it is in the image.
func (w *earlyWorld) read(root image.Root, name string) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(root.Path, name))
	require.NoError(w.t, err)
	require.True(w.t, bytes.Equal(w.contents[name], b), "%s is something else", name)
}

func (w *earlyWorld) await(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, 60*time.Second, 5*time.Millisecond, what)
}

func (w *earlyWorld) isHere() bool {
	_, err := w.store.Get(context.Background(), "early:1")
	return err == nil
}

func TestStartsBeforeItIsHere(t *testing.T) {
	w := newEarlyWorld(t, false)
	w.pull()
	_, err := w.store.Get(t.Context(), "early:1")
	require.True(t, errdefs.IsNotFound(err), "it isn't whole: %v", err)
	images, err := w.store.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, images)
	coming, err := w.store.Coming(t.Context(), "early:1")
	require.NoError(t, err)
	require.Equal(t, w.id, coming.ID)
	one := mount(t, w.store, "one", w.id)
	w.read(one, "last")
	w.pull() // a second container shares the fetch
	two := mount(t, w.store, "two", w.id)
	w.read(two, "middle")
	w.read(two, "top")
	close(w.wire.gate)
	w.await("the image", w.isHere)
	w.await("its end as one that arrives", func() bool { _, err := w.store.Coming(t.Context(), "early:1"); return err != nil })
	w.read(one, "first")
	w.read(two, "first")
	require.Empty(t, onDisk(t, w.root, "early"))
	require.Empty(t, onDisk(t, w.root, "records/arriving"))
	three := mount(t, w.store, "three", w.id)
	w.read(three, "last")
	w.read(three, "top")
	for _, id := range []string{"one", "two", "three"} {
		require.NoError(t, w.store.Discard(t.Context(), id))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Empty(t, w.trouble)
}

// TestNextProcessGoesOn ends the store while an image arrives, as an agent's death does.
func TestNextProcessGoesOn(t *testing.T) {
	w := newEarlyWorld(t, false)
	w.pull()
	root := mount(t, w.store, "one", w.id)
	w.read(root, "first")
	w.stop()
	read := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(filepath.Join(root.Path, "last")) // nobody is there to fetch it
		read <- b
	}()
	w.open()
	require.True(t, bytes.Equal(w.contents["last"], <-read))
	require.False(t, w.isHere())
	close(w.wire.gate)
	w.await("the image", w.isHere)
	w.read(root, "middle")
	require.NoError(t, w.store.Discard(t.Context(), "one"))
}

// TestLiarsContainersStop wants whoever ran on wrong bytes to be stopped, and nothing of
// them to stay.
func TestLiarsContainersStop(t *testing.T) {
	w := newEarlyWorld(t, true)
	w.pull()
	root := mount(t, w.store, "one", w.id)
	w.read(root, "last") // as the liar has it
	close(w.wire.gate)
	w.await("word that the container must stop", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Equal(w.trouble, []string{"one"})
	})
	w.await("the liar's name", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Contains(w.blamed, "holder")
	})
	require.False(t, w.isHere())
	require.NoError(t, w.store.Discard(t.Context(), "one"))
	w.await("its end as one that arrives", func() bool {
		return len(onDisk(t, w.root, "early")) == 0 && len(onDisk(t, w.root, "records/arriving")) == 0
	})
	require.Empty(t, onDisk(t, w.root, "ingest"))
	_, err := w.store.Stat(t.Context(), layerOf(w))
	require.Error(t, err)
}

// layerOf is the digest of the layer.
func layerOf(w *earlyWorld) digest.Digest {
	var entries []entry
	w.contents["last"][2<<20] ^= 1
	for _, name := range []string{"first", "middle", "last"} {
		entries = append(entries, file(name, string(w.contents[name])))
	}
	return digest.FromBytes(tarOf(w.t, entries...))
}
