// Package storetest is what every transfer.Store must pass, with two stores that do.
//
// Memory and Dir are for tests; Run is for stores that are meant to last.
package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer"
)

// Run tests stores that open makes. Each call of open begins with an empty store; calling
// reopen gives the same store as after a restart, or nil if it doesn't outlive one.
func Run(t *testing.T, open func(t *testing.T) (store transfer.Store, reopen func() transfer.Store)) {
	tests := map[string]func(*testing.T, transfer.Store){
		"unknown":          unknown,
		"in order":         inOrder,
		"out of order":     outOfOrder,
		"empty blob":       emptyBlob,
		"already held":     alreadyHeld,
		"invisible before": invisible,
		"read back":        readBack,
		"wrong digest":     wrongDigest,
		"wrong size":       wrongSize,
		"resume":           resume,
		"resume with hole": resumeWithHole,
		"abort":            abort,
		"after commit":     afterCommit,
		"one writer":       oneWriter,
		"concurrent":       concurrent,
		"cancelled":        cancelled,
		"bad descriptor":   badDescriptor,
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			s, _ := open(t)
			f(t, s)
		})
	}
	t.Run("survives restart", func(t *testing.T) {
		s, reopen := open(t)
		if again := reopen(); again == nil {
			t.Skip("this store doesn't outlive its process")
		}
		survives(t, s, reopen)
	})
}

// Blob makes random content and its descriptor.
func Blob(t testing.TB, size int) ([]byte, ocispec.Descriptor) {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	return b, Describe(b)
}

// Describe is the descriptor of content.
func Describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// Put commits content to a store.
func Put(t testing.TB, s transfer.Store, b []byte) ocispec.Descriptor {
	t.Helper()
	d := Describe(b)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.NoError(t, w.Close())
	return d
}

// Get reads all of a blob, through both ways of reading.
func Get(t testing.TB, s transfer.Store, d digest.Digest) []byte {
	t.Helper()
	b, err := s.Open(t.Context(), d)
	require.NoError(t, err)
	defer b.Close()
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, int64(len(got)), b.Size())
	at := make([]byte, len(got))
	n, err := b.ReadAt(at, 0)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Equal(t, len(got), n)
	require.Equal(t, digest.FromBytes(got), digest.FromBytes(at))
	return got
}

func absent(t *testing.T, s transfer.Store, d digest.Digest) {
	t.Helper()
	_, err := s.Stat(t.Context(), d)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = s.Open(t.Context(), d)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func unknown(t *testing.T, s transfer.Store) {
	_, d := Blob(t, 10)
	absent(t, s, d.Digest)
}

func inOrder(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 300_000)
	Put(t, s, b)
	got, err := s.Stat(t.Context(), d.Digest)
	require.NoError(t, err)
	require.Equal(t, d.Digest, got.Digest)
	require.Equal(t, d.Size, got.Size)
	require.Equal(t, b, Get(t, s, d.Digest))
	r, err := s.Open(t.Context(), d.Digest)
	require.NoError(t, err)
	defer r.Close()
	_, err = r.Seek(-5, io.SeekEnd)
	require.NoError(t, err)
	tail, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, b[len(b)-5:], tail)
}

func outOfOrder(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 300_000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	var wg sync.WaitGroup
	errs := make(chan error, 3)
	for _, at := range []int{200_000, 0, 100_000} {
		wg.Go(func() {
			_, err := w.WriteAt(b[at:at+100_000], int64(at))
			errs <- err
		})
	}
	wg.Wait()
	for range 3 {
		require.NoError(t, <-errs)
	}
	require.NoError(t, w.Commit(t.Context()))
	require.Equal(t, b, Get(t, s, d.Digest))
}

func emptyBlob(t *testing.T, s transfer.Store) {
	Put(t, s, nil)
	require.Empty(t, Get(t, s, digest.FromBytes(nil)))
}

func alreadyHeld(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100)
	Put(t, s, b)
	_, err := s.Ingest(t.Context(), d)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
}

func invisible(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 1000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	absent(t, s, d.Digest)
	require.NoError(t, w.Abort())
}

func readBack(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100_000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.WriteAt(b[50_000:60_000], 50_000)
	require.NoError(t, err)
	got := make([]byte, 10_000)
	n, err := w.ReadAt(got, 50_000)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Equal(t, b[50_000:60_000], got[:n])
	require.NoError(t, w.Abort())
}

// wrongDigest also wants the bytes dropped: a second attempt begins at nothing.
func wrongDigest(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100_000)
	bad := append([]byte(nil), b...)
	bad[70_000] ^= 1
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(bad)
	require.NoError(t, err)
	require.ErrorIs(t, w.Commit(t.Context()), errdefs.ErrDataLoss)
	require.NoError(t, w.Close())
	absent(t, s, d.Digest)
	w, err = s.Ingest(t.Context(), d)
	require.NoError(t, err)
	require.Zero(t, w.Offset())
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.Equal(t, b, Get(t, s, d.Digest))
}

