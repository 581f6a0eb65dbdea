package transfer

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// inMemory is a Writer over bytes, and a Store that has nothing.
type inMemory struct {
	Store
	b []byte
}

func (m *inMemory) Write([]byte) (int, error)               { panic("not in order") }
func (m *inMemory) WriteAt(b []byte, at int64) (int, error) { return copy(m.b[at:], b), nil }
func (m *inMemory) ReadAt(b []byte, at int64) (int, error)  { return copy(b, m.b[at:]), nil }
func (m *inMemory) Offset() int64                           { return 0 }
func (m *inMemory) Commit(context.Context) error            { return nil }
func (m *inMemory) Close() error                            { return nil }
func (m *inMemory) Abort() error                            { return nil }

// ranged gives a blob from where a writer begins, and notes what it gave.
type ranged struct {
	content []byte
	gave    [][2]int64
}

func (r *ranged) Fetch(ctx context.Context, dst Store, want ocispec.Descriptor, _ func(int64)) error {
	w, err := dst.Ingest(ctx, want)
	if err != nil {
		return err
	}
	defer w.Close()
	at := w.Offset()
	r.gave = append(r.gave, [2]int64{at, at})
	n, err := io.Copy(io.NewOffsetWriter(w, at), bytes.NewReader(r.content[at:]))
	r.gave[len(r.gave)-1][1] += n
	if err != nil {
		return err
	}
	return w.Commit(ctx)
}

// TestAskForGaps: a source is asked for what is missing only, and not for every small
// gap by itself.
func TestAskForGaps(t *testing.T) {
	const pieces, unit = 4, 4 * minPiece // of pieces, and bytes, in what is counted here
	for name, c := range map[string]struct {
		have [][2]int // units, end exclusive
		gave [][2]int
	}{
		"nothing":             {nil, [][2]int{{0, 100}}},
		"the beginning":       {[][2]int{{0, 40}}, [][2]int{{40, 100}}},
		"the end":             {[][2]int{{60, 100}}, [][2]int{{0, 60}}},
		"much in the middle":  {[][2]int{{10, 70}}, [][2]int{{0, 10}, {70, 100}}},
		"little in between":   {[][2]int{{10, 12}, {20, 40}}, [][2]int{{0, 100}}},
		"beginning and more":  {[][2]int{{0, 10}, {11, 70}, {80, 100}}, [][2]int{{10, 11}, {70, 80}}},
		"all but a last part": {[][2]int{{0, 99}}, [][2]int{{99, 100}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := bytes.Repeat([]byte("some content"), 100*unit/12+1)[:100*unit-5]
				w := &inMemory{b: make([]byte, len(content))}
				f := &fetch{p: NewPeers(PeersConfig{}), digest: digest.FromBytes(content), size: int64(len(content)), pieces: 100 * pieces}
				g, _ := f.open(w)
				for _, run := range c.have {
					for i := run[0]; i < run[1]; i++ {
						copy(w.b[i*unit:min((i+1)*unit, len(w.b))], content[i*unit:])
						for piece := range pieces {
							g.add(i*pieces + piece)
						}
					}
				}
				source := &ranged{content: content}
				s := newSwarm(f, g, w, "", nil, f.newNotes(0))
				k := newTaker(&through{f.p, source}, f, s, w, ocispec.Descriptor{Digest: f.digest, Size: f.size})
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					for {
						select {
						case event := <-s.events:
							event()
						case <-ctx.Done():
							return
						}
					}
				}()
				require.NoError(t, k.ask(ctx))
				synctest.Wait()
				cancel()
				synctest.Wait()
				require.Equal(t, content, w.b)
				require.Zero(t, s.left)
				require.Equal(t, f.size, s.done)
				require.Len(t, source.gave, len(c.gave))
				for i, want := range c.gave {
					require.Equal(t, int64(want[0])*unit, source.gave[i][0])
					// io.Copy has some of what follows at hand when it is told to stop.
					require.InDelta(t, min(want[1]*unit, len(content)), source.gave[i][1], unit)
				}
			})
		})
	}
}

// TestAskSourceThatLies: a source that says it gave what isn't there isn't believed.
func TestAskSourceThatLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &inMemory{b: make([]byte, 1000)}
		f := &fetch{p: NewPeers(PeersConfig{}), digest: digest.FromString("x"), size: 1000, pieces: 1}
		g, _ := f.open(w)
		s := newSwarm(f, g, w, "", nil, f.newNotes(0))
		k := newTaker(&through{f.p, idle{}}, f, s, w, ocispec.Descriptor{Digest: f.digest, Size: f.size})
		require.ErrorContains(t, k.ask(t.Context()), "is not here")
	})
}

type idle struct{}

func (idle) Fetch(context.Context, Store, ocispec.Descriptor, func(int64)) error { return nil }
