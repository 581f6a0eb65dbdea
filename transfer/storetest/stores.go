package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// disk is where a store keeps its files.
type disk interface {
	// open opens a file for reading and writing.
	open(name string) (file, error)
	// create opens a file, made if need be, that will have the given size.
	create(name string, size int64) (file, error)
	rename(from, to string) error
	remove(name string) error
	list() ([]string, error)
}

type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	size() int64
}

// Store is a transfer.Store over a directory or memory.
type Store struct {
	disk disk

	mu      sync.Mutex
	writers map[digest.Digest]bool
	sparse  map[digest.Digest]int64 // leading bytes of unfinished blobs
}

// Memory is a store in memory, without I/O, for bubbles of testing/synctest.
func Memory() *Store { return newStore(&memoryDisk{files: map[string]*memoryFile{}}) }

// Dir is a store in a directory, which must exist.
func Dir(dir string) *Store { return newStore(dirDisk(dir)) }

func newStore(d disk) *Store {
	return &Store{disk: d, writers: map[digest.Digest]bool{}, sparse: map[digest.Digest]int64{}}
}

func held(d digest.Digest) string { return d.Encoded() }
func part(d digest.Digest) string { return d.Encoded() + ".part" }

// Stat implements transfer.Store.
func (s *Store) Stat(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	b, err := s.Open(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer b.Close()
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: b.Size()}, nil
}

// Blobs implements transfer.Lister.
func (s *Store) Blobs(ctx context.Context) iter.Seq2[ocispec.Descriptor, error] {
	return func(yield func(ocispec.Descriptor, error) bool) {
		names, err := s.disk.list()
		if err != nil {
			yield(ocispec.Descriptor{}, err)
			return
		}
		for _, name := range names {
			d, err := s.Stat(ctx, digest.NewDigestFromEncoded(digest.SHA256, name))
			if err == nil && !yield(d, nil) {
				return
			}
		}
	}
}

// Open implements transfer.Store.
func (s *Store) Open(_ context.Context, d digest.Digest) (transfer.Blob, error) {
	if err := d.Validate(); err != nil {
		return nil, api.InvalidArgument("digest %q: %w", d, err)
	}
	f, err := s.disk.open(held(d))
	if err != nil {
		return nil, api.NotFound("blob %s: not held: %w", d, err)
	}
	return &blob{io.NewSectionReader(f, 0, f.size()), f}, nil
}

// Ingest implements transfer.Store; a second writer is refused.
func (s *Store) Ingest(ctx context.Context, want ocispec.Descriptor) (transfer.Writer, error) {
	if err := want.Digest.Validate(); err != nil || want.Size < 0 {
		return nil, api.InvalidArgument("ingest %q of %d bytes: bad descriptor", want.Digest, want.Size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Stat(ctx, want.Digest); err == nil {
		return nil, api.Errorf(errdefs.ErrAlreadyExists, "blob %s: held already", want.Digest)
	}
	if s.writers[want.Digest] {
		return nil, api.Unavailable("blob %s: being written already", want.Digest)
	}
	f, err := s.disk.create(part(want.Digest), want.Size)
	if err != nil {
		return nil, err
	}
	w := &writer{s: s, f: f, want: want, offset: min(s.sparse[want.Digest], f.size())}
	w.next = w.offset
	w.spans = []span{{0, w.offset}}
	s.writers[want.Digest] = true
	return w, nil
}

type blob struct {
	*io.SectionReader
	f file
}

func (b *blob) Close() error { return b.f.Close() }

// span is a written range [from, to).
type span struct{ from, to int64 }

type writer struct {
	s      *Store
	f      file
	want   ocispec.Descriptor
	offset int64

	mu    sync.Mutex
	next  int64 // where Write continues
	spans []span
	done  bool
}

func (w *writer) Offset() int64 { return w.offset }

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	at := w.next
	w.mu.Unlock()
	n, err := w.WriteAt(p, at)
	w.mu.Lock()
	w.next = at + int64(n)
	w.mu.Unlock()
	return n, err
}

func (w *writer) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > w.want.Size {
		return 0, api.InvalidArgument("blob %s: write of %d bytes at %d, it has %d", w.want.Digest, len(p), at, w.want.Size)
	}
	n, err := w.f.WriteAt(p, at)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spans = append(w.spans, span{at, at + int64(n)})
	return n, err
}

func (w *writer) ReadAt(p []byte, at int64) (int, error) { return w.f.ReadAt(p, at) }

// leading is how many bytes from the start on were written.
func (w *writer) leading() int64 {
	slices.SortFunc(w.spans, func(a, b span) int { return int(min(max(a.from-b.from, -1), 1)) })
	var to int64
	for _, s := range w.spans {
		if s.from > to {
			break
		}
		to = max(to, s.to)
	}
	return to
}

func (w *writer) Commit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return api.Conflict("blob %s: writer is closed", w.want.Digest)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	v := w.want.Digest.Verifier()
	n, err := io.Copy(v, io.NewSectionReader(w.f, 0, w.want.Size))
	if err != nil {
		return err
	}
	if n != w.want.Size || w.leading() != w.want.Size || !v.Verified() {
		w.finish(0)
		err := w.s.disk.remove(part(w.want.Digest))
		return errors.Join(api.Errorf(errdefs.ErrDataLoss, "blob %s: %d bytes don't match", w.want.Digest, n), err)
	}
	if err := w.s.disk.rename(part(w.want.Digest), held(w.want.Digest)); err != nil {
		return err
	}
	w.finish(0)
	return nil
}

// finish lets go of the digest, remembering how much of it is there.
func (w *writer) finish(leading int64) {
	w.done = true
	w.f.Close()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.writers, w.want.Digest)
	if w.s.sparse[w.want.Digest] = leading; leading == 0 {
		delete(w.s.sparse, w.want.Digest)
	}
}

func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.finish(w.leading())
	}
	return nil
}

func (w *writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	w.finish(0)
	return w.s.disk.remove(part(w.want.Digest))
}

type dirDisk string

type dirFile struct{ *os.File }

func (f dirFile) size() int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func (d dirDisk) open(name string) (file, error) { return d.file(name, os.O_RDWR) }

func (d dirDisk) create(name string, _ int64) (file, error) {
	return d.file(name, os.O_RDWR|os.O_CREATE)
}

func (d dirDisk) file(name string, flags int) (file, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return dirFile{f}, nil
}

func (d dirDisk) rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

func (d dirDisk) list() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (d dirDisk) remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

type memoryDisk struct {
	mu    sync.Mutex
	files map[string]*memoryFile
}

type memoryFile struct {
	mu sync.RWMutex
	b  []byte
}

func (d *memoryDisk) open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[name]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("%s: %w", name, os.ErrNotExist)
}

func (d *memoryDisk) create(name string, size int64) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		d.files[name] = &memoryFile{b: make([]byte, 0, size)}
	}
	return d.files[name], nil
}

func (d *memoryDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[to] = d.files[from]
	delete(d.files, from)
	return nil
}

func (d *memoryDisk) list() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.files)), nil
}

func (d *memoryDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

func (f *memoryFile) ReadAt(p []byte, at int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return bytes.NewReader(f.b).ReadAt(p, at)
}

func (f *memoryFile) WriteAt(p []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if need := int(at) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[at:], p), nil
}

func (f *memoryFile) Close() error { return nil }

func (f *memoryFile) size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.b))
}