func wrongSize(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100_000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b[:99_999])
	require.NoError(t, err)
	require.ErrorIs(t, w.Commit(t.Context()), errdefs.ErrDataLoss)
	require.NoError(t, w.Close())
	absent(t, s, d.Digest)

	w, err = s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(append(b[:len(b):len(b)], 0))
	if err == nil {
		err = w.Commit(t.Context())
	}
	require.Error(t, err, "more bytes than announced")
	require.NoError(t, w.Close())
	absent(t, s, d.Digest)
}

func resume(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100_000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	require.Zero(t, w.Offset())
	_, err = w.Write(b[:40_000])
	require.NoError(t, err)
	require.NoError(t, w.Close())
	absent(t, s, d.Digest)

	w, err = s.Ingest(t.Context(), d)
	require.NoError(t, err)
	require.Equal(t, int64(40_000), w.Offset())
	got := make([]byte, 40_000)
	_, err = w.ReadAt(got, 0)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Equal(t, b[:40_000], got)
	_, err = w.Write(b[40_000:]) // continues at Offset
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.Equal(t, b, Get(t, s, d.Digest))
}

// resumeWithHole: Offset counts leading bytes, not the furthest one written.
func resumeWithHole(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 100_000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.WriteAt(b[60_000:80_000], 60_000)
	require.NoError(t, err)
	_, err = w.WriteAt(b[:30_000], 0)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	w, err = s.Ingest(t.Context(), d)
	require.NoError(t, err)
	require.LessOrEqual(t, w.Offset(), int64(30_000))
	_, err = w.WriteAt(b[w.Offset():], w.Offset())
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.Equal(t, b, Get(t, s, d.Digest))
}

func abort(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 1000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Abort())
	w, err = s.Ingest(t.Context(), d)
	require.NoError(t, err)
	require.Zero(t, w.Offset())
	require.NoError(t, w.Close())
}

func afterCommit(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 1000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.NoError(t, w.Abort())
	require.NoError(t, w.Close())
	require.Equal(t, b, Get(t, s, d.Digest))
}

// oneWriter allows a store to let the second wait or to refuse it.
func oneWriter(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 1000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	second := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		w, err := s.Ingest(ctx, d)
		if err == nil {
			err = errors.Join(errors.New("got a second writer"), w.Close())
		}
		second <- err
	}()
	select {
	case err = <-second: // refused
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		cancel()
	default: // may be waiting
		cancel()
		err = <-second
		require.True(t, errors.Is(err, context.Canceled) || errdefs.IsUnavailable(err), "%v", err)
	}
	require.NoError(t, w.Commit(t.Context()))
	_, err = s.Ingest(t.Context(), d)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
}

func concurrent(t *testing.T, s transfer.Store) {
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for i := range 16 {
		b := make([]byte, 10_000+i)
		rand.Read(b)
		wg.Go(func() { errs <- ingest(t.Context(), s, b) })
	}
	wg.Wait()
	for range 16 {
		require.NoError(t, <-errs)
	}
}

func ingest(ctx context.Context, s transfer.Store, b []byte) error {
	d := Describe(b)
	w, err := s.Ingest(ctx, d)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Commit(ctx); err != nil {
		return err
	}
	got, err := s.Stat(ctx, d.Digest)
	if err == nil && got.Size != d.Size {
		err = fmt.Errorf("size %d, want %d", got.Size, d.Size)
	}
	return err
}

func cancelled(t *testing.T, s transfer.Store) {
	b, d := Blob(t, 1000)
	w, err := s.Ingest(t.Context(), d)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Commit(ctx); err == nil {
		require.Equal(t, b, Get(t, s, d.Digest))
		return
	}
	absent(t, s, d.Digest)
	require.NoError(t, w.Close())
}

func badDescriptor(t *testing.T, s transfer.Store) {
	for _, d := range []ocispec.Descriptor{
		{Digest: "", Size: 1},
		{Digest: "sha256:../../../etc/passwd", Size: 1},
		{Digest: digest.FromBytes(nil), Size: -1},
	} {
		_, err := s.Ingest(t.Context(), d)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%+v", d)
	}
	_, err := s.Open(t.Context(), "sha256:../../../etc/passwd")
	require.Error(t, err)
}

func survives(t *testing.T, s transfer.Store, reopen func() transfer.Store) {
	held, d := Blob(t, 100_000)
	Put(t, s, held)
	part, p := Blob(t, 100_000)
	w, err := s.Ingest(t.Context(), p)
	require.NoError(t, err)
	_, err = w.Write(part[:40_000])
	require.NoError(t, err)
	require.NoError(t, w.Close())

	s = reopen()
	require.Equal(t, held, Get(t, s, d.Digest))
	w, err = s.Ingest(t.Context(), p)
	require.NoError(t, err)
	require.LessOrEqual(t, w.Offset(), int64(40_000))
	_, err = w.WriteAt(part[w.Offset():], w.Offset())
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	require.Equal(t, part, Get(t, s, p.Digest))
}
