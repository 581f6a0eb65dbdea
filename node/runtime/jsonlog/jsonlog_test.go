package jsonlog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var epoch = time.Date(2024, 1, 2, 3, 4, 5, 678, time.UTC)

func newLog(t testing.TB, maxSize int64, maxFiles int) (*Writer, string) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := NewWriter(path, maxSize, maxFiles)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w, path
}

func readAll(t testing.TB, path string, o Options) []string {
	o.Stdout, o.Stderr = true, true
	var lines []string
	for e, err := range Read(t.Context(), path, o) {
		require.NoError(t, err)
		lines = append(lines, string(e.Line))
	}
	return lines
}

func TestFileIsWhatDockerWrites(t *testing.T) {
	w, path := newLog(t, 0, 1)
	require.NoError(t, w.Append(Stdout, []byte("a \"b\"\t\\\x01\xff\r\npart"), epoch))
	require.NoError(t, w.Append(Stderr, []byte("e\n"), epoch))
	require.NoError(t, w.Append(Stdout, []byte("ial"), epoch))
	require.NoError(t, w.End(Stdout, epoch))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, `{"log":"a \"b\"\t\\\u0001`+"\ufffd"+`\r\n","stream":"stdout","time":"2024-01-02T03:04:05.000000678Z"}
{"log":"e\n","stream":"stderr","time":"2024-01-02T03:04:05.000000678Z"}
{"log":"partial","stream":"stdout","time":"2024-01-02T03:04:05.000000678Z"}
`, string(got))
}

func TestLongLinesAreSplit(t *testing.T) {
	w, path := newLog(t, 0, 1)
	require.NoError(t, w.Append(Stdout, []byte(strings.Repeat("x", maxLine+10)+"\n"), epoch))
	lines := readAll(t, path, Options{Tail: -1})
	require.Len(t, lines, 2)
	require.Equal(t, strings.Repeat("x", maxLine), lines[0])
	require.Equal(t, strings.Repeat("x", 10)+"\n", lines[1])
}

// What was written comes back, however it was cut when it was written.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		require.NoError(rt, err)
		path := filepath.Join(dir, "log")
		w, err := NewWriter(path, rapid.Int64Range(0, 400).Draw(rt, "size"), 1000)
		require.NoError(rt, err)
		var want strings.Builder
		for _, chunk := range rapid.SliceOf(rapid.StringMatching(`[a-z\n"\\é]*`)).Draw(rt, "chunks") {
			want.WriteString(chunk)
			require.NoError(rt, w.Append(Stdout, []byte(chunk), epoch))
		}
		require.NoError(rt, w.End(Stdout, epoch))
		require.NoError(rt, w.Close())
		lines := readAll(t, path, Options{Tail: -1})
		require.Equal(rt, want.String(), strings.Join(lines, ""))
		n := rapid.IntRange(0, len(lines)+1).Draw(rt, "tail")
		require.Equal(rt, strings.Join(lines[len(lines)-min(n, len(lines)):], ""), strings.Join(readAll(t, path, Options{Tail: n}), ""))
	})
}

func TestRotationKeepsTheNewestFiles(t *testing.T) {
	w, path := newLog(t, 300, 3)
	for i := range 50 {
		require.NoError(t, w.Append(Stdout, fmt.Appendf(nil, "line %d\n", i), epoch))
	}
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(300))
	}
	lines := readAll(t, path, Options{Tail: -1})
	require.Equal(t, "line 49\n", lines[len(lines)-1])
	require.Len(t, lines, 50-mustIndex(t, lines[0]))
	require.NoError(t, Remove(path))
	files, err = filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Empty(t, files)
}

func mustIndex(t testing.TB, line string) int {
	var i int
	_, err := fmt.Sscanf(line, "line %d\n", &i)
	require.NoError(t, err)
	return i
}

func TestOptionsChoose(t *testing.T) {
	w, path := newLog(t, 0, 1)
	for i := range 6 {
		stream := Stdout
		if i%2 == 1 {
			stream = Stderr
		}
		require.NoError(t, w.Append(stream, fmt.Appendf(nil, "%d\n", i), epoch.Add(time.Duration(i)*time.Second)))
	}
	all := Options{Tail: -1, Stdout: true, Stderr: true}
	for _, c := range []struct {
		name string
		o    func(*Options)
		want string
	}{
		{"all", func(*Options) {}, "012345"},
		{"stdout", func(o *Options) { o.Stderr = false }, "024"},
		{"stderr", func(o *Options) { o.Stdout = false }, "135"},
		{"since", func(o *Options) { o.Since = epoch.Add(2 * time.Second) }, "2345"},
		{"until", func(o *Options) { o.Until = epoch.Add(2 * time.Second) }, "012"},
		{"tail counts both streams", func(o *Options) { o.Tail = 3; o.Stdout = false }, "35"},
		{"tail of none", func(o *Options) { o.Tail = 0 }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := all
			c.o(&o)
			got := ""
			for e, err := range Read(t.Context(), path, o) {
				require.NoError(t, err)
				got += strings.TrimSuffix(string(e.Line), "\n")
			}
			require.Equal(t, c.want, got)
		})
	}
}

