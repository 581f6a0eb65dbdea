package image_test

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// logged is a Config edit that keeps the log.
func logged(b *bytes.Buffer) func(*image.Config) {
	return func(c *image.Config) { c.Logger = slog.New(slog.NewTextHandler(b, nil)) }
}

func TestStoreIsTheSameAfterReopening(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	load(t, s, archiveOf(t, small("a:1", "base", "a"), small("b:1", "base", "b"), small("", "nameless")))
	require.NoError(t, s.Tag(context.Background(), "a:1", "quay.io/x/a:2"))
	before, err := s.List(context.Background())
	require.NoError(t, err)
	require.NoError(t, s.Close())
	after, err := reopen(t, root).List(context.Background())
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestWhatWasHalfMadeIsPutAway(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	require.NoError(t, reopen(t, root).Close())
	for _, p := range []string{"staging/layer-1/fs/etc/x", "staging/container-2/upper/y", "ingest/tmp-3", "records/names/.tmp-4", "trash/5/t/z"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(p)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(root, p), []byte("x"), 0o600))
	}
	s := reopen(t, root)
	for _, d := range []string{"staging", "ingest", "records"} {
		require.Empty(t, onDisk(t, root, d))
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(filepath.Join(root, "trash"))
		return err == nil && len(left) == 0
	}, time.Minute, time.Millisecond)
	stop()
	require.NoError(t, <-ran)
	load(t, s, archiveOf(t, small("app:1", "x")))
}

func TestDamagedRecordsAreSetAside(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	load(t, s, archiveOf(t, small("a:1", "a"), small("b:1", "b")))
	require.NoError(t, s.Tag(context.Background(), "b:1", "b:2"))
	a := get(t, s, "a:1").ID
	require.NoError(t, s.Close())
	record := filepath.Join(root, "records/images", a.Encoded())
	b, err := os.ReadFile(record)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(record, b[:len(b)/2], 0o600))
	name := filepath.Join(root, "records/names", digest.FromString("docker.io/library/b:2").Encoded())
	b, err = os.ReadFile(name)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(name, bytes.Replace(b, []byte("b:2"), []byte("b:3"), 1), 0o600))

	var log bytes.Buffer
	s = reopen(t, root, logged(&log))
	require.Equal(t, []string{"b:1"}, get(t, s, "b:1").Tags)
	_, err = s.Get(context.Background(), "a:1")
	require.True(t, errdefs.IsNotFound(err))
	for _, p := range []string{record, name} {
		require.Contains(t, log.String(), p+".corrupt")
		require.FileExists(t, p+".corrupt")
	}
	require.Contains(t, log.String(), "checksum")
	load(t, s, archiveOf(t, small("a:1", "a")))
	require.Equal(t, a, get(t, s, "a:1").ID)
}

func TestImageWhoseBlobChangedOnDiskIsSetAside(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	load(t, s, archiveOf(t, small("a:1", "a")))
	id := get(t, s, "a:1").ID
	require.NoError(t, s.Close())
	path := filepath.Join(root, "blobs/sha256", id.Encoded())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	var log bytes.Buffer
	s = reopen(t, root, logged(&log))
	require.Contains(t, log.String(), "changed on disk")
	_, err = s.Get(context.Background(), "a:1")
	require.True(t, errdefs.IsNotFound(err))
}

// A layer that is gone, or can't be trusted since the machine went down, is made of
// its blob again.
func TestLayersAreMadeAgain(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, layer string){
		"gone": func(t *testing.T, layer string) { require.NoError(t, os.RemoveAll(layer)) },
		"record torn": func(t *testing.T, layer string) {
			require.NoError(t, os.Truncate(filepath.Join(layer, "layer"), 20))
		},
		"power cut before it was synced": func(t *testing.T, layer string) {
			p := filepath.Join(layer, "layer")
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
			require.NoError(t, err)
			// The record must verify, so it is the boot that differs and its sum with it.
			require.NoError(t, os.WriteFile(p, resum(t, bytes.Replace(b, bytes.TrimSpace(boot), []byte("another boot"), 1)), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(layer, "fs/a"), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			needsRoot(t)
			root := t.TempDir()
			s := reopen(t, root)
			load(t, s, archiveOf(t, small("app:1", "hello")))
			img := get(t, s, "app:1")
			require.NoError(t, s.Close())
			damage(t, filepath.Join(root, "layers", img.DiffIDs[0].Encoded()))
			s = reopen(t, root)
			b, err := os.ReadFile(filepath.Join(mount(t, s, "c", img.ID).Path, "a"))
			require.NoError(t, err)
			require.Equal(t, "hello", string(b))
		})
	}
}

