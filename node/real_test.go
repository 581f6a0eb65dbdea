package node

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	nodeimage "github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/network"
	"github.com/shoal-engine/shoal/node/supervisor"
)

func TestMain(m *testing.M) {
	if supervisor.IsChild(os.Args) {
		supervisor.Main()
	}
	os.Exit(m.Run())
}

// realHost is a host for real nodes: directories, a network namespace that stands
// for the host's, an image store, a network and a supervisor.
type realHost struct {
	dir     string
	netns   string
	images  *nodeimage.Store
	network *network.Network
	runtime *supervisor.Client
}

func newRealHost(t testing.TB) *realHost {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "shoal-node") // short: sockets lie in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := &realHost{dir: dir, netns: newNetns(t, filepath.Join(dir, "netns"))}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))

	h.runtime, err = supervisor.Connect(t.Context(), supervisor.Config{Dir: filepath.Join(dir, "sup"), Logger: log})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "sup", "supervisor.log"))
			t.Logf("supervisor: %s", b)
		}
		require.NoError(t, h.runtime.Shutdown(context.Background(), true))
	})

	h.images, err = nodeimage.Open(nodeimage.Config{Root: filepath.Join(dir, "images"), Logger: log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.images.Close()) })

	h.network, err = network.New(network.Config{
		Root: filepath.Join(dir, "net"), RunDir: filepath.Join(dir, "run"), Scope: "test",
		Subnet: netip.MustParsePrefix("10.77.9.0/24"), Netns: h.netns, Logger: log,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, h.network.Teardown(context.Background()))
		require.NoError(t, h.network.Close())
	})
	h.background(t, h.images.Run)
	h.background(t, h.network.Run)
	return h
}

// background runs something until the test ends.
func (h *realHost) background(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

// newNetns makes a network namespace with a loopback and pins it.
func newNetns(t testing.TB, path string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	made := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // the thread ends with its namespace
		made <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	require.NoError(t, <-made)
	t.Cleanup(func() { require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// node starts a node on the host. kill ends it at once, as kill -9 would: nothing
// is told, nothing undone.
func (h *realHost) node(t testing.TB) (n *Node, kill func()) {
	t.Helper()
	n, err := New(Config{
		Root: filepath.Join(h.dir, "node"), Name: "host1", Version: "0.0.0-test",
		Images: h.images, Network: h.network, Runtime: h.runtime,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var killed bool
	kill = func() {
		if killed {
			return
		}
		killed = true
		cancel()
		require.NoError(t, <-done)
	}
	t.Cleanup(func() {
		if !killed {
			removeAll(t, n)
		}
		kill()
	})
	return n, kill
}

func removeAll(t testing.TB, n *Node) {
	all, err := n.ListContainers(context.Background(), api.ListOptions{All: true})
	require.NoError(t, err)
	for _, c := range all {
		require.NoError(t, n.RemoveContainer(context.Background(), c.ID, api.RemoveOptions{Force: true, Volumes: true}))
	}
}

func loadBusybox(t testing.TB, n *Node) {
	t.Helper()
	s, err := n.LoadImages(t.Context(), bytes.NewReader(apitest.Busybox(t)), api.LoadOptions{Quiet: true})
	require.NoError(t, err)
	for _, err := range api.All(s) {
		require.NoError(t, err)
	}
}

// run creates, attaches, waits and starts, in the order of the docker CLI, and
// gives output and exit code.
func run(t testing.TB, n *Node, host *container.HostConfig, cmd ...string) (string, int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := n.CreateContainer(ctx, api.CreateOptions{Config: &container.Config{Image: "busybox", Cmd: cmd}, HostConfig: host})
	require.NoError(t, err)
	session, err := n.AttachContainer(ctx, r.ID, api.AttachOptions{Stdout: true, Stderr: true, Stream: true})
	require.NoError(t, err)
	cond := container.WaitConditionNextExit
	if host != nil && host.AutoRemove {
		cond = container.WaitConditionRemoved
	}
	wait, err := n.WaitContainer(ctx, r.ID, cond)
	require.NoError(t, err)
	require.NoError(t, n.StartContainer(ctx, r.ID, api.StartOptions{}))
	out, err := readFrames(session)
	require.NoError(t, err)
	return out, exitOf(t, wait)
}
