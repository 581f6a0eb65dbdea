package dns

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"
)

// udpSize is the most we send in one packet: what passes everywhere unfragmented.
const udpSize = 1232

// slow answers any question; quick does the usual ones.
func (s *Server) slow(out, raw []byte, stream bool) (answer []byte, forward bool) {
	if len(raw) < 12 || raw[2]&0x80 != 0 {
		return nil, false // an answer to an answer would be a loop
	}
	var q mdns.Msg
	if err := q.Unpack(raw); err != nil {
		return fail(raw, mdns.RcodeFormatError), false
	}
	m := new(mdns.Msg)
	m.SetReply(&q)
	m.RecursionAvailable = len(*s.upstream.Load()) > 0
	size := mdns.MaxMsgSize
	if !stream {
		size = mdns.MinMsgSize
	}
	opt := q.IsEdns0()
	if opt != nil {
		m.SetEdns0(udpSize, false)
		if !stream {
			size = max(mdns.MinMsgSize, min(int(opt.UDPSize()), udpSize))
		}
	}
	switch {
	case q.Opcode != mdns.OpcodeQuery:
		m.Rcode = mdns.RcodeNotImplemented
	case len(q.Question) != 1:
		m.Rcode = mdns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		m.Rcode = mdns.RcodeBadVers
	case q.Question[0].Qclass != mdns.ClassINET || transfer(q.Question[0].Qtype):
		m.Rcode = mdns.RcodeRefused
	default:
		if s.resolve(m, q.Question[0]) {
			return nil, true
		}
	}
	m.Truncate(size)
	packed, err := m.PackBuffer(out)
	if err != nil {
		s.log.Error("pack an answer", "question", q.Question, "err", err)
		return fail(raw, mdns.RcodeServerFailure), false
	}
	return packed, false
}

func transfer(qtype uint16) bool { return qtype == mdns.TypeAXFR || qtype == mdns.TypeIXFR }

// resolve fills in the answer to one question, or says that it is for upstream.
func (s *Server) resolve(m *mdns.Msg, q mdns.Question) (forward bool) {
	name := strings.ToLower(q.Name)
	x, e := s.lookup(name)
	ours := mdns.IsSubDomain(s.domain, name) || x.owns(name)
	if e == nil {
		ts, known := x.service(name)
		if len(ts) > 0 {
			e = &entry{targets: ts}
		}
		ours = ours || known
	}
	switch {
	case e != nil:
		m.Authoritative = true
		s.records(m, q, e)
		if len(m.Answer) == 0 {
			m.Ns = []mdns.RR{s.soa(x)}
		}
	case ours:
		m.Authoritative = true
		m.Rcode = mdns.RcodeNameError
		m.Ns = []mdns.RR{s.soa(x)}
	case len(*s.upstream.Load()) == 0:
		m.Rcode = mdns.RcodeNameError
	default:
		return true
	}
	return false
}

// records adds what the entry has of the type asked for.
func (s *Server) records(m *mdns.Msg, q mdns.Question, e *entry) {
	head := func(t uint16) mdns.RR_Header {
		return mdns.RR_Header{Name: q.Name, Rrtype: t, Class: mdns.ClassINET}
	}
	want := func(t uint16) bool { return q.Qtype == t || q.Qtype == mdns.TypeANY }
	if want(mdns.TypeA) || want(mdns.TypeAAAA) {
		for _, a := range append(shuffled(e.v4), shuffled(e.v6)...) {
			if rr := address(q.Name, a); want(rr.Header().Rrtype) {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	if want(mdns.TypeSRV) {
		known := map[string]bool{}
		for _, t := range shuffled(e.targets) {
			m.Answer = append(m.Answer, &mdns.SRV{Hdr: head(mdns.TypeSRV), Weight: 1, Port: t.at, Target: t.host})
			if !known[t.host] {
				known[t.host] = true
				m.Extra = append(m.Extra, address(t.host, t.addr))
			}
		}
	}
	if want(mdns.TypePTR) && e.ptr != "" {
		m.Answer = append(m.Answer, &mdns.PTR{Hdr: head(mdns.TypePTR), Ptr: e.ptr})
	}
	if want(mdns.TypeSOA) && strings.EqualFold(q.Name, s.domain) {
		m.Answer = append(m.Answer, s.soa(s.current.Load()))
	}
}

func address(name string, a netip.Addr) mdns.RR {
	h := mdns.RR_Header{Name: name, Rrtype: mdns.TypeAAAA, Class: mdns.ClassINET}
	if a = a.Unmap(); a.Is6() {
		return &mdns.AAAA{Hdr: h, AAAA: a.AsSlice()}
	}
	h.Rrtype = mdns.TypeA
	return &mdns.A{Hdr: h, A: a.AsSlice()}
}

// soa says that what isn't there isn't there now: nothing of it may be kept.
func (s *Server) soa(x *index) mdns.RR {
	primary := "node." + s.domain
	if n, ok := s.reader.View().Node(s.self); ok {
		if name, ok := hostname(n.Name); ok {
			primary = name + ".node." + s.domain
		}
	}
	return &mdns.SOA{
		Hdr: mdns.RR_Header{Name: s.domain, Rrtype: mdns.TypeSOA, Class: mdns.ClassINET},
		Ns:  primary, Mbox: "hostmaster." + s.domain, Serial: uint32(x.version),
		Refresh: 60, Retry: 60, Expire: 60,
	}
}

func shuffled[T any](in []T) []T {
	out := append([]T(nil), in...)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
