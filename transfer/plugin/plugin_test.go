package plugin

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/transfer/storetest"
)

// TestMain is the plugin, too, where it is called by a plugin's name.
func TestMain(m *testing.M) {
	if strings.HasPrefix(filepath.Base(os.Args[0]), Prefix) {
		serve(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// serve is a plugin that keeps blobs as files, and misbehaves as its settings say.
func serve(in io.Reader, out io.Writer) {
	r := bufio.NewReader(in)
	say := func(v any) {
		line, _ := json.Marshal(v)
		fmt.Fprintf(out, "%s\n", line)
	}
	chunk := func(b []byte) { _, _ = out.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)) }
	var set map[string]string
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			if set["mode"] == "deaf" {
				select {}
			}
			return
		}
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			panic(err)
		}
		if q.Op == "hello" {
			set = q.Settings
		}
		file := filepath.Join(set["dir"], strings.TrimPrefix(q.Digest.String(), "sha256:"))
		mode, at, _ := strings.Cut(set["mode"], "@")
		if at != q.Op {
			mode = ""
		}
		if misbehave(mode, q, out, say) {
			continue
		}
		switch q.Op {
		case "hello":
			say(reply{ID: q.ID, OK: true, Version: 1, Put: set["put"] != ""})
		case "have":
			fi, err := os.Stat(file)
			a := reply{ID: q.ID, OK: err == nil}
			if err == nil {
				a.Size = fi.Size()
			}
			say(a)
		case "get":
			b, err := os.ReadFile(file)
			if err != nil {
				say(reply{ID: q.ID})
				continue
			}
			from := int64(0)
			if set["resume"] != "" {
				from = q.Offset
			}
			say(reply{ID: q.ID, OK: true, Offset: from})
			b = body(mode, b[from:], out, chunk)
			for len(b) > 0 {
				n := min(len(b), 100_000)
				chunk(b[:n])
				b = b[n:]
			}
			chunk(nil)
			if mode == "fails" {
				say(reply{ID: q.ID, Error: "the disk broke"})
				continue
			}
			say(reply{ID: q.ID, OK: true})
		case "put":
			say(reply{ID: q.ID, OK: true})
			var b []byte
			for {
				var head [4]byte
				if _, err := io.ReadFull(r, head[:]); err != nil {
					return // half a blob is none
				}
				n := binary.BigEndian.Uint32(head[:])
				if n == 0 {
					break
				}
				part := make([]byte, n)
				if _, err := io.ReadFull(r, part); err != nil {
					return
				}
				b = append(b, part...)
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				say(reply{ID: q.ID, Error: err.Error()})
				continue
			}
			say(reply{ID: q.ID, OK: true})
		}
	}
}

// misbehave answers a request wrongly; true means that it did.
func misbehave(mode string, q request, out io.Writer, say func(any)) bool {
	switch mode {
	case "hangs":
		select {}
	case "waits":
		for {
			say(map[string]any{"id": q.ID, "wait": true})
			<-time.After(10 * time.Millisecond)
		}
	case "exits":
		fmt.Fprintln(os.Stderr, "no such luck")
		os.Exit(3)
	case "garbage":
		_, _ = out.Write([]byte("\x00\xffnonsense\n"))
	case "endless":
		for {
			_, _ = out.Write([]byte(strings.Repeat("x", 1<<16)))
		}
	case "otherid":
		say(reply{ID: q.ID + 1, OK: true, Version: 1})
	case "version":
		say(reply{ID: q.ID, OK: true, Version: 7})
	case "negative":
		say(reply{ID: q.ID, OK: true, Size: -1})
	case "refuses":
		say(reply{ID: q.ID, Error: "not \x1b[31mtoday"})
	case "vast":
		say(reply{ID: q.ID, OK: true, Size: 1 << 50})
	case "ahead":
		say(reply{ID: q.ID, OK: true, Offset: 7})
	case "gone":
		say(reply{ID: q.ID})
	default:
		return false
	}
	return true
}

