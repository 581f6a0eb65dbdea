package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/runtime"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64,
		"": 0, "0": 0, "65": 0, "-1": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMIN3": 0, "NOPE": 0,
	} {
		got, err := parseSignal(text)
		require.Equal(t, want, got, "%q: %v", text, err)
		require.Equal(t, want == 0, err != nil, "%q", text)
	}
}

func TestParseBind(t *testing.T) {
	for spec, want := range map[string]mountPoint{
		"/a:/b": {MakeSource: true, MountPoint: container.MountPoint{
			Type: mount.TypeBind, Source: "/a", Destination: "/b", RW: true, Propagation: "rprivate",
		}},
		"/a/:/b/../c:ro,rslave": {MakeSource: true, MountPoint: container.MountPoint{
			Type: mount.TypeBind, Source: "/a", Destination: "/c", Mode: "ro,rslave", Propagation: "rslave",
		}},
		"data:/b:nocopy": {MountPoint: container.MountPoint{
			Type: mount.TypeVolume, Name: "data", Driver: "local", Destination: "/b", RW: true, Mode: "nocopy",
		}},
		"/b": {Anonymous: true, Fill: true, MountPoint: container.MountPoint{
			Type: mount.TypeVolume, Driver: "local", Destination: "/b", RW: true,
		}},
	} {
		got, err := parseBind(spec)
		require.NoError(t, err, spec)
		require.Equal(t, want, got, spec)
	}
	for _, spec := range []string{"", ":", ":/b", "/a:", "/a:/", "/a:b", "a", "/a:ro", "/a:/b:ro,rw", "/a:/b:nocopy", "../x:/b", "a/b:/c", "/a:/b:c:d"} {
		_, err := parseBind(spec)
		require.Error(t, err, spec)
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "data:/x", "/x", "a:b:c:d", "/a:/b:z,Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		p, err := parseBind(spec)
		if err != nil {
			return
		}
		if !strings.HasPrefix(p.Destination, "/") || p.Destination == "/" || strings.Contains(p.Destination, "/../") {
			t.Fatalf("%q is mounted at %q", spec, p.Destination)
		}
		if p.Type == mount.TypeVolume && strings.ContainsAny(p.Name, "/") {
			t.Fatalf("%q makes a volume called %q", spec, p.Name)
		}
	})
}

func TestParentsAreMountedFirst(t *testing.T) {
	config := &container.Config{Volumes: map[string]struct{}{"/a/b/c": {}, "/a": {}, "/x": {}}}
	host := &container.HostConfig{Binds: []string{"/tmp:/a/b"}, Tmpfs: map[string]string{"/x": "size=1m"}}
	ms, err := parseMounts(config, host, nil)
	require.NoError(t, err)
	var at []string
	for _, m := range ms {
		at = append(at, string(m.Type)+" "+m.Destination)
	}
	require.Equal(t, []string{"volume /a", "bind /a/b", "volume /a/b/c", "tmpfs /x"}, at)

	host.Binds = append(host.Binds, "/etc:/a/b")
	_, err = parseMounts(config, host, nil)
	require.EqualError(t, err, "Duplicate mount point: /a/b")
}

func testRecord() record {
	return record{
		ID: strings.Repeat("ab", 32), Name: "name", Created: time.Unix(1, 2).UTC(),
		Config: &container.Config{Image: "busybox", Env: []string{"A=b"}}, HostConfig: &container.HostConfig{},
		Path: "sh", Args: []string{"-c", "true"}, State: state{Status: container.StateExited, ExitCode: 3},
		Mounts: []mountPoint{{Anonymous: true, MountPoint: container.MountPoint{Destination: "/d"}}},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	r := testRecord()
	b, err := r.encode()
	require.NoError(t, err)
	got, err := decodeRecord(b)
	require.NoError(t, err)
	require.Equal(t, r, got)
	for i := range b { // a single wrong bit anywhere
		c := bytes.Clone(b)
		c[i] ^= 1
		if got, err := decodeRecord(c); err == nil {
			require.Equal(t, r, got, "byte %d", i)
		}
	}
	_, err = decodeRecord([]byte(`{"version":2}`))
	require.ErrorIs(t, err, errCorrupt)
	_, err = decodeRecord(bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1))
	require.ErrorIs(t, err, errVersion)
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := testRecord().encode()
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			require.True(t, errors.Is(err, errCorrupt) || errors.Is(err, errVersion))
			return
		}
		again, err := r.encode()
		require.NoError(t, err)
		_, err = decodeRecord(again)
		require.NoError(t, err)
	})
}

func TestTransitions(t *testing.T) {
	s := state{Status: container.StateCreated}
	require.Error(t, s.to(container.StatePaused))
	require.Equal(t, container.StateCreated, s.Status)
	require.NoError(t, s.to(container.StateRunning))
	require.Error(t, s.to(container.StateRemoving), "a process must end first")
	for from, tos := range transitions {
		for _, to := range tos {
			require.NotNil(t, transitions[to], "%s leads to %s, which leads nowhere", from, to)
		}
	}
}

// recorder is the other end of a session.
type recorder struct {
	bytes.Buffer
	closed, ended bool
}

func (r *recorder) Read([]byte) (int, error) { return 0, io.EOF }
func (r *recorder) Close() error             { r.closed = true; return nil }
func (r *recorder) CloseWrite() error        { r.ended = true; return nil }

func TestDetachKeys(t *testing.T) {
	keys, err := parseKeys("")
	require.NoError(t, err)
	require.Equal(t, []byte{16, 17}, keys)
	keys, err = parseKeys("a,ctrl-[,ctrl-z")
	require.NoError(t, err)
	require.Equal(t, []byte{'a', 27, 26}, keys)
	for _, bad := range []string{"ab", "ctrl-", "ctrl-1", "a,,b", ","} {
		_, err := parseKeys(bad)
		require.Error(t, err, bad)
	}
}

