package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

// upstream is a name server on loopback that answers with what f makes of a question.
func upstream(t *testing.T, f mdns.HandlerFunc) string {
	t.Helper()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	l, err := net.Listen("tcp4", p.LocalAddr().String())
	require.NoError(t, err)
	for _, srv := range []*mdns.Server{{PacketConn: p, Handler: f}, {Listener: l, Handler: f}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		done := make(chan error, 1)
		go func() { done <- srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			require.NoError(t, srv.Shutdown())
			require.NoError(t, <-done)
		})
	}
	return p.LocalAddr().String()
}

func TestForward(t *testing.T) {
	var asked atomic.Int32
	up := upstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		asked.Add(1)
		m := new(mdns.Msg)
		m.SetReply(q)
		rr, _ := mdns.NewRR(q.Question[0].Name + " 300 IN A 198.51.100.7")
		m.Answer = append(m.Answer, rr)
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok && q.Question[0].Name == "big.example." {
			m.Answer, m.Truncated = nil, true
		}
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	})
	// The first upstream is dead: nothing listens there.
	gone, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	s := newServer(t, sample(), gone.LocalAddr().String(), up)
	udp, tcp := listen(t, s)

	for _, name := range []string{"example.org.", "nobody.", "8.8.8.8.in-addr.arpa."} {
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		a, _, err := (&mdns.Client{}).Exchange(m, udp)
		require.NoError(t, err)
		require.Equal(t, []string{name + " 300 IN A 198.51.100.7"}, render(a))
	}
	m := new(mdns.Msg)
	m.SetQuestion("big.example.", mdns.TypeA)
	a, _, err := (&mdns.Client{}).Exchange(m, udp)
	require.NoError(t, err)
	require.True(t, a.Truncated)
	a, _, err = (&mdns.Client{Net: "tcp"}).Exchange(m, tcp)
	require.NoError(t, err)
	require.False(t, a.Truncated)
	require.Len(t, a.Answer, 1)
	require.EqualValues(t, 5, asked.Load())
}

func TestOursIsNeverForwarded(t *testing.T) {
	s := newServer(t, sample(), "192.0.2.53")
	s.dial = func(context.Context, string, string) (net.Conn, error) {
		t.Error("asked upstream")
		return nil, errors.New("no")
	}
	for _, name := range []string{
		"web.", "web.shoal.", "nobody.shoal.", "a.b.c.tag.shoal.", "_9._tcp.web.", "9.1.77.10.in-addr.arpa.", "shoal.",
	} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeHTTPS} {
			ask(t, s, name, qtype)
		}
	}
}

// blackHole is a dial function whose connections are never answered.
func blackHole(dials *atomic.Int32) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		dials.Add(1)
		here, there := net.Pipe()
		go func() {
			b := make([]byte, 512)
			for {
				if _, err := there.Read(b); err != nil {
					return
				}
			}
		}()
		return here, nil
	}
}

func TestSilentUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		s := newServer(t, discoverytest.New(), "192.0.2.53", "192.0.2.54")
		s.dial = blackHole(&dials)
		start := time.Now()
		code, _ := ask(t, s, "example.org.", mdns.TypeA)
		require.Equal(t, "SERVFAIL", code)
		require.Equal(t, 2*upstreamTimeout, time.Since(start))
		require.EqualValues(t, 2, dials.Load())
	})
}

// A server whose upstream leads back to itself asks once and gives up in time.
func TestLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		s := newServer(t, discoverytest.New(), "192.0.2.53")
		s.dial = func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				b := make([]byte, 512)
				n, err := there.Read(b)
				if err != nil {
					return
				}
				if _, err := there.Write(s.Handle(t.Context(), b[:n], false)); err != nil {
					return
				}
			}()
			return here, nil
		}
		start := time.Now()
		code, _ := ask(t, s, "example.org.", mdns.TypeA)
		require.Equal(t, "SERVFAIL", code)
		require.Equal(t, upstreamTimeout, time.Since(start))
		require.EqualValues(t, 1, dials.Load())
	})
}

