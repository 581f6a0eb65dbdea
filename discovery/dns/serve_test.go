package dns

import (
	"io"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func TestTCPAnswersManyQuestionsAndSurvivesGarbage(t *testing.T) {
	_, tcp := listen(t, newServer(t, sample()))
	dial := func() net.Conn {
		c, err := net.Dial("tcp4", tcp)
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		t.Cleanup(func() { c.Close() })
		return c
	}
	q := new(mdns.Msg)
	q.SetQuestion("web.", mdns.TypeA)
	raw, err := q.Pack()
	require.NoError(t, err)

	c := dial()
	for range 3 {
		require.NoError(t, writeMessage(c, raw))
	}
	for range 3 {
		b, err := readMessage(c)
		require.NoError(t, err)
		var a mdns.Msg
		require.NoError(t, a.Unpack(b))
		require.Equal(t, []string{"web. 0 IN A 10.77.1.2"}, render(&a))
	}

	// What can't be a question ends the connection and nothing else.
	bad := dial()
	require.NoError(t, writeMessage(bad, []byte("x")))
	_, err = readMessage(bad)
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, writeMessage(c, raw))
	_, err = readMessage(c)
	require.NoError(t, err)
}

// When as many questions wait for upstream as may, the next fails at once, and
// names of ours are still answered.
func TestForwardingIsBounded(t *testing.T) {
	s := newServer(t, sample(), "192.0.2.53")
	for range maxForwarding {
		s.forwarding <- struct{}{}
	}
	udp, _ := listen(t, s)
	for name, code := range map[string]int{"example.org.": mdns.RcodeServerFailure, "web.": mdns.RcodeSuccess} {
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		a, _, err := (&mdns.Client{Timeout: 30 * time.Second}).Exchange(m, udp)
		require.NoError(t, err)
		require.Equal(t, code, a.Rcode, name)
	}
}

// Sockets that aren't UDP's, such as those of tests of whole clusters, do as well.
func TestAnyPacketConn(t *testing.T) {
	dir := t.TempDir()
	p, err := net.ListenPacket("unixgram", dir+"/server")
	require.NoError(t, err)
	c, err := net.ListenPacket("unixgram", dir+"/client")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	s := newServer(t, discoverytest.New(discoverytest.Nodes(1)...))
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), []net.PacketConn{p}, nil) }()
	q := new(mdns.Msg)
	q.SetQuestion("node1.node.shoal.", mdns.TypeA)
	raw, err := q.Pack()
	require.NoError(t, err)
	_, err = c.WriteTo(raw, p.LocalAddr())
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	b := make([]byte, 512)
	n, _, err := c.ReadFrom(b)
	require.NoError(t, err)
	var a mdns.Msg
	require.NoError(t, a.Unpack(b[:n]))
	require.Equal(t, []string{"node1.node.shoal. 0 IN A 192.0.2.1"}, render(&a))
	// A socket that somebody else closed is an error, not a silent end.
	require.NoError(t, p.Close())
	require.ErrorIs(t, <-done, net.ErrClosed)
}