// What is typed reaches the process byte for byte, however it is cut, up to the
// first detach sequence and nothing after it.
func TestDetachProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typed := rapid.SliceOf(rapid.SampledFrom([]byte{16, 17, 'a'})).Draw(t, "typed")
		r, detached := &recorder{}, false
		d := &detachable{Duplex: r, keys: []byte{16, 17}, onDetach: func() { detached = true }}
		rest := typed
		for len(rest) > 0 && !detached {
			n := rapid.IntRange(1, len(rest)).Draw(t, "cut")
			wrote, err := d.Write(rest[:n])
			if err != nil || wrote > n {
				t.Fatalf("wrote %d of %d: %v", wrote, n, err)
			}
			rest = rest[wrote:]
		}
		before, _, found := bytes.Cut(typed, d.keys)
		if found != detached || r.closed != detached {
			t.Fatalf("detached %v, closed %v, want %v", detached, r.closed, found)
		}
		if !found && len(before) > 0 && before[len(before)-1] == 16 {
			before = before[:len(before)-1] // held back: it may begin the sequence
		}
		if got := r.Bytes(); !bytes.Equal(got, before) {
			t.Fatalf("got %v, want %v", got, before)
		}
	})
}

func TestLateSession(t *testing.T) {
	s := newLateSession(runtime.Streams{}, func() {})
	_, err := s.Write([]byte("early "))
	require.NoError(t, err)
	require.NoError(t, s.CloseWrite())
	in, out := net2()
	var wg sync.WaitGroup
	var got []byte
	wg.Go(func() { got, _ = io.ReadAll(in) })
	s.connect(out, nil)
	wg.Wait()
	require.Equal(t, "early ", string(got))
	require.NoError(t, s.Close())

	dropped := 0
	s = newLateSession(runtime.Streams{}, func() { dropped++ })
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.Equal(t, 1, dropped)
	_, err = s.Read(nil)
	require.ErrorIs(t, err, io.EOF)
	r := &recorder{}
	s.connect(r, nil)
	require.True(t, r.closed, "what comes after the close is closed")
}

// net2 is a reader and a session that writes to it.
func net2() (io.Reader, api.Duplex) {
	r, w := io.Pipe()
	return r, writeEnd{w}
}

type writeEnd struct{ *io.PipeWriter }

func (writeEnd) Read([]byte) (int, error) { return 0, io.EOF }
func (w writeEnd) CloseWrite() error      { return w.Close() }

func TestJournal(t *testing.T) {
	j := newJournal()
	all := func(events.Message) bool { return true }
	began := time.Now()
	s := j.follow(t.Context(), api.EventsOptions{}, all)
	const n = 3 * journalSize
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n / 4 {
			j.add("container", "start", decimal(uint64(i)), nil)
		}
	})
	var last int64
	for i := range n / 4 { // a follower that keeps up sees each, in order
		m, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, decimal(uint64(i)), m.Actor.ID)
		require.Greater(t, m.TimeNano, last)
		last = m.TimeNano
	}
	wg.Wait()
	require.NoError(t, s.Close())
	_, err := s.Recv()
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, j.followers(0))

	for i := range n {
		j.add("container", "stop", decimal(uint64(i)), nil)
	}
	past := j.follow(t.Context(), api.EventsOptions{Since: began, Until: time.Now().Add(-time.Hour)}, all)
	_, err = past.Recv()
	require.ErrorIs(t, err, io.EOF)
	ring := j.follow(t.Context(), api.EventsOptions{Since: began, Until: time.Now().Add(time.Millisecond)}, all)
	count := 0
	for _, err := range api.All(ring) {
		require.NoError(t, err)
		count++
	}
	require.Equal(t, journalSize, count)
}

func TestParsePS(t *testing.T) {
	top, err := parsePS([]byte("UID PID CMD\nroot 1 init\nroot 7 sh -c  x\nroot - -\n"), []int{7})
	require.NoError(t, err)
	require.Equal(t, [][]string{{"root", "7", "sh -c x"}, {"root", "-", "-"}}, top.Processes)
	_, err = parsePS([]byte("UID CMD\n"), nil)
	require.ErrorContains(t, err, "Couldn't find PID field")
	_, err = parsePS(nil, nil)
	require.Error(t, err)
}

func TestResolvConf(t *testing.T) {
	hosts := []byte("# hi\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a b\noptions ndots:2\n")
	r := testRecord()
	r.HostConfig.NetworkMode = "bridge"
	require.Equal(t, "nameserver 192.0.2.1\nsearch a b\noptions ndots:2\n", resolvConf(r, place{}, hosts))
	r.HostConfig.DNSSearch = []string{"."}
	own := place{endpoint: network.Endpoint{DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	require.Equal(t, "nameserver 10.0.0.1\noptions ndots:2\n", resolvConf(r, own, hosts))
	r.HostConfig.DNS = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	require.Equal(t, "nameserver 9.9.9.9\noptions ndots:2\n", resolvConf(r, own, hosts))
	r = testRecord()
	r.HostConfig.NetworkMode = "host"
	require.Equal(t, "nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a b\noptions ndots:2\n", resolvConf(r, place{}, hosts))
}

func TestNewID(t *testing.T) {
	for range 100 {
		require.True(t, validID(newID(64)))
	}
	require.Len(t, newID(40), 40)
}

func TestTmpfsOptions(t *testing.T) {
	o, err := tmpfsOptions(&mount.TmpfsOptions{SizeBytes: 5, Mode: 0o1777, Options: [][]string{{"exec"}}}, true)
	require.NoError(t, err)
	require.Equal(t, "ro,mode=1777,size=5,exec", o)
}
