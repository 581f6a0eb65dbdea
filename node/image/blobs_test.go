package image_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

func descriptor(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func readBlob(t require.TestingT, s transfer.Store, d digest.Digest) []byte {
	b, err := s.Open(context.Background(), d)
	require.NoError(t, err)
	defer b.Close()
	body, err := io.ReadAll(b)
	require.NoError(t, err)
	require.EqualValues(t, len(body), b.Size())
	return body
}

func TestIngest(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	body := []byte(strings.Repeat("0123456789", 1000))
	want := descriptor(body)
	_, err := s.Stat(ctx, want.Digest)
	require.True(t, errdefs.IsNotFound(err))
	_, err = s.Open(ctx, want.Digest)
	require.True(t, errdefs.IsNotFound(err))

	w, err := s.Ingest(ctx, want)
	require.NoError(t, err)
	require.Zero(t, w.Offset())
	_, err = w.Write(body[:5000])
	require.NoError(t, err)
	got := make([]byte, 10)
	_, err = w.ReadAt(got, 100)
	require.NoError(t, err, "what is there is read back before Commit")
	require.Equal(t, body[100:110], got)
	_, err = w.ReadAt(got, 4995)
	require.True(t, errdefs.IsUnavailable(err))
	_, err = w.WriteAt(body[5000:], 5001)
	require.True(t, errdefs.IsOutOfRange(err))
	_, err = s.Stat(ctx, want.Digest)
	require.True(t, errdefs.IsNotFound(err), "nothing is visible before Commit")
	require.NoError(t, w.Close())
	_, err = w.Write(body[5000:])
	require.True(t, errdefs.IsFailedPrecondition(err))

	w, err = s.Ingest(ctx, want)
	require.NoError(t, err)
	require.EqualValues(t, 5000, w.Offset())
	_, err = w.Write(body[5000:])
	require.NoError(t, err)
	n, err := w.ReadAt(make([]byte, 100), int64(len(body))-50)
	require.Equal(t, 50, n)
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, w.Commit(ctx))
	require.NoError(t, w.Commit(ctx))
	require.NoError(t, w.Close())
	require.NoError(t, w.Abort())
	require.Equal(t, body, readBlob(t, s, want.Digest))
	st, err := s.Stat(ctx, want.Digest)
	require.NoError(t, err)
	require.Equal(t, want.Size, st.Size)
	_, err = s.Ingest(ctx, want)
	require.True(t, errdefs.IsAlreadyExists(err))
	for _, d := range []digest.Digest{"", "sha256:x", "sha256:../../etc/passwd", digest.SHA512.FromString("x")} {
		_, err := s.Ingest(ctx, ocispec.Descriptor{Digest: d, Size: 1})
		require.True(t, errdefs.IsInvalidArgument(err), d)
	}
}

func TestWrongBytesAreDropped(t *testing.T) {
	ctx := context.Background()
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	want := descriptor([]byte("right"))
	for name, body := range map[string]string{"other": "wrong", "short": "righ"} {
		w, err := s.Ingest(ctx, want)
		require.NoError(t, err)
		_, err = w.Write([]byte(body))
		require.NoError(t, err)
		err = w.Commit(ctx)
		require.True(t, errdefs.IsDataLoss(err), name)
		require.ErrorContains(t, err, want.Digest.String())
		require.NoError(t, w.Close())
		require.Empty(t, onDisk(t, root, "ingest"))
	}
	// Bytes that were right when they were hashed, and overwritten.
	for _, body := range [][]byte{[]byte("right"), bytes.Repeat([]byte("right"), 50_000)} {
		w, err := s.Ingest(ctx, descriptor(body))
		require.NoError(t, err)
		_, err = w.Write(body)
		require.NoError(t, err)
		_, err = w.WriteAt([]byte("w"), 0)
		require.NoError(t, err)
		require.True(t, errdefs.IsDataLoss(w.Commit(ctx)))
	}
}

// Pieces may also come at once, and some of them from several who send the same.
func TestIngestAtOnce(t *testing.T) {
	s := reopen(t, t.TempDir())
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(1, 2))
	body := make([]byte, 8<<20+1000)
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	w, err := s.Ingest(ctx, descriptor(body))
	require.NoError(t, err)
	const piece = 128 << 10
	var at []int
	for off := 0; off < len(body); off += piece {
		at = append(at, off, off)
	}
	rnd.Shuffle(len(at)/2, func(i, j int) { at[i], at[j] = at[j], at[i] }) // the rest comes in order
	todo := make(chan int, len(at))
	for _, off := range at {
		todo <- off
	}
	close(todo)
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for off := range todo {
				if _, err := w.WriteAt(body[off:min(off+piece, len(body))], int64(off)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	require.NoError(t, w.Commit(ctx))
	require.True(t, bytes.Equal(body, readBlob(t, s, descriptor(body).Digest)))
}

func TestSecondWriterWaits(t *testing.T) {
	s := open(t)
	want := descriptor([]byte("x"))
	w, err := s.Ingest(context.Background(), want)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err = s.Ingest(ctx, want)
	require.True(t, errdefs.IsUnavailable(err))
	second := make(chan error, 1)
	go func() {
		_, err := s.Ingest(context.Background(), want)
		second <- err
	}()
	_, err = w.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, w.Commit(context.Background()))
	require.True(t, errdefs.IsAlreadyExists(<-second))
}