// body sends, or changes, what is sent of a blob.
func body(mode string, b []byte, out io.Writer, chunk func([]byte)) []byte {
	switch mode {
	case "lies":
		b[len(b)/2] ^= 1
	case "short":
		return b[:len(b)/2]
	case "long":
		return append(b, 0)
	case "huge chunk":
		_, _ = out.Write(binary.BigEndian.AppendUint32(nil, 1<<31))
	case "half":
		chunk(b[:len(b)/2])
		select {}
	case "crash":
		chunk(b[:len(b)/2])
		panic("crash")
	}
	return b
}

// bin is a directory with plugins, which are this program.
func bin(t testing.TB, names ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, who must own plugins")
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	require.NoError(t, err)
	for _, n := range names {
		require.NoError(t, os.Symlink(exe, filepath.Join(dir, Prefix+n)))
	}
	return dir
}

// start makes and runs a plugin until the end of the test.
func start(t testing.TB, c Config) *Plugin {
	t.Helper()
	if c.Name == "" {
		c.Name = "test"
	}
	if c.Bin == "" {
		c.Bin = bin(t, c.Name)
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "state")
	}
	p, err := New(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return p
}

// stock puts blobs where the plugins find them.
func stock(t testing.TB, blobs ...[]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, b := range blobs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, digest.FromBytes(b).Encoded()), b, 0o600))
	}
	return dir
}

