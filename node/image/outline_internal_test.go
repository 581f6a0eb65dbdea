package image

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/node/image/erofs"
)

// outlineTar is a tar with long names, links, empty and large files.
func outlineTar(t require.TestingT, files int) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	rnd := rand.NewChaCha8([32]byte{3})
	for i := range files {
		content := make([]byte, i*i*37%90000)
		_, _ = rnd.Read(content)
		name := "f" + digest.FromString(string(rune(i))).Encoded()
		if i%5 == 0 {
			name = "d/" + string(bytes.Repeat([]byte("long/"), 40)) + name
		}
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.n": name}}))
		_, err := w.Write(content)
		require.NoError(t, err)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name + "-link", Typeflag: tar.TypeLink, Linkname: name}))
	}
	require.NoError(t, w.Close())
	return append(buf.Bytes(), make([]byte, 7*512)...)
}

// TestOutlineIsEnough wants the tree made of an outline to be the one made of the tar.
func TestOutlineIsEnough(t *testing.T) {
	raw := outlineTar(t, 60)
	outline, err := outlineOf(t.Context(), bytes.NewReader(raw), int64(len(raw)))
	require.NoError(t, err)
	require.Less(t, len(outline), len(raw)/4)
	tree := func(r io.Reader) []byte {
		in := newRawTar(r, 1<<40)
		_, err := in.peek(magicSize)
		require.NoError(t, err)
		f := &memory{}
		p := &imagePlace{f: &reopened{}, w: erofs.New(f, erofs.Options{Tar: true}), room: (&room{}).share(true), hidden: map[erofs.ID]struct{}{}, veiled: map[erofs.ID]struct{}{}, skipped: map[string]struct{}{}}
		_, _, err = unpackTree(t.Context(), in, p, Limits{}.withDefaults(), true, func() digest.Digest { return "" })
		require.NoError(t, err)
		require.NoError(t, p.finish())
		return f.b
	}
	require.Equal(t, digest.FromBytes(tree(&wholeTar{bytes.NewReader(raw)})), digest.FromBytes(tree(&outlined{left: outline, size: int64(len(raw))})))
}

// wholeTar is a tar that is here, as what can be passed over.
type wholeTar struct{ *bytes.Reader }

func (w *wholeTar) pass(n int64) { _, _ = w.Seek(n, io.SeekCurrent) } // never before the beginning

var _ skipper = (*wholeTar)(nil)

// memory is a file that an image is written to.
type memory struct{ b []byte }

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if n := int(off) + len(b); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func (m *memory) Truncate(n int64) error {
	if int(n) <= len(m.b) {
		m.b = m.b[:n]
		return nil
	}
	m.b = append(m.b, make([]byte, int(n)-len(m.b))...)
	return nil
}

// FuzzOutline feeds what a peer may say: no reader may see bytes that it didn't say.
func FuzzOutline(f *testing.F) {
	raw := outlineTar(f, 4)
	outline, err := outlineOf(f.Context(), bytes.NewReader(raw), int64(len(raw)))
	require.NoError(f, err)
	f.Add(outline, int64(len(raw)))
	f.Add([]byte{0, 1, 'x'}, int64(3))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 {
			return
		}
		o := &outlined{left: b, size: size}
		in := newRawTar(o, 1<<30)
		tr := tar.NewReader(in)
		for range 1000 {
			if _, err := tr.Next(); err != nil {
				break
			}
		}
		require.GreaterOrEqual(t, o.at, int64(0))
	})
}