// A follower sees each line once, through rotations, and ends when told so.
func TestFollow(t *testing.T) {
	for _, files := range []int{1, 50} {
		t.Run(fmt.Sprint(files, " files"), func(t *testing.T) {
			w, path := newLog(t, 2000, files)
			require.NoError(t, w.Append(Stdout, []byte("line 0\n"), epoch))
			done, seen := make(chan struct{}), make(chan int)
			go func() {
				defer close(seen)
				for e, err := range Read(t.Context(), path, Options{Tail: -1, Stdout: true, Done: done}) {
					if err != nil {
						return
					}
					seen <- mustIndex(t, string(e.Line))
				}
			}()
			require.Equal(t, 0, <-seen)
			const n = 200
			for i := 1; i < n; i++ {
				require.NoError(t, w.Append(Stdout, fmt.Appendf(nil, "line %d\n", i), epoch))
				require.Equal(t, i, <-seen)
			}
			require.NoError(t, w.Append(Stdout, fmt.Appendf(nil, "line %d\n", n), epoch))
			close(done)
			require.Equal(t, n, <-seen)
			_, more := <-seen
			require.False(t, more)
		})
	}
}

// A follower that falls behind reads the files that were rotated meanwhile.
func TestFollowerCatchesUp(t *testing.T) {
	w, path := newLog(t, 300, 1000)
	require.NoError(t, w.Append(Stdout, []byte("line 0\n"), epoch))
	done := make(chan struct{})
	next := 0
	for e, err := range Read(t.Context(), path, Options{Tail: -1, Stdout: true, Done: done}) {
		require.NoError(t, err)
		require.Equal(t, next, mustIndex(t, string(e.Line)))
		if next == 0 {
			for i := 1; i <= 300; i++ {
				require.NoError(t, w.Append(Stdout, fmt.Appendf(nil, "line %d\n", i), epoch))
			}
			close(done)
		}
		next++
	}
	require.Equal(t, 301, next)
}

func TestFollowEnds(t *testing.T) {
	_, path := newLog(t, 0, 1)
	cause := fmt.Errorf("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for _, err := range Read(ctx, path, Options{Done: make(chan struct{})}) {
		require.ErrorIs(t, err, cause)
	}
	for range Read(t.Context(), path, Options{Done: make(chan struct{}), Until: time.Now().Add(10 * time.Millisecond)}) {
		t.Fatal("an empty log has no entries")
	}
}

func TestLogThatIsNotThere(t *testing.T) {
	require.Empty(t, readAll(t, filepath.Join(t.TempDir(), "none"), Options{Tail: 5}))
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2024-01-02T03:04:05Z"}` + "\n"))
	f.Add([]byte("\x00\x00\n{}\n[]\nnull\n{\"log\":1}\n"))
	f.Add(bytes.Repeat([]byte("x"), longestLine+10))
	f.Fuzz(func(t *testing.T, file []byte) {
		path := filepath.Join(t.TempDir(), "log")
		require.NoError(t, os.WriteFile(path, file, 0o600))
		whole := readAll(t, path, Options{Tail: -1})
		tail := readAll(t, path, Options{Tail: 2})
		require.LessOrEqual(t, len(tail), 2)
		require.Equal(t, strings.Join(whole[len(whole)-len(tail):], ""), strings.Join(tail, ""))
	})
}

func FuzzWriter(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\xff\xfe\x00\"\\"), 2)
	f.Fuzz(func(t *testing.T, output []byte, cut int) {
		w, path := newLog(t, 0, 1)
		cut = max(0, min(cut, len(output)))
		require.NoError(t, w.Append(Stdout, output[:cut], epoch))
		require.NoError(t, w.Append(Stdout, output[cut:], epoch))
		require.NoError(t, w.End(Stdout, epoch))
		var want string
		b, err := json.Marshal(string(output)) // replaces invalid bytes, too
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &want))
		// A rune that was cut at the 16 KiB limit is replaced on either side.
		if len(output) < maxLine {
			require.Equal(t, want, strings.Join(readAll(t, path, Options{Tail: -1}), ""))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	w, _ := newLog(b, 0, 1)
	chunk := bytes.Repeat([]byte("a line of a log that is about as long as most\n"), 1000)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		require.NoError(b, w.Append(Stdout, chunk, epoch))
	}
}
