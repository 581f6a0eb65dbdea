package plugins_test

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/plugin"
	"github.com/shoal-engine/shoal/transfer/storetest"
)

// host is one host's plugin and store.
type host struct {
	*plugin.Plugin
	transfer.Store
	dir string
}

func newHost(t *testing.T, name string, settings map[string]string) host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, who must own plugins")
	}
	text, err := os.ReadFile(plugin.Prefix + name)
	require.NoError(t, err)
	return newHostWith(t, name, text, settings)
}

func newHostWith(t *testing.T, name string, text []byte, settings map[string]string) host {
	t.Helper()
	// As installed: root's, in a directory of root's. The tree may be anybody's.
	bin, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, plugin.Prefix+name), text, 0o755))
	p, err := plugin.New(plugin.Config{Name: name, Bin: bin, Dir: dir, Settings: settings})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return host{p, storetest.Memory(), dir}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// carries has one host give blobs, and another one get them.
func carries(t *testing.T, a, b host) {
	for _, size := range []int{1, 1000, 3 << 20} {
		content, d := storetest.Blob(t, size)
		err := b.Fetch(t.Context(), b.Store, d, nil)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		storetest.Put(t, a.Store, content)
		require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest))
		require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest), "twice is no harm")
		require.NoError(t, b.Fetch(t.Context(), b.Store, d, nil), "%d bytes", size)
		require.Equal(t, content, storetest.Get(t, b.Store, d.Digest))
	}
	manifest := []byte(`{"schemaVersion":2}`)
	d := storetest.Put(t, a.Store, manifest)
	require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest))
	require.NoError(t, b.Fetch(t.Context(), b.Store, ocispec.Descriptor{Digest: d.Digest}, nil), "of unknown size")
	require.Equal(t, manifest, storetest.Get(t, b.Store, d.Digest))
	empty := storetest.Put(t, a.Store, nil)
	require.NoError(t, a.Offer(t.Context(), a.Store, empty.Digest))
	require.NoError(t, b.Fetch(t.Context(), b.Store, empty, nil))
}

func TestBup(t *testing.T) {
	if _, err := exec.LookPath("bup"); err != nil {
		t.Skip("no bup: `make setup` installs it")
	}
	repository := filepath.Join(t.TempDir(), "shared.bup")
	settings := map[string]string{"repository": repository}
	a, b := newHost(t, "bup", settings), newHost(t, "bup", settings)
	carries(t, a, b)

	// What blobs share is kept once.
	content, _ := storetest.Blob(t, 4<<20)
	before := size(t, repository)
	for range 3 {
		content = append([]byte(nil), content...)
		content[rand.IntN(len(content))] ^= 1
		d := storetest.Put(t, a.Store, content)
		require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest))
		require.NoError(t, b.Fetch(t.Context(), b.Store, d, nil))
	}
	require.Less(t, size(t, repository)-before, int64(6<<20), "three blobs of 4 MiB that differ in a byte")
}

func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	require.NoError(t, filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			n += fi.Size()
		}
		return err
	}))
	return n
}

func TestGit(t *testing.T) {
	t.Run("one directory", func(t *testing.T) {
		settings := map[string]string{"repository": filepath.Join(t.TempDir(), "shared.git")}
		carries(t, newHost(t, "git", settings), newHost(t, "git", settings))
	})
	t.Run("remote", func(t *testing.T) {
		remote := filepath.Join(t.TempDir(), "remote.git")
		run(t, "git", "init", "-q", "--bare", remote)
		settings := map[string]string{"remote": "file://" + remote}
		a, b := newHost(t, "git", settings), newHost(t, "git", settings)
		carries(t, a, b)
		run(t, "git", "--git-dir", filepath.Join(b.dir, "git"), "fsck", "--strict")
	})
	t.Run("remote is away", func(t *testing.T) {
		h := newHost(t, "git", map[string]string{"remote": "file:///nowhere.git"})
		content, d := storetest.Blob(t, 1000)
		require.ErrorIs(t, h.Fetch(t.Context(), h.Store, d, nil), errdefs.ErrNotFound)
		storetest.Put(t, h.Store, content)
		require.ErrorContains(t, h.Offer(t.Context(), h.Store, d.Digest), "git did not take it")
	})
}

// TestTheManualsPlugin runs the one that docs/transport-plugins.md shows.
func TestTheManualsPlugin(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, who must own plugins")
	}
	manual, err := os.ReadFile("../../docs/transport-plugins.md")
	require.NoError(t, err)
	_, text, _ := strings.Cut(string(manual), "```python\n")
	text, _, ok := strings.Cut(text, "```")
	require.True(t, ok)
	dir := t.TempDir()
	h := newHostWith(t, "directory", []byte(text), map[string]string{"directory": dir})
	content, d := storetest.Blob(t, 1<<20)
	require.ErrorIs(t, h.Fetch(t.Context(), h.Store, d, nil), errdefs.ErrNotFound)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sha256-"+d.Digest.Encoded()), content, 0o600))
	require.NoError(t, h.Fetch(t.Context(), h.Store, d, nil))
	require.Equal(t, content, storetest.Get(t, h.Store, d.Digest))
	require.NoError(t, h.Offer(t.Context(), h.Store, d.Digest), "it doesn't want any")
}

// TestBrokenOff ends plugins in the middle of a put: nothing half is there for others.
func TestBrokenOff(t *testing.T) {
	for _, name := range []string{"bup", "git"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("no " + name)
		}
		settings := map[string]string{"repository": filepath.Join(t.TempDir(), "shared")}
		a, b := newHost(t, name, settings), newHost(t, name, settings)
		content, d := storetest.Blob(t, 2<<20)
		storetest.Put(t, a.Store, content)
		ctx, cancel := context.WithCancel(t.Context())
		src := breaking{a.Store, cancel}
		require.ErrorIs(t, a.Offer(ctx, src, d.Digest), context.Canceled)
		err := b.Fetch(t.Context(), b.Store, d, nil)
		require.ErrorIs(t, err, errdefs.ErrNotFound, name)
		require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest))
		require.NoError(t, b.Fetch(t.Context(), b.Store, d, nil))
	}
}

// breaking is a store from which reading ends an offer in its middle.
type breaking struct {
	transfer.Store
	cancel context.CancelFunc
}

func (s breaking) Open(ctx context.Context, d digest.Digest) (transfer.Blob, error) {
	b, err := s.Store.Open(ctx, d)
	return &breakingBlob{b, s.cancel}, err
}

type breakingBlob struct {
	transfer.Blob
	cancel context.CancelFunc
}

func (b *breakingBlob) ReadAt(p []byte, off int64) (int, error) {
	if off > 1<<20 {
		b.cancel()
	}
	return b.Blob.ReadAt(p, off)
}

// TestThroughput says what the plugins cost; it fails only if they hang.
func TestThroughput(t *testing.T) {
	for _, name := range []string{"bup", "git"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("no " + name)
		}
		settings := map[string]string{"repository": filepath.Join(t.TempDir(), "shared")}
		a, b := newHost(t, name, settings), newHost(t, name, settings)
		content, d := storetest.Blob(t, 32<<20)
		storetest.Put(t, a.Store, content)
		begun := time.Now()
		require.NoError(t, a.Offer(t.Context(), a.Store, d.Digest))
		put := time.Since(begun)
		begun = time.Now()
		require.NoError(t, b.Fetch(t.Context(), b.Store, d, nil))
		t.Logf("%s: put %.0f MiB/s, get %.0f MiB/s", name, 32/put.Seconds(), 32/time.Since(begun).Seconds())
	}
}
