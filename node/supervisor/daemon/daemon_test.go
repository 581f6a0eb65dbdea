package daemon

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// connected gives both ends of a socket.
func connected(t *testing.T) (ours, theirs *net.UnixConn) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	theirs, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	require.NoError(t, err)
	ours, err = l.AcceptUnix()
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return ours, theirs
}

func TestSessionGivesUpWhoDoesNotRead(t *testing.T) {
	ours, _ := connected(t)
	s := newSession(ours, wire.Streams{Stdout: true}, false)
	go s.run()
	chunk := make([]byte, chunkSize)
	pushed := 0
	for s.push(wire.Stdout, chunk, 20*time.Millisecond) {
		pushed += len(chunk)
		require.Less(t, pushed, 100*sessionBuffer, "a client that does not read takes everything")
	}
	require.GreaterOrEqual(t, pushed, sessionBuffer)
	require.False(t, s.push(wire.Stdout, chunk, 0))
}

func TestSessionOfPatientReaderLosesNothing(t *testing.T) {
	ours, theirs := connected(t)
	h := hub{private: true}
	s := newSession(ours, wire.Streams{Stdout: true}, true)
	h.add(s)
	const n = 5 * sessionBuffer
	go func() {
		h.write(wire.Stdout, []byte("before the client listens"))
		for range n / chunkSize {
			h.write(wire.Stdout, make([]byte, chunkSize))
		}
		h.write(wire.Stdout, []byte("."))
		h.end()
	}()
	go s.run()
	b, err := io.ReadAll(theirs)
	require.NoError(t, err)
	require.Len(t, b, len("before the client listens")+n+1)
	require.Equal(t, byte('.'), b[len(b)-1])
	late, _ := connected(t)
	end := newSession(late, wire.Streams{Stdout: true}, true)
	h.add(end)
	_, more := end.next()
	require.False(t, more, "who comes after the end finds it")
}

func TestSessionTakesOnlyWhatItWants(t *testing.T) {
	ours, theirs := connected(t)
	s := newSession(ours, wire.Streams{Stderr: true}, false)
	require.True(t, s.push(wire.Stdout, []byte("no"), 0))
	require.True(t, s.push(wire.Stderr, []byte("yes"), 0))
	s.end()
	s.run()
	b, err := io.ReadAll(theirs)
	require.NoError(t, err)
	require.Equal(t, "\x02\x00\x00\x00\x00\x00\x00\x03yes", string(b))
}

func TestDying(t *testing.T) {
	require.False(t, dying(os.Getpid()))
	require.False(t, dying(0), "unknown is not dying")
	cmd := exec.Command("/bin/sleep", "1000")
	require.NoError(t, cmd.Start())
	require.False(t, dying(cmd.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return dying(cmd.Process.Pid) }, time.Minute, time.Millisecond)
	require.Error(t, cmd.Wait())
	require.True(t, dying(cmd.Process.Pid))
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{"a": true, "0f.b_c-d+": true, "": false, ".": false, "..": false, "a/b": false, "-x": false, "a\n": false} {
		require.Equal(t, ok, validID(id), "%q", id)
	}
}

func FuzzRecord(f *testing.F) {
	b, err := json.Marshal(record{ID: "a", Status: wire.Status{State: wire.Running, Pid: 7}})
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"status":{"state":"elsewhere"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			return // a time that JSON can't hold came in by other digits
		}
		_, err = decodeRecord(again)
		require.NoError(t, err)
	})
}
