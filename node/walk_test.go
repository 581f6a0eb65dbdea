package node

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

func readFrames(r io.Reader) (string, error) {
	var b bytes.Buffer
	_, err := stdcopy.Copy(&b, &b, r)
	return b.String(), err
}

func TestRealWalk(t *testing.T) {
	h := newRealHost(t)
	n, _ := h.node(t)
	loadBusybox(t, n)
	out, code := run(t, n, &container.HostConfig{AutoRemove: true}, "sh", "-c", "echo hello; echo oops >&2; exit 3")
	require.EqualValues(t, 3, code)
	require.ElementsMatch(t, []string{"hello", "oops"}, strings.Fields(out))

	for i := range 5 { // a process that lives for a millisecond loses nothing
		out, code = run(t, n, nil, "echo", fmt.Sprint("line ", i))
		require.Zero(t, code)
		require.Equal(t, fmt.Sprintf("line %d\n", i), out)
	}
	list, err := n.ListContainers(t.Context(), api.ListOptions{All: true})
	require.NoError(t, err)
	require.Len(t, list, 5)
	logs, err := n.ContainerLogs(t.Context(), list[0].ID, api.LogsOptions{Stdout: true, Tail: -1})
	require.NoError(t, err)
	text, err := readFrames(logs)
	require.NoError(t, err)
	require.Equal(t, "line 4\n", text)
}

