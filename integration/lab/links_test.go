package lab

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// within runs f in the namespace pinned at path. Sockets it makes stay there.
func within[T any](t *testing.T, path string, f func() (T, error)) (T, error) {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in its namespace
		if err := setns(path); err != nil {
			done <- result{err: err}
			return
		}
		v, err := f()
		done <- result{v, err}
	}()
	r := <-done
	return r.v, r.err
}

// wire is a lab's network without agents.
func wire(t *testing.T, nodes int) (sw string, node []string) {
	t.Helper()
	dir := t.TempDir()
	sw = filepath.Join(dir, "switch")
	require.NoError(t, makeSwitch(sw))
	t.Cleanup(func() { require.NoError(t, unpinNamespace(sw)) })
	node = make([]string, nodes+1)
	for n := 1; n <= nodes; n++ {
		node[n] = filepath.Join(dir, fmt.Sprint(n))
		require.NoError(t, pinNamespace(node[n]))
		t.Cleanup(func() { require.NoError(t, unpinNamespace(node[n])) })
		require.NoError(t, plug(sw, node[n], n))
	}
	return sw, node
}

// reaches says whether node a can connect to node b.
func reaches(t *testing.T, node []string, a, b int) bool {
	t.Helper()
	l, err := within(t, node[b], func() (net.Listener, error) { return net.Listen("tcp", Address(b).String()+":0") })
	require.NoError(t, err)
	defer l.Close()
	conn, err := within(t, node[a], func() (net.Conn, error) { return net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond) })
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestPartitionAndHeal(t *testing.T) {
	sw, node := wire(t, 3)
	require.True(t, reaches(t, node, 1, 2))
	require.True(t, reaches(t, node, 3, 1))
	require.NoError(t, group(sw, 3, 1))
	require.True(t, reaches(t, node, 1, 2))
	require.False(t, reaches(t, node, 1, 3))
	require.False(t, reaches(t, node, 3, 2))
	require.NoError(t, group(sw, 3, 0))
	require.True(t, reaches(t, node, 1, 3))
}

func TestShapedLink(t *testing.T) {
	sw, node := wire(t, 2)
	const rate, size = 80e6, 4 << 20
	require.NoError(t, shape(sw, node[1], 1, rate))
	l, err := within(t, node[2], func() (net.Listener, error) { return net.Listen("tcp", Address(2).String()+":0") })
	require.NoError(t, err)
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = conn.Write(make([]byte, size)) // the reader notices what is missing
			conn.Close()
		}
	}()
	conn, err := within(t, node[1], func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
	require.NoError(t, err)
	defer conn.Close()
	start := time.Now()
	n, err := io.Copy(io.Discard, conn)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	atRate := time.Duration(float64(size) * 8 / rate * float64(time.Second))
	require.Greater(t, time.Since(start), atRate*7/10, "the link is faster than its rate")
	require.NoError(t, shape(sw, node[1], 1, 0))
	require.NoError(t, shape(sw, node[1], 1, 0), "lifting twice is no error")
}