func TestForgeriesAreIgnored(t *testing.T) {
	q := new(mdns.Msg)
	q.SetQuestion("example.org.", mdns.TypeA)
	raw, err := q.Pack()
	require.NoError(t, err)
	reply := func(f func(*mdns.Msg)) []byte {
		m := new(mdns.Msg)
		m.SetReply(q)
		f(m)
		b, err := m.Pack()
		require.NoError(t, err)
		return b
	}
	require.True(t, answers(raw, reply(func(*mdns.Msg) {})))
	require.True(t, answers(raw, reply(func(m *mdns.Msg) { m.Question = nil })))
	require.False(t, answers(raw, reply(func(m *mdns.Msg) { m.Id++ })))
	require.False(t, answers(raw, reply(func(m *mdns.Msg) { m.Response = false })))
	require.False(t, answers(raw, reply(func(m *mdns.Msg) { m.Question[0].Name = "example.com." })))
	require.False(t, answers(raw, raw[:11]))
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{Domain: "a b"}, {Domain: "x..y"}, {Upstream: []string{"example.org"}}, {Upstream: []string{"192.0.2.1:x"}},
		{Upstream: []string{"192.0.2.1:0"}}, {Upstream: []string{"ns.example.org:53"}},
	} {
		c.Reader, c.Logger = discoverytest.New(), quiet()
		_, err := New(c)
		require.Error(t, err, "%+v", c)
	}
	s, err := New(Config{Reader: discoverytest.New(), Logger: quiet(), Domain: "Lab.Shoal.", Upstream: []string{"192.0.2.1", "::1", "[::1]:54"}})
	require.NoError(t, err)
	require.Equal(t, "lab.shoal.", s.domain)
	require.Equal(t, []string{"192.0.2.1:53", "[::1]:53", "[::1]:54"}, *s.upstream.Load())
}

func TestOwnSocketsAreNoUpstream(t *testing.T) {
	s := newServer(t, discoverytest.New(), "127.0.0.1:5353", "127.0.0.2:5353", "192.0.2.1:53")
	p := fakeAddr{netip.MustParseAddrPort("127.0.0.1:5353")}
	s.leaveOut([]net.PacketConn{p}, nil)
	require.Equal(t, []string{"127.0.0.2:5353", "192.0.2.1:53"}, *s.upstream.Load())
	s.leaveOut([]net.PacketConn{fakeAddr{netip.MustParseAddrPort("0.0.0.0:5353")}}, nil)
	require.Equal(t, []string{"192.0.2.1:53"}, *s.upstream.Load())
}

type fakeAddr struct{ at netip.AddrPort }

func (f fakeAddr) LocalAddr() net.Addr                  { return net.UDPAddrFromAddrPort(f.at) }
func (fakeAddr) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, net.ErrClosed }
func (fakeAddr) WriteTo([]byte, net.Addr) (int, error)  { return 0, net.ErrClosed }
func (fakeAddr) Close() error                           { return nil }
func (fakeAddr) SetDeadline(time.Time) error            { return nil }
func (fakeAddr) SetReadDeadline(time.Time) error        { return nil }
func (fakeAddr) SetWriteDeadline(time.Time) error       { return nil }

// Whatever comes, an answer is readable, belongs to the question, and what quick
// answers slow answers alike.
func FuzzHandle(f *testing.F) {
	for _, name := range []string{"web.", "WEB.shoal.", "app.web.tag.shoal.", "_80._tcp.web.", "2.1.77.10.in-addr.arpa.", "x."} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeANY} {
			m := new(mdns.Msg)
			m.SetQuestion(name, qtype)
			raw, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw, false)
			m.SetEdns0(1400, qtype == mdns.TypeSRV)
			if raw, err = m.Pack(); err != nil {
				f.Fatal(err)
			}
			f.Add(raw, true)
		}
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, false)
	s := newServer(f, sample())
	s.refresh()
	f.Fuzz(func(t *testing.T, raw []byte, stream bool) {
		out, forward := s.answer(nil, raw, stream)
		if forward {
			t.Fatal("forwarded without an upstream")
		}
		if len(out) == 0 {
			if len(raw) >= 12 && raw[2]&0x80 == 0 {
				t.Fatalf("no answer to %x", raw)
			}
			return
		}
		var a mdns.Msg
		if err := a.Unpack(out); err != nil {
			t.Fatalf("%x is answered by unreadable %x: %v", raw, out, err)
		}
		if !a.Response || a.Id != binary.BigEndian.Uint16(raw) {
			t.Fatalf("%x is not answered by %x", raw, out)
		}
		quick, ok := s.quick(nil, raw, stream)
		if !ok {
			return
		}
		slow, _ := s.slow(nil, raw, stream)
		var b, c mdns.Msg
		if err := errors.Join(b.Unpack(quick), c.Unpack(slow)); err != nil {
			t.Fatal(err)
		}
		require.Equal(t, c.MsgHdr, b.MsgHdr)
		require.Equal(t, c.Question, b.Question)
		require.ElementsMatch(t, render(&c), render(&b))
		require.Equal(t, c.IsEdns0(), b.IsEdns0())
	})
}

func FuzzUpstreamAnswer(f *testing.F) {
	q := new(mdns.Msg)
	q.SetQuestion("example.org.", mdns.TypeA)
	raw, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, raw)
	f.Add(raw, append([]byte{raw[0], raw[1], 0x80}, raw[3:]...))
	f.Add([]byte{}, []byte{12: 63})
	f.Fuzz(func(t *testing.T, question, answer []byte) {
		if len(question) < 12 || !answers(question, answer) {
			return
		}
		if answer[2]&0x80 == 0 || answer[0] != question[0] || answer[1] != question[1] {
			t.Fatalf("%x passes for an answer to %x", answer, question)
		}
	})
}