func TestFetch(t *testing.T) {
	big, d := storetest.Blob(t, 3_000_000)
	small, _ := storetest.Blob(t, 100)
	p := start(t, Config{Settings: map[string]string{"dir": stock(t, big, small, nil)}})
	dst := storetest.Memory()
	var done int64
	require.NoError(t, p.Fetch(t.Context(), dst, d, func(n int64) {
		require.Greater(t, n, done)
		done = n
	}))
	require.Equal(t, d.Size, done)
	require.Equal(t, big, storetest.Get(t, dst, d.Digest))
	require.NoError(t, p.Fetch(t.Context(), dst, d, nil), "it is here already")
	require.NoError(t, p.Fetch(t.Context(), dst, ocispec.Descriptor{Digest: digest.FromBytes(small)}, nil), "of unknown size")
	require.Equal(t, small, storetest.Get(t, dst, digest.FromBytes(small)))
	require.NoError(t, p.Fetch(t.Context(), dst, ocispec.Descriptor{Digest: digest.FromBytes(nil)}, nil))
	require.Empty(t, storetest.Get(t, dst, digest.FromBytes(nil)))

	_, unknown := storetest.Blob(t, 10)
	err := p.Fetch(t.Context(), dst, unknown, nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.Len(t, p.idle, 1, "one process did it all")
}

func TestFetchResumes(t *testing.T) {
	b, d := storetest.Blob(t, 500_000)
	for _, resume := range []string{"", "yes"} {
		p := start(t, Config{Settings: map[string]string{"dir": stock(t, b), "resume": resume}})
		for _, wrong := range []bool{false, true} {
			dst := storetest.Memory()
			w, err := dst.Ingest(t.Context(), d)
			require.NoError(t, err)
			part := append([]byte(nil), b[:300_000]...)
			if wrong {
				part[5] ^= 1
			}
			_, err = w.Write(part)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			require.NoError(t, p.Fetch(t.Context(), dst, d, nil), "resume %q, wrong before %v", resume, wrong)
			require.Equal(t, b, storetest.Get(t, dst, d.Digest))
			require.Zero(t, p.strikes)
		}
	}
}

func TestFetchManyAtOnce(t *testing.T) {
	var blobs [][]byte
	for range 12 {
		b, _ := storetest.Blob(t, 400_000)
		blobs = append(blobs, b)
	}
	p := start(t, Config{Settings: map[string]string{"dir": stock(t, blobs...)}, Processes: 3})
	dst := storetest.Memory()
	var all sync.WaitGroup
	for _, b := range blobs {
		all.Go(func() {
			if err := p.Fetch(t.Context(), dst, storetest.Describe(b), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, len(p.idle), 3)
}

func TestOffer(t *testing.T) {
	b, d := storetest.Blob(t, 700_000)
	src, dir := storetest.Memory(), t.TempDir()
	storetest.Put(t, src, b)
	wants := start(t, Config{Settings: map[string]string{"dir": dir, "put": "yes"}})
	require.NoError(t, wants.Offer(t.Context(), src, d.Digest))
	got, err := os.ReadFile(filepath.Join(dir, d.Digest.Encoded()))
	require.NoError(t, err)
	require.Equal(t, b, got)
	require.NoError(t, wants.Offer(t.Context(), src, d.Digest), "it has it")
	require.NoError(t, wants.Offer(t.Context(), src, digest.FromString("gone")), "gone from here meanwhile")

	dst := storetest.Memory()
	other := start(t, Config{Settings: map[string]string{"dir": dir}})
	require.NoError(t, other.Fetch(t.Context(), dst, d, nil))
	require.Equal(t, b, storetest.Get(t, dst, d.Digest))
	b2, d2 := storetest.Blob(t, 10)
	storetest.Put(t, src, b2)
	require.NoError(t, other.Offer(t.Context(), src, d2.Digest))
	require.NoFileExists(t, filepath.Join(dir, d2.Digest.Encoded()), "it doesn't want any")
}

// TestMisbehaviour has plugins do every wrong thing there is. None of it may leave
// anything in the store, or keep the next in line from being asked.
func TestMisbehaviour(t *testing.T) {
	b, d := storetest.Blob(t, 200_000)
	dir := stock(t, b)
	for mode, c := range map[string]struct {
		why    string
		strike bool
	}{
		"hangs@hello":    {"nothing came in time", true},
		"hangs@have":     {"nothing came in time", true},
		"hangs@get":      {"nothing came in time", true},
		"waits@have":     {"nothing came in time", true},
		"exits@hello":    {`last words: "no such luck"`, true},
		"exits@have":     {`last words: "no such luck"`, true},
		"garbage@hello":  {"is no answer", true},
		"garbage@have":   {"is no answer", true},
		"garbage@get":    {"is no answer", true},
		"endless@have":   {"a line of more than", true},
		"otherid@have":   {"it answers request 3, not 2", true},
		"version@hello":  {"version 7", true},
		"negative@have":  {"negative", true},
		"refuses@hello":  {`not \x1b[31mtoday`, true},
		"refuses@have":   {`not \x1b[31mtoday`, false},
		"refuses@get":    {`not \x1b[31mtoday`, false},
		"ahead@get":      {"begins at byte 7", true},
		"gone@have":      {"it isn't there", false},
		"gone@get":       {"it isn't there any more", false},
		"lies@get":       {"bytes don't match", true},
		"short@get":      {"bytes", true},
		"long@get":       {"more than the 200000 bytes", true},
		"huge chunk@get": {"2147483648 bytes", true},
		"half@get":       {"nothing came in time", true},
		"crash@get":      {"its process ended", true},
		"fails@get":      {"the disk broke", false},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dst := storetest.Memory()
			p := start(t, Config{Settings: map[string]string{"dir": dir, "mode": mode}, Silence: 5 * time.Second, Patience: 8 * time.Second})
			err := p.Fetch(t.Context(), dst, d, nil)
			require.ErrorContains(t, err, c.why)
			require.ErrorContains(t, err, "transport plugin test: fetch blob "+d.Digest.String())
			require.NotContains(t, err.Error(), "\x1b", "nothing of it reaches a terminal raw")
			require.False(t, errdefs.IsAlreadyExists(err))
			require.Equal(t, c.strike, p.strikes > 0)
			_, err = dst.Stat(t.Context(), d.Digest)
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			if c.strike {
				err = p.Fetch(t.Context(), dst, d, nil)
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				if p.until.After(time.Now()) {
					require.ErrorContains(t, err, "is left alone")
				}
			}
			honest := start(t, Config{Settings: map[string]string{"dir": dir}})
			require.NoError(t, honest.Fetch(t.Context(), dst, d, nil), "the chain goes on")
			require.Equal(t, b, storetest.Get(t, dst, d.Digest))
		})
	}
	t.Run("vast", func(t *testing.T) {
		p := start(t, Config{Settings: map[string]string{"dir": dir, "mode": "vast@have"}})
		err := p.Fetch(t.Context(), storetest.Memory(), ocispec.Descriptor{Digest: d.Digest}, nil)
		require.ErrorContains(t, err, "at most 8388608 are taken unannounced")
	})
}

func TestComesBackAfterACrash(t *testing.T) {
	b, d := storetest.Blob(t, 1000)
	p := start(t, Config{Settings: map[string]string{"dir": stock(t, b)}})
	require.NoError(t, p.Fetch(t.Context(), storetest.Memory(), d, nil))
	first := p.idle[0]
	require.NoError(t, syscall.Kill(first.pid, syscall.SIGKILL))
	<-first.done
	require.NoError(t, p.Fetch(t.Context(), storetest.Memory(), d, nil), "at once: it wasn't asked anything")
	require.NotEqual(t, first.pid, p.idle[0].pid)
}

func TestPausesGrow(t *testing.T) {
	p, err := New(Config{Name: "x", Bin: t.TempDir(), Dir: t.TempDir()})
	require.NoError(t, err)
	var pauses []time.Duration
	for range 9 {
		before := time.Now()
		p.strike(io.EOF)
		pauses = append(pauses, p.until.Sub(before).Round(time.Second))
	}
	require.Equal(t, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}, func() (s []time.Duration) {
		for _, d := range pauses {
			s = append(s, d/time.Second)
		}
		return s
	}())
}

// TestCancel ends a fetch in the middle, for which the plugin isn't to blame.
func TestCancel(t *testing.T) {
	b, d := storetest.Blob(t, 1000)
	p := start(t, Config{Settings: map[string]string{"dir": stock(t, b), "mode": "half@get"}})
	ctx, cancel := context.WithCancel(t.Context())
	err := p.Fetch(ctx, storetest.Memory(), d, func(int64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, p.strikes)
	require.Empty(t, p.idle)
	require.Empty(t, p.busy)
}

func TestAllBusy(t *testing.T) {
	b, d := storetest.Blob(t, 1000)
	p := start(t, Config{Settings: map[string]string{"dir": stock(t, b), "mode": "half@get"}, Processes: 1})
	ctx, cancel := context.WithCancel(t.Context())
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.Fetch(ctx, storetest.Memory(), d, func(int64) { close(began) }) }()
	<-began
	err := p.Fetch(t.Context(), storetest.Memory(), d, nil)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "busy")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

// TestEndTakesAll ends a plugin that doesn't listen, with what it has started.
func TestEndTakesAll(t *testing.T) {
	p, err := New(Config{Name: "sh", Bin: script(t, "sh", `#!/bin/sh
read line
sleep 1000 &
echo $! >child
echo '{"id":1,"ok":true,"version":1}'
trap "" HUP TERM PIPE
while :; do read line && echo '{"id":2,"ok":false}' || sleep 1000; done
`), Dir: filepath.Join(t.TempDir(), "state")})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	_, d := storetest.Blob(t, 10)
	require.ErrorIs(t, p.Fetch(t.Context(), storetest.Memory(), d, nil), errdefs.ErrNotFound)
	raw, err := os.ReadFile(filepath.Join(p.cfg.Dir, "child"))
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(raw), &pid)
	require.NoError(t, err)
	own := p.idle[0].pid
	require.NoError(t, syscall.Kill(pid, 0))
	cancel()
	require.NoError(t, <-done)
	require.ErrorIs(t, syscall.Kill(own, 0), syscall.ESRCH)
	require.Eventually(t, func() bool { return gone(pid) }, time.Minute, 5*time.Millisecond)
	require.ErrorIs(t, p.Fetch(t.Context(), storetest.Memory(), d, nil), errdefs.ErrUnavailable)
}

