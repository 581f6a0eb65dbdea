package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/integration/lab"
)

// What an ordinary base image with a language's packages is like.
const (
	treeBytes   = 500 << 20
	treeFiles   = 20_000
	treeDirs    = 2_000
	medianFile  = 4 << 10
	largestFile = 32 << 20
)

// tree writes a layer: many small files and few large ones (a log-normal mix), two
// thirds of them text, with some symbolic and hard links. It is the same every time.
func tree(w io.Writer) error {
	rnd := rand.New(rand.NewPCG(7, 11))
	words := make([]string, 4096)
	for i := range words {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = byte('a' + rnd.IntN(26))
		}
		words[i] = string(b)
	}
	tw := tar.NewWriter(w)
	at := time.Unix(1_700_000_000, 0)
	put := func(h tar.Header, body []byte) error {
		h.ModTime, h.Size = at, int64(len(body))
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		_, err := tw.Write(body)
		return err
	}
	// The spread that makes the mean what it must be.
	sigma := math.Sqrt(2 * math.Log(float64(treeBytes)/treeFiles/medianFile))
	dir, body, total := "", []byte(nil), 0
	for i := range treeFiles {
		if i%(treeFiles/treeDirs) == 0 {
			dir = fmt.Sprintf("usr/lib/part%d/module%d/", i%97, i)
			if err := put(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("%sfile-%d.py", dir, i)
		size := min(int(medianFile*math.Exp(sigma*rnd.NormFloat64())), largestFile, treeBytes-total)
		total += size
		body = fill(body[:0], size, rnd, words, i%3 > 0)
		if err := put(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body); err != nil {
			return err
		}
		var err error
		switch i % 40 {
		case 0:
			err = put(tar.Header{Typeflag: tar.TypeSymlink, Name: name + ".link", Linkname: filepath.Base(name), Mode: 0o777}, nil)
		case 1:
			err = put(tar.Header{Typeflag: tar.TypeLink, Name: name + ".same", Linkname: name}, nil)
		}
		if err != nil {
			return err
		}
	}
	// Random draws fall short or exceed: one file of the kind that makes up for it.
	if err := put(tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/rest.so", Mode: 0o755}, fill(nil, treeBytes-total, rnd, words, false)); err != nil {
		return err
	}
	return tw.Close()
}

// fill appends size bytes: words, or the half-random stuff that programs are made of.
func fill(b []byte, size int, rnd *rand.Rand, words []string, text bool) []byte {
	for len(b) < size {
		if text {
			b = append(append(b, words[rnd.IntN(rnd.IntN(len(words))+1)]...), ' ')
			continue
		}
		for range 4 {
			b = append(b, byte(rnd.Uint32()))
		}
		b = append(b, 0, 0x48, 0x89, byte(rnd.IntN(8)))
	}
	return b[:size]
}

// packing is a way to compress a layer.
type packing struct {
	name string
	wrap func(io.Writer) (io.WriteCloser, error)
}

var packings = []packing{
	{"uncompressed", func(w io.Writer) (io.WriteCloser, error) { return noClose{w}, nil }},
	{"gzip", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 6) }},
	{"zstd", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }},
}

type noClose struct{ io.Writer }

func (noClose) Close() error { return nil }

// tally counts and hashes what is written.
type tally struct {
	io.Writer
	hash hash.Hash
}

func (t *tally) Write(b []byte) (int, error) {
	t.hash.Write(b)
	return t.Writer.Write(b)
}

// layer is one to be put into an archive: a file and its diff ID.
type layer struct {
	file string
	diff digest.Digest
}

// treeArchive writes a docker-save archive of one layer.
func (b *bench) treeArchive(path string, p packing) error {
	l, err := writeLayer(path+".layer", p, tree)
	if err != nil {
		return err
	}
	defer os.Remove(l.file)
	return saveArchive(path, "tree:1", nil, l)
}