func TestBlobsOfUnknownSizeAreBounded(t *testing.T) {
	s := open(t)
	w, err := s.Ingest(context.Background(), ocispec.Descriptor{Digest: digest.FromString("x")})
	require.NoError(t, err)
	defer w.Abort() //nolint:errcheck // the test is over
	_, err = w.Write(make([]byte, 4<<20))
	require.NoError(t, err)
	_, err = w.Write([]byte{0})
	require.True(t, errdefs.IsOutOfRange(err))
}

// Bytes may come in any order, twice, in several sittings, and with the process
// killed between them.
func TestIngestInAnyOrder(t *testing.T) {
	root := tmpfs(t, "64m") // syncing is another test's
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		rnd := rand.New(rand.NewPCG(seed, 0))
		body := make([]byte, rapid.IntRange(1, 300_000).Draw(t, "size"))
		for i := range body {
			body[i] = byte(rnd.Uint32())
		}
		want := descriptor(body)
		for sitting := range 3 {
			s := openIn(t, root)
			w, err := s.Ingest(ctx, want)
			if errdefs.IsAlreadyExists(err) {
				break
			}
			require.NoError(t, err)
			got := make([]byte, w.Offset())
			if len(got) > 0 {
				_, err = w.ReadAt(got, 0)
				require.NoError(t, err)
			}
			require.True(t, bytes.Equal(body[:len(got)], got), "what was left is right")
			for range rapid.IntRange(0, 6).Draw(t, "pieces") {
				a := rapid.IntRange(0, len(body)-1).Draw(t, "from")
				b := rapid.IntRange(a+1, len(body)).Draw(t, "to")
				_, err := w.WriteAt(body[a:b], int64(a))
				require.NoError(t, err)
			}
			if sitting < 2 {
				if rapid.Bool().Draw(t, "closed, not killed") {
					require.NoError(t, w.Close())
				}
				continue
			}
			_, err = w.WriteAt(body, 0)
			require.NoError(t, err)
			require.NoError(t, w.Commit(ctx))
		}
		require.True(t, bytes.Equal(body, readBlob(t, openIn(t, root), want.Digest)))
	})
}

func TestFullDisk(t *testing.T) {
	root := tmpfs(t, "2m")
	s := reopen(t, filepath.Join(root, "store"))
	ctx := context.Background()
	before := onDisk(t, root, ".")
	body := bytes.Repeat([]byte("x"), 4<<20)

	w, err := s.Ingest(ctx, descriptor(body))
	require.NoError(t, err)
	_, err = w.Write(body)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, descriptor(body).Digest.String())
	require.NoError(t, w.Abort())
	require.Equal(t, before, onDisk(t, root, "."))

	// A load that fails while its blobs are written, and one while its layer is unpacked.
	for name, b := range map[string][]byte{
		"blobs":  archiveOf(t, small("app:1", string(body))),
		"layers": gz(t, layered(t, "app:1", gz(t, tarOf(t, file("x", string(body)))))),
	} {
		if name == "layers" {
			b = layout(t, "app:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil, tarOf(t, file("x", string(body))))
		}
		_, err = text(s.Load(ctx, bytes.NewReader(b), api.LoadOptions{}))
		require.ErrorIs(t, err, syscall.ENOSPC, name)
		require.Empty(t, onDisk(t, root, "store/ingest"))
		require.Empty(t, onDisk(t, root, "store/staging"))
		require.Empty(t, onDisk(t, root, "store/records"))
	}
	load(t, s, archiveOf(t, small("app:1", "there is room for this")))
}

func TestIngestKeptByAKilledProcessHasNoHoles(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	body := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	w, err := s.Ingest(context.Background(), descriptor(body))
	require.NoError(t, err)
	_, err = w.WriteAt(body[4_000_000:], 4_000_000)
	require.NoError(t, err)
	_, err = w.WriteAt(body[:2_000_000], 0)
	require.NoError(t, err)

	again := reopen(t, root) // the first one never got to close
	w, err = again.Ingest(context.Background(), descriptor(body))
	require.NoError(t, err)
	require.EqualValues(t, 2_000_000, w.Offset())
	_, err = w.Write(body[w.Offset():])
	require.NoError(t, err)
	require.NoError(t, w.Commit(context.Background()))
	require.True(t, bytes.Equal(body, readBlob(t, again, descriptor(body).Digest)))
	require.Empty(t, onDisk(t, root, "ingest"))
}