// gone says whether a process has ended, reaped or not.
func gone(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(raw), ") Z ")
}

// script is a directory with one plugin.
func script(t *testing.T, name, text string) string {
	t.Helper()
	dir := bin(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, Prefix+name), []byte(text), 0o755))
	return dir
}

// TestHasNothingOfOurs looks at what a plugin inherits.
func TestHasNothingOfOurs(t *testing.T) {
	t.Setenv("SECRET", "hunter2")
	leak, err := syscall.Open("/dev/zero", syscall.O_RDONLY, 0) // as if our own parent had left it open
	require.NoError(t, err)
	defer syscall.Close(leak)
	p := start(t, Config{Name: "sh", Bin: script(t, "sh", `#!/bin/sh
read line
{ env; ls -l /proc/$$/fd; ps -o pgid=,sid= -p $$ ; pwd; } >seen
echo '{"id":1,"ok":true,"version":1}'
read line
echo '{"id":2,"ok":false}'
read line
`)})
	_, d := storetest.Blob(t, 10)
	require.ErrorIs(t, p.Fetch(t.Context(), storetest.Memory(), d, nil), errdefs.ErrNotFound)
	raw, err := os.ReadFile(filepath.Join(p.cfg.Dir, "seen"))
	require.NoError(t, err)
	require.NotContains(t, string(raw), "SECRET")
	require.NotContains(t, string(raw), "/dev/zero")
	require.NotContains(t, string(raw), "socket:")
	require.Contains(t, string(raw), fmt.Sprint(p.idle[0].pid), "it leads a group and a session of its own")
	require.Contains(t, string(raw), p.cfg.Dir+"\n")
}