// saveArchive writes a docker-save archive of layers, the lowest first.
func saveArchive(path, ref string, command []string, layers ...layer) error {
	var diffs []digest.Digest
	var names []string
	var entries []entry
	for i, l := range layers {
		f, err := os.Open(l.file)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("layer%d/layer.tar", i)
		diffs, names, entries = append(diffs, l.diff), append(names, name), append(entries, entry{name, fi.Size(), f})
	}
	cfg, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Cmd: command},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": names}})
	if err != nil {
		return err
	}
	return writeTar(path, append(entries,
		entry{"config.json", int64(len(cfg)), bytes.NewReader(cfg)},
		entry{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)}))
}

// writeLayer writes what content writes, packed.
func writeLayer(path string, p packing, content func(io.Writer) error) (l layer, err error) {
	f, err := os.Create(path)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	z, err := p.wrap(buffered)
	if err != nil {
		return l, err
	}
	t := &tally{Writer: z, hash: digest.SHA256.Hash()}
	if err := content(t); err != nil {
		return l, err
	}
	return layer{path, digest.NewDigest(digest.SHA256, t.hash)}, errors.Join(z.Close(), buffered.Flush())
}

// loaded is what loading and removing took with one engine, in seconds a run.
type loaded struct{ load, remove, gone []float64 }

// load measures docker load and docker rmi of an image of one big layer. Engines take
// turns, and what the one left to be written is written before the other begins.
func (b *bench) load(ctx context.Context) (err error) {
	l, err := lab.Up(ctx, "/run/shoal-bench-load", lab.Options{Nodes: 1, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	peer, err := b.startDockerd(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	trash := filepath.Join(l.Data(1), "images", "trash")
	var gzipped []float64 // what loading gzip took the peer, which knows no zstd
	for _, p := range packings {
		archive := filepath.Join(b.tmp, "tree.tar")
		if err := b.treeArchive(archive, p); err != nil {
			return fmt.Errorf("make an image, %s: %w", p.name, err)
		}
		var ours, theirs loaded
		for range min(b.runs, 3) {
			if err := b.loadOnce(ctx, l.Socket(1), archive, &ours, trash); err != nil {
				return err
			}
			if p.name == "zstd" {
				continue
			}
			if err := b.loadOnce(ctx, peer.socket, archive, &theirs, ""); err != nil {
				return err
			}
		}
		note := fmt.Sprintf("%d MB, %d files; median of %d", treeBytes>>20, treeFiles, len(ours.load))
		switch p.name {
		case "zstd":
			b.add(figure{"docker load, zstd", "s", median(ours.load), median(gzipped), note + "; the peer's gzip"})
			continue
		case "gzip":
			gzipped = theirs.load
		}
		b.add(figure{"docker load, " + p.name, "s", median(ours.load), median(theirs.load), note})
		b.add(figure{"docker rmi of it", "s", median(ours.remove), median(theirs.remove), ""})
		b.add(figure{"docker rmi of it, until the disk has it back", "s", median(ours.gone), median(theirs.remove), ""})
	}
	return nil
}

// loadOnce loads and removes the image. trash is a directory that empties after the
// removal was answered, if there is one.
func (b *bench) loadOnce(ctx context.Context, socket, archive string, out *loaded, trash string) error {
	syscall.Sync()
	begin := time.Now()
	if err := b.must(ctx, socket, "load", "-q", "-i", archive); err != nil {
		return err
	}
	out.load = append(out.load, time.Since(begin).Seconds())
	syscall.Sync()
	begin = time.Now()
	if err := b.must(ctx, socket, "rmi", "tree:1"); err != nil {
		return err
	}
	out.remove = append(out.remove, time.Since(begin).Seconds())
	if trash != "" {
		if err := emptied(ctx, trash); err != nil {
			return err
		}
	}
	out.gone = append(out.gone, time.Since(begin).Seconds())
	return nil
}

// emptied waits until nothing is in a directory.
func emptied(ctx context.Context, dir string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		left, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
