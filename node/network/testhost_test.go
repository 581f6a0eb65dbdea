package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A testHost is a network namespace that stands for a machine.
type testHost struct {
	path string
	ns   *os.File
	nl   *netlink.Handle
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func newTestHost(t testing.TB) *testHost {
	t.Helper()
	needRoot(t)
	h := &testHost{path: filepath.Join(t.TempDir(), "host")}
	require.NoError(t, makeNetns(h.path, func(*os.File) (err error) {
		if h.nl, err = openHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return furnish()
	}))
	t.Cleanup(func() { require.NoError(t, unpin(h.path)) })
	t.Cleanup(h.nl.Close)
	var err error
	h.ns, err = os.Open(h.path)
	require.NoError(t, err)
	t.Cleanup(func() { h.ns.Close() })
	return h
}

// cable links two hosts; each gets its address, and ends are named after the index.
func cable(t testing.TB, a, b *testHost, name, aAddr, bAddr string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(b.ns.Fd())
	require.NoError(t, a.nl.LinkAdd(veth))
	for h, addr := range map[*testHost]string{a: aAddr, b: bAddr} {
		l, err := h.nl.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, h.nl.AddrAdd(l, &netlink.Addr{IPNet: toIPNet(netip.MustParsePrefix(addr))}))
		require.NoError(t, h.nl.LinkSetUp(l))
	}
}

// network starts a Network on the host; both end with the test.
func (h *testHost) network(t testing.TB, cfg Config) *Network {
	t.Helper()
	n, stop := h.start(t, cfg)
	t.Cleanup(func() {
		stop()
		require.NoError(t, n.Teardown(context.Background()))
		require.NoError(t, n.Close())
	})
	return n
}

// start starts a Network; stop ends Run only.
func (h *testHost) start(t testing.TB, cfg Config) (n *Network, stop func()) {
	t.Helper()
	cfg = h.config(t, cfg)
	n, err := New(cfg)
	require.NoError(t, err)
	require.NoError(t, n.Setup(context.Background()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	return n, func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func (h *testHost) config(t testing.TB, cfg Config) Config {
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "root")
	}
	if cfg.RunDir == "" {
		cfg.RunDir = filepath.Join(filepath.Dir(h.path), "run")
	}
	if cfg.Scope == "" {
		cfg.Scope = "test"
	}
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = netip.MustParsePrefix("10.77.3.0/24")
	}
	cfg.Netns = h.path
	cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	return cfg
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// serve answers on a TCP port of a namespace with the client's address.
func serve(t testing.TB, netns, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	require.NoError(t, inPinned(netns, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
			}()
		}
	}()
	return l
}

// ask calls a server of serve from a namespace: which address does it see?
func ask(netns, addr string) (string, error) {
	var b []byte
	err := inPinned(netns, func() error {
		c, err := net.DialTimeout("tcp4", addr, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		b, err = io.ReadAll(c)
		return err
	})
	return string(b), err
}

func requireAnswer(t testing.TB, netns, addr, sees string) {
	t.Helper()
	got, err := ask(netns, addr)
	require.NoError(t, err)
	require.Equal(t, sees, got)
}

func connect(t testing.TB, n *Network, id string, ports ...Publish) Endpoint {
	t.Helper()
	e, err := n.Connect(context.Background(), Request{ContainerID: id, Name: id, Mode: "default", Ports: ports})
	require.NoError(t, err)
	return e
}

// nothingLeft fails if a host has links or tables of ours, or its directory pins.
func (h *testHost) nothingLeft(t testing.TB, runDir string) {
	t.Helper()
	links, err := h.nl.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		require.NotContains(t, []string{"bridge", "vxlan"}, l.Type(), l.Attrs().Name)
		require.NotRegexp(t, "^v", l.Attrs().Name)
	}
	require.Empty(t, h.tables(t))
	left, err := pins(runDir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func (h *testHost) tables(t testing.TB) []string {
	t.Helper()
	var names []string
	require.NoError(t, inNamespace(h.ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, table := range tables {
			names = append(names, table.Name)
		}
		return err
	}))
	return names
}

func tcp(hostPort, containerPort uint16) Publish {
	return Publish{HostPort: hostPort, ContainerPort: containerPort, Proto: "tcp"}
}

// echo sends back what it gets on a TCP port of a namespace.
func echo(t testing.TB, netns, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	require.NoError(t, inPinned(netns, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l
}

func dial(t testing.TB, netns, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	require.NoError(t, inPinned(netns, func() (err error) {
		c, err = net.DialTimeout("tcp4", addr, time.Minute)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

func requireEcho(t testing.TB, c net.Conn, text string) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	b := make([]byte, len(text))
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, text, string(b))
}
