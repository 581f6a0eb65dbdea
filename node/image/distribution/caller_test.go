package distribution

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// serve runs a registry that lets local users in as may says.
func serve(t *testing.T, may func(int) bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Config{Domain: "localhost:5000", Allow: Local(may)}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return l.Addr().String()
}

func TestLocalCallersOnly(t *testing.T) {
	at := serve(t, func(uid int) bool { return uid == os.Getuid() })
	get := func(edit func(*http.Request)) (int, string) {
		r, err := http.NewRequest(http.MethodGet, "http://"+at+"/v2/", nil)
		require.NoError(t, err)
		edit(r)
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	for _, host := range []string{at, "localhost:5000", "localhost", "[::1]:5000", "127.0.0.9"} {
		code, body := get(func(r *http.Request) { r.Host = host })
		require.Equal(t, http.StatusOK, code, "%s: %s", host, body)
	}
	for _, host := range []string{"evil.example:5000", "192.0.2.1", "localhost.evil.example", "[2001:db8::1]:5000"} {
		code, body := get(func(r *http.Request) { r.Host = host })
		require.Equal(t, http.StatusForbidden, code, host)
		require.Contains(t, body, "DENIED")
	}
	code, _ := get(func(r *http.Request) { r.Header.Set("Origin", "http://localhost:5000") })
	require.Equal(t, http.StatusForbidden, code)
}

// TestOtherUsers asks as another user, over both versions of IP.
func TestOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv")
	}
	at := serve(t, func(uid int) bool { return uid == 0 })
	host, port, err := net.SplitHostPort(at)
	require.NoError(t, err)
	ask := func(id string) string {
		script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/%s; printf 'GET /v2/ HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3; head -1 <&3`, host, port)
		out, err := exec.Command("setpriv", "--reuid", id, "--regid", id, "--clear-groups", "bash", "-c", script).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Contains(t, ask("65534"), "403")
	require.Contains(t, ask("0"), "200")
}

func TestKernelsList(t *testing.T) {
	const list = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:9C40 0100007F:1388 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   2: 0100007F:9C41 0100007F:1388 01 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 20 4 30 10 -1
   3: 0100007F:9C42 0100007F:1388 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   4: 0000000000000000FFFF00000100007F:9C43 0000000000000000FFFF00000100007F:1388 01 0:0 00:0 0  1001        0 78 1
`
	server := netip.MustParseAddrPort("127.0.0.1:5000")
	for port, want := range map[uint16]int{0x9C40: -1, 0x9C41: 1000, 0x9C42: -1, 0x9C43: 1001, 0x9C44: -1} {
		uid, err := findSocket(strings.NewReader(list), netip.AddrPortFrom(server.Addr(), port), server)
		require.NoError(t, err)
		require.Equal(t, want, uid, "%x", port)
	}
}

func FuzzFindSocket(f *testing.F) {
	f.Add("1: 0100007F:9C41 0100007F:1388 01 0:0 00:0 0 1000 0 77")
	f.Add("1: 0:0 0:0 01 0 0 0 x 0 7")
	f.Fuzz(func(t *testing.T, list string) {
		a := netip.MustParseAddrPort("127.0.0.1:5000")
		_, _ = findSocket(strings.NewReader(list), a, a) // must not panic
	})
}