func TestOnlyRootsFilesAreRun(t *testing.T) {
	_, d := storetest.Blob(t, 10)
	for what, c := range map[string]struct {
		spoil func(t *testing.T, dir, file string)
		why   string
	}{
		"missing":        {func(t *testing.T, _, f string) { require.NoError(t, os.Remove(f)) }, "there is no shoal-transport-x"},
		"another's":      {func(t *testing.T, _, f string) { require.NoError(t, os.Chown(f, 1000, 1000)) }, "can be changed by others than root"},
		"world-writable": {func(t *testing.T, _, f string) { require.NoError(t, os.Chmod(f, 0o777)) }, "can be changed by others than root"},
		"group-writable": {func(t *testing.T, _, f string) { require.NoError(t, os.Chmod(f, 0o775)) }, "can be changed by others than root"},
		"open directory": {func(t *testing.T, d, _ string) { require.NoError(t, os.Chmod(d, 0o777)) }, "can be changed by others than root"},
		"no executable":  {func(t *testing.T, _, f string) { require.NoError(t, os.Chmod(f, 0o644)) }, "can't be executed"},
		"no program":     {func(t *testing.T, _, f string) { require.NoError(t, os.WriteFile(f, []byte("\x7fELF?"), 0o755)) }, "start "},
		"a directory": {func(t *testing.T, _, f string) {
			require.NoError(t, os.Remove(f))
			require.NoError(t, os.Mkdir(f, 0o755))
		}, "can't be executed"},
		"link to another": {func(t *testing.T, d, f string) {
			other := filepath.Join(d, "other")
			require.NoError(t, os.Rename(f, other))
			require.NoError(t, os.Chown(other, 1000, 1000))
			require.NoError(t, os.Symlink(other, f))
		}, "can be changed by others than root"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := script(t, "x", "#!/bin/sh\ntouch ran\n")
			c.spoil(t, dir, filepath.Join(dir, Prefix+"x"))
			p := start(t, Config{Name: "x", Bin: dir})
			err := p.Fetch(t.Context(), storetest.Memory(), d, nil)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorContains(t, err, c.why)
			require.NoFileExists(t, filepath.Join(p.cfg.Dir, "ran"))
		})
	}
	for _, name := range []string{"", "../x", "X", "a/b", "-a", strings.Repeat("a", 40), "a\n"} {
		_, err := New(Config{Name: name})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
	}
}