// resum gives a record that was edited its checksum again.
func resum(t *testing.T, b []byte) []byte {
	t.Helper()
	_, rest, ok := strings.Cut(string(b), `"body":`)
	require.True(t, ok)
	body := strings.TrimSuffix(rest, "}")
	return []byte(`{"version":1,"sum":"` + digest.FromString(body).String() + `","body":` + body + `}`)
}

func TestSyncedLayersSurviveAPowerCut(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	load(t, s, archiveOf(t, small("app:1", "hello")))
	layer := filepath.Join(root, "layers", get(t, s, "app:1").DiffIDs[0].Encoded())
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	require.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(layer, "synced")); return err == nil }, time.Minute, time.Millisecond)
	stop()
	require.NoError(t, <-ran)
	require.NoError(t, s.Close())
	before, err := os.Stat(layer)
	require.NoError(t, err)
	p := filepath.Join(layer, "layer")
	b, err := os.ReadFile(p)
	require.NoError(t, err)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p, resum(t, bytes.Replace(b, bytes.TrimSpace(boot), []byte("another boot"), 1)), 0o600))
	reopen(t, root)
	after, err := os.Stat(layer)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
}

func TestSweepTakesOnlyWhatNobodyNeeds(t *testing.T) {
	needsRoot(t)
	ctx := context.Background()
	root := t.TempDir()
	s := reopen(t, root, func(c *image.Config) { c.Keep = time.Hour })
	load(t, s, archiveOf(t, small("app:1", "kept")))
	put := func(body string) digest.Digest {
		w, err := s.Ingest(ctx, descriptor([]byte(body)))
		require.NoError(t, err)
		_, err = w.Write([]byte(body))
		require.NoError(t, err)
		require.NoError(t, w.Commit(ctx))
		return digest.FromString(body)
	}
	old, fresh := put("old"), put("fresh")
	w, err := s.Ingest(ctx, descriptor([]byte("arriving")))
	require.NoError(t, err)
	_, err = w.Write([]byte("arr"))
	require.NoError(t, err)
	left, err := s.Ingest(ctx, descriptor([]byte("left")))
	require.NoError(t, err)
	_, err = left.Write([]byte("le"))
	require.NoError(t, err)
	require.NoError(t, left.Close())
	// All but one is older than an hour.
	require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !strings.HasSuffix(p, fresh.Encoded()) {
			err = os.Chtimes(p, time.Time{}, time.Now().Add(-2*time.Hour))
		}
		return err
	}))
	rctx, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- s.Run(rctx) }()
	require.Eventually(t, func() bool { _, err := s.Stat(ctx, old); return errdefs.IsNotFound(err) }, time.Minute, time.Millisecond)
	stop()
	require.NoError(t, <-ran)
	_, err = s.Stat(ctx, fresh)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(root, "ingest", digest.FromString("left").Encoded()))
	_, err = w.Write([]byte("iving"))
	require.NoError(t, err)
	require.NoError(t, w.Commit(ctx))
	mount(t, s, "c", get(t, s, "app:1").ID)
	_, err = text(s.Load(ctx, bytes.NewReader(save(t, s, "app:1")), api.LoadOptions{}))
	require.NoError(t, err)
}

// openIn opens a store as a property would, which has no testing.TB.
func openIn(t require.TestingT, root string) *image.Store {
	s, err := image.Open(image.Config{Root: root})
	require.NoError(t, err)
	return s
}