// TestRealAbandoned ends an agent while containers run, and expects of the next
// one that it finds them as they are, with what they wrote and how they ended.
func TestRealAbandoned(t *testing.T) {
	h := newRealHost(t)
	first, kill := h.node(t)
	loadBusybox(t, first)
	create := func(name string, host *container.HostConfig, script string) string {
		r, err := first.CreateContainer(t.Context(), api.CreateOptions{Name: name, HostConfig: host, Config: &container.Config{
			Image: "busybox", Cmd: []string{"sh", "-c", script}, OpenStdin: true,
		}})
		require.NoError(t, err)
		require.NoError(t, first.StartContainer(t.Context(), r.ID, api.StartOptions{}))
		return r.ID
	}
	// Each goes on when a file appears in its directory.
	dir := t.TempDir()
	shared := func(host container.HostConfig) *container.HostConfig {
		host.Binds = []string{dir + ":/go"}
		return &host
	}
	const until = "echo began; while [ ! -e /go/%s ]; do sleep 0.05; done; echo over; exit %d"
	stays := create("stays", shared(container.HostConfig{
		PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8088"}}},
	}), fmt.Sprintf(until, "stays", 0))
	ends := create("ends", shared(container.HostConfig{}), fmt.Sprintf(until, "ends", 7))
	brief := create("brief", shared(container.HostConfig{AutoRemove: true}), fmt.Sprintf(until, "ends", 8))
	again := create("again", shared(container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure"}}),
		"[ -e /go/ends ] && exec sleep 1000; "+fmt.Sprintf(until, "ends", 9))
	for _, id := range []string{stays, ends, brief, again} {
		require.Eventually(t, func() bool { return allLogs(t, first, id) == "began\n" }, time.Minute, time.Millisecond)
	}
	before, err := first.InspectContainer(t.Context(), stays, api.InspectOptions{})
	require.NoError(t, err)
	kill()

	require.NoError(t, os.WriteFile(filepath.Join(dir, "ends"), nil, 0o644))
	for _, id := range []string{ends, brief} {
		task, err := h.runtime.Load(t.Context(), id)
		require.NoError(t, err)
		_, err = task.Wait(t.Context())
		require.NoError(t, err)
	}
	agent := &agent{}
	agent.Node, _ = h.node(t)
	second := agent.Node
	after := agent.state(t, stays, container.StateRunning)
	require.Equal(t, before.State, after.State)
	require.Equal(t, before.NetworkSettings, after.NetworkSettings)
	require.Equal(t, 7, agent.state(t, ends, container.StateExited).State.ExitCode)
	require.Equal(t, "began\nover\n", allLogs(t, second, ends))
	require.Eventually(t, func() bool {
		i, err := second.InspectContainer(t.Context(), again, api.InspectOptions{})
		return err == nil && i.RestartCount == 1 && i.State.Status == container.StateRunning
	}, time.Minute, time.Millisecond)
	_, err = second.InspectContainer(t.Context(), brief, api.InspectOptions{})
	require.True(t, errdefs.IsNotFound(err), "its own end removes it: %v", err)

	// What was adopted can be attached to, run in, waited for and stopped.
	session, err := second.AttachContainer(t.Context(), stays, api.AttachOptions{Stdout: true, Stream: true})
	require.NoError(t, err)
	wait, err := second.WaitContainer(t.Context(), stays, container.WaitConditionNextExit)
	require.NoError(t, err)
	x, err := second.CreateExec(t.Context(), stays, container.ExecCreateRequest{Cmd: []string{"touch", "/go/stays"}, AttachStdout: true})
	require.NoError(t, err)
	done, err := second.StartExec(t.Context(), x.ID, api.ExecStartOptions{})
	require.NoError(t, err)
	_, err = readFrames(done)
	require.NoError(t, err)
	text, err := readFrames(session)
	require.NoError(t, err)
	require.Equal(t, "over\n", text)
	require.Zero(t, exitOf(t, wait))
	require.Equal(t, "began\nover\n", allLogs(t, second, stays))
	require.NoError(t, second.StopContainer(t.Context(), again, api.StopOptions{Timeout: new(int)}))
}

func allLogs(t testing.TB, n *Node, id string) string {
	t.Helper()
	logs, err := n.ContainerLogs(t.Context(), id, api.LogsOptions{Stdout: true, Stderr: true, Tail: -1})
	require.NoError(t, err)
	text, err := readFrames(logs)
	require.NoError(t, err)
	return text
}

// TestRealVolumes mounts what users mount.
func TestRealVolumes(t *testing.T) {
	h := newRealHost(t)
	n, _ := h.node(t)
	loadBusybox(t, n)
	dir := filepath.Join(t.TempDir(), "made")
	host := func(binds ...string) *container.HostConfig {
		return &container.HostConfig{AutoRemove: true, Binds: binds, NetworkMode: "none"}
	}
	_, code := run(t, n, host("data:/data", dir+":/host"), "sh", "-c", "echo kept > /data/f; echo x > /host/f")
	require.Zero(t, code)
	b, err := os.ReadFile(filepath.Join(dir, "f"))
	require.NoError(t, err)
	require.Equal(t, "x\n", string(b))
	out, code := run(t, n, host("data:/data:ro"), "sh", "-c", "cat /data/f; echo no > /data/f || echo refused")
	require.Zero(t, code)
	require.Contains(t, out, "kept\n")
	require.Contains(t, out, "refused\n")
	// An empty volume takes what the image has there, once.
	out, _ = run(t, n, host("etc:/bin/../etc"), "ls", "/etc/passwd")
	require.Equal(t, "/etc/passwd\n", out)
	// One without a name goes with its container.
	before, err := os.ReadDir(n.volumes.root)
	require.NoError(t, err)
	_, code = run(t, n, host("/scratch"), "touch", "/scratch/f")
	require.Zero(t, code)
	require.Eventually(t, func() bool {
		after, err := os.ReadDir(n.volumes.root)
		return err == nil && len(after) == len(before)
	}, time.Minute, time.Millisecond)
}

// TestRealTerminal types into a container and leaves it.
func TestRealTerminal(t *testing.T) {
	h := newRealHost(t)
	n, _ := h.node(t)
	loadBusybox(t, n)
	r, err := n.CreateContainer(t.Context(), api.CreateOptions{
		Config:     &container.Config{Image: "busybox", Cmd: []string{"sh"}, Tty: true, OpenStdin: true, StdinOnce: true},
		HostConfig: &container.HostConfig{NetworkMode: "none", ConsoleSize: [2]uint{33, 77}},
	})
	require.NoError(t, err)
	attach := func() api.Session {
		s, err := n.AttachContainer(t.Context(), r.ID, api.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true})
		require.NoError(t, err)
		require.False(t, s.Multiplexed)
		return s
	}
	session := attach()
	require.NoError(t, n.StartContainer(t.Context(), r.ID, api.StartOptions{}))
	say(t, session, "stty size\n", "33 77")
	require.NoError(t, n.ResizeContainer(t.Context(), r.ID, api.TerminalSize{Height: 44, Width: 99}))
	say(t, session, "stty size\n", "44 99")
	_, err = session.Write([]byte{16, 17}) // ctrl-p, ctrl-q
	require.NoError(t, err)
	_, err = io.ReadAll(session)
	require.NoError(t, err)
	session = attach()
	say(t, session, "echo b''ack\n", "back")
	wait, err := n.WaitContainer(t.Context(), r.ID, container.WaitConditionNextExit)
	require.NoError(t, err)
	_, err = session.Write([]byte("exit 6\n"))
	require.NoError(t, err)
	require.EqualValues(t, 6, exitOf(t, wait))
}

// say types and reads until the answer comes.
func say(t testing.TB, s api.Session, text, answer string) {
	t.Helper()
	_, err := s.Write([]byte(text))
	require.NoError(t, err)
	var got []byte
	buf := make([]byte, 1024)
	for !bytes.Contains(got, []byte(answer)) {
		n, err := s.Read(buf)
		got = append(got, buf[:n]...)
		require.NoError(t, err, "%q", got)
	}
}
