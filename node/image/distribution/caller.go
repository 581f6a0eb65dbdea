package distribution

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Local lets callers in who come over the loopback device, as a user that may says
// yes to, and are no web page that got a browser to call. It needs Server.Serve.
func Local(may func(uid int) bool) func(*http.Request) error {
	return func(r *http.Request) error {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if a, err := netip.ParseAddr(strings.Trim(host, "[]")); host != "localhost" && (err != nil || !a.IsLoopback()) {
			return fmt.Errorf("this registry is localhost, not %q", clip(host))
		}
		if r.Header.Get("Origin") != "" {
			return errors.New("this registry is not for web pages")
		}
		c, ok := r.Context().Value(callerKey{}).(*caller)
		if !ok {
			return errors.New("nobody knows who is asking")
		}
		uid, err := c.uid()
		if err != nil {
			return fmt.Errorf("find out who is asking: %w", err)
		}
		if !may(uid) {
			return fmt.Errorf("user %d may not use this registry: it is for root and for the group that the agent's setting socket_group names", uid)
		}
		return nil
	}
}

type callerKey struct{}

// caller is who opened a connection; looked up once, when somebody asks.
type caller struct{ uid func() (int, error) }

func withCaller(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, &caller{sync.OnceValues(func() (int, error) { return peerUID(conn) })})
}

// peerUID finds the user that holds the other end of a TCP connection within this
// host's network namespace.
func peerUID(conn net.Conn) (int, error) {
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return 0, err
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return 0, err
	}
	// A client may use a socket of version 6 for an address of version 4.
	for _, path := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		uid, err := findSocket(f, remote, local)
		f.Close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if uid >= 0 {
			return uid, nil
		}
	}
	return 0, errors.New("the connection has no other end here")
}

// Of a line of /proc/net/tcp: the state "established", and where fields stand.
const (
	stateEstablished = "01"
	fieldLocal       = 1
	fieldRemote      = 2
	fieldState       = 3
	fieldUID         = 7
	fieldInode       = 9
)

// findSocket finds a socket's user in the kernel's list; -1 if it isn't there. Only one
// that is established and that a process still holds counts: the kernel shows root as
// the user of others.
func findSocket(r io.Reader, local, remote netip.AddrPort) (int, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= fieldInode || f[fieldState] != stateEstablished || f[fieldInode] == "0" {
			continue
		}
		if l, ok := kernelAddr(f[fieldLocal]); !ok || l != local {
			continue
		}
		if a, ok := kernelAddr(f[fieldRemote]); !ok || a != remote {
			continue
		}
		return strconv.Atoi(f[fieldUID])
	}
	return -1, lines.Err()
}

// kernelAddr reads an address as the kernel prints it: 32 bits at a time in the host's
// order, which is little endian wherever this runs, and the port in hexadecimal.
func kernelAddr(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	a, ok := netip.AddrFromSlice(raw)
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok && err == nil
}
