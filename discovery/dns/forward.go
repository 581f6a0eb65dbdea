package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	mdns "github.com/miekg/dns"
)

// upstreamTimeout is how long one upstream server is waited for; it is shorter
// than the five seconds after which a C library asks again.
const upstreamTimeout = 2 * time.Second

// upstreamAddress completes an upstream's address with the port.
func upstreamAddress(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53).String(), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("upstream %q: want ADDRESS or ADDRESS:PORT", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	a, hostErr := netip.ParseAddr(host)
	if err != nil || hostErr != nil || n == 0 {
		return "", fmt.Errorf("upstream %q: want ADDRESS or ADDRESS:PORT", s)
	}
	return netip.AddrPortFrom(a, uint16(n)).String(), nil
}

// leaveOut drops upstream servers that are the sockets we serve on.
func (s *Server) leaveOut(packets []net.PacketConn, listeners []net.Listener) {
	var own []net.Addr
	for _, p := range packets {
		own = append(own, p.LocalAddr())
	}
	for _, l := range listeners {
		own = append(own, l.Addr())
	}
	others := slices.DeleteFunc(slices.Clone(*s.upstream.Load()), func(u string) bool {
		up := netip.MustParseAddrPort(u) // upstreamAddress wrote it
		self := slices.ContainsFunc(own, func(a net.Addr) bool { return leadsTo(up, a) })
		if self {
			s.log.Warn("leave out an upstream name server that is this one", "upstream", u)
		}
		return self
	})
	s.upstream.Store(&others)
}

// leadsTo says whether packets to up arrive at a socket bound to own.
func leadsTo(up netip.AddrPort, own net.Addr) bool {
	at, err := netip.ParseAddrPort(own.String())
	if err != nil || at.Port() != up.Port() {
		return false
	}
	ip := at.Addr().Unmap()
	return ip == up.Addr().Unmap() || ip.IsUnspecified() && up.Addr().IsLoopback()
}

// forward asks upstream. Questions that are alike share one answer, which also
// ends loops: a question that comes back from upstream waits for itself until the
// time is up instead of going round again.
func (s *Server) forward(ctx context.Context, raw []byte, stream bool) []byte {
	network := "udp"
	if stream {
		network = "tcp"
	}
	raw = bytes.Clone(raw) // the flight may outlast this call
	result := s.flights.DoChan(network+string(raw[2:]), func() (any, error) {
		return s.ask(ctx, network, raw)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			s.log.Debug("ask upstream", "err", r.Err)
			return fail(raw, mdns.RcodeServerFailure)
		}
		answer := bytes.Clone(r.Val.([]byte))
		copy(answer, raw[:2])
		return answer
	case <-ctx.Done():
		return nil
	}
}

// ask tries one upstream server after another.
func (s *Server) ask(ctx context.Context, network string, raw []byte) ([]byte, error) {
	var errs []error
	for _, u := range *s.upstream.Load() {
		answer, err := s.exchange(ctx, network, u, raw)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("upstream %s: %w", u, err))
	}
	return nil, errors.Join(errs...)
}

func (s *Server) exchange(ctx context.Context, network, address string, raw []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	c, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	question := bytes.Clone(raw)
	binary.BigEndian.PutUint16(question, uint16(rand.Uint32()))
	if network == "tcp" {
		if err := writeMessage(c, question); err != nil {
			return nil, err
		}
		answer, err := readMessage(c)
		if err == nil && !answers(question, answer) {
			err = errors.New("answered another question")
		}
		return answer, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	b := make([]byte, mdns.MaxMsgSize)
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		// Anything else may be a stray packet or a forgery: the answer may still come.
		if answers(question, b[:n]) {
			return bytes.Clone(b[:n]), nil
		}
	}
}

// answers says whether a message answers the question.
func answers(question, answer []byte) bool {
	if len(answer) < 12 || answer[0] != question[0] || answer[1] != question[1] || answer[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(answer[4:]) == 0 {
		return true // errors may leave the question out
	}
	end := questionEnd(question)
	return end > 0 && end == questionEnd(answer) && bytes.EqualFold(question[12:end], answer[12:end])
}

// questionEnd is where the first question of a message ends, or 0. Its name is
// never compressed, for there is nothing before it to point at.
func questionEnd(b []byte) int {
	for at := 12; at < len(b) && b[at] <= 63; at += 1 + int(b[at]) {
		if b[at] == 0 {
			if at+5 > len(b) {
				return 0
			}
			return at + 5
		}
	}
	return 0
}
