package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
)

// passing passes over bytes, as files do that arrive, and counts what was read.
type passing struct {
	*bytes.Reader
	read int
	most int // bytes that one Read returns
}

func (p *passing) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b[:min(len(b), p.most)])
	p.read += n
	return n, err
}

func (p *passing) pass(n int64) {
	_, _ = p.Seek(n, io.SeekCurrent) // forward: it can't fail
}

// Whatever the tar and however it comes, contents lie where rawTar says, and what is
// not zeros behind them is found.
func TestRawTarKnowsWhereContentsLie(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		bodies := map[string][]byte{}
		var ends []int
		for i := range rapid.IntRange(0, 9).Draw(t, "files") {
			body := bytes.Repeat([]byte{byte('a' + i)}, rapid.SampledFrom([]int{0, 1, 511, 512, 513, 4095, 4096, 5000, 40_000}).Draw(t, "size"))
			h := tar.Header{Name: string(rune('a' + i)), Size: int64(len(body)), Mode: 0o644, Format: tar.FormatPAX}
			if rapid.Bool().Draw(t, "long header") {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": string(make([]byte, rapid.IntRange(1, 5000).Draw(t, "long")))}
				h.PAXRecords["SCHILY.xattr.user.x"] = "v" + h.PAXRecords["SCHILY.xattr.user.x"][1:]
			}
			if tw.WriteHeader(&h) != nil {
				h.PAXRecords = nil
				require.NoError(t, tw.WriteHeader(&h))
			}
			_, err := tw.Write(body)
			require.NoError(t, err)
			bodies[h.Name] = body
			if len(body)%tarBlock > 0 {
				ends = append(ends, b.Len())
			}
		}
		require.NoError(t, tw.Close())
		raw := b.Bytes()
		spoiled := len(ends) > 0 && rapid.Bool().Draw(t, "spoil")
		if spoiled {
			end := rapid.SampledFrom(ends).Draw(t, "at")
			raw[end+rapid.IntRange(0, (tarBlock-end%tarBlock)-1).Draw(t, "byte")] = 1
		}
		p := &passing{Reader: bytes.NewReader(raw), most: rapid.SampledFrom([]int{1, 700, 1 << 20}).Draw(t, "reads")}
		var src io.Reader = p
		if rapid.Bool().Draw(t, "must be read") {
			src = onlyReader{p}
		}
		in := newRawTar(src, int64(len(raw)))
		if rapid.Bool().Draw(t, "peek") {
			head, err := in.peek(magicSize)
			require.NoError(t, err)
			require.Equal(t, raw[:magicSize], head)
		}
		tr := tar.NewReader(in)
		for range bodies {
			h, err := tr.Next()
			require.NoError(t, err)
			body, ok := in.contents(h, tr).(inTar)
			require.True(t, ok)
			require.Zero(t, body.at%tarBlock)
			require.Equal(t, bodies[h.Name], raw[body.at:body.at+h.Size])
		}
		_, err := tr.Next()
		require.ErrorIs(t, err, io.EOF)
		_, err = io.Copy(io.Discard, in)
		require.NoError(t, err)
		require.EqualValues(t, len(raw), in.at)
		if err := in.end(); spoiled {
			require.ErrorIs(t, err, errPadding)
		} else {
			require.NoError(t, err)
		}
	})
}

func TestRawTarPassesOverContents(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "big", Size: 10 << 20}))
	_, err := tw.Write(make([]byte, 10<<20))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	p := &passing{Reader: bytes.NewReader(b.Bytes()), most: 1 << 20}
	in := newRawTar(p, 1<<30)
	tr := tar.NewReader(in)
	_, err = tr.Next()
	require.NoError(t, err)
	_, err = tr.Next()
	require.ErrorIs(t, err, io.EOF)
	require.Less(t, p.read, 16<<10)
	// As many bytes as are allowed, read or not.
	tr = tar.NewReader(newRawTar(&passing{Reader: bytes.NewReader(b.Bytes()), most: 1 << 20}, 1<<20))
	_, err = tr.Next()
	require.NoError(t, err)
	_, err = tr.Next()
	require.True(t, errors.Is(err, errTooLong), "%v", err)
}

// A tar that ends with the last file's contents lacks what the kernel would read.
func TestRawTarWithoutItsEnd(t *testing.T) {
	whole := writeTar(t, tar.Header{Name: "x"})
	for cut, want := range map[int]error{513: errPadding, 1023: errPadding, 1024: nil, len(whole): nil} {
		in := newRawTar(&passing{Reader: bytes.NewReader(whole[:cut]), most: 100}, 1<<20)
		tr := tar.NewReader(in)
		h, err := tr.Next()
		require.NoError(t, err)
		in.contents(h, tr)
		_, err = tr.Next()
		require.ErrorIs(t, err, io.EOF)
		require.ErrorIs(t, in.end(), want, "cut at %d", cut)
	}
}

// A store from a kernel that mounts tars is of use on one that does not.
func TestTarLayersAreMadeAgainWhereTheyCannotBeMounted(t *testing.T) {
	needsRoot(t)
	s, err := Open(Config{Root: t.TempDir()})
	require.NoError(t, err)
	if !s.tars {
		t.Skip("no tars are mounted here")
	}
	layer := writeTar(t, tar.Header{Name: "x"})
	st, err := s.Import(t.Context(), bytes.NewReader(layer), api.ImportOptions{Ref: "app:1"})
	require.NoError(t, err)
	for _, err := range api.All(st) {
		require.NoError(t, err)
	}
	img, err := s.Get(t.Context(), "app:1")
	require.NoError(t, err)
	chain := chains(img.DiffIDs)[0]
	require.Equal(t, digest.FromBytes(layer), s.layers[chain].Tar)
	s.tars = false
	clear(s.layers)
	require.NoError(t, s.loadLayers())
	require.Empty(t, s.layers)
	require.NoError(t, s.Prepare(t.Context(), "c", img.ID))
	require.Empty(t, s.layers[chain].Tar)
	root, err := s.Mount(t.Context(), "c")
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(root.Path, "x"))
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
	require.NoError(t, s.Discard(t.Context(), "c"))
	require.NoError(t, s.Close())
}

func TestSparseFilesAreToldApart(t *testing.T) {
	require.True(t, sparse(&tar.Header{Typeflag: tar.TypeGNUSparse}))
	require.True(t, sparse(&tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"GNU.sparse.major": "1"}}))
	require.False(t, sparse(&tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"mtime": "1"}}))
}
