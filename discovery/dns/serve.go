package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// readers is how many goroutines read each packet socket.
const readers = 2

// addrPortConn is what a *net.UDPConn offers over a PacketConn: addresses that
// cost no allocation.
type addrPortConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
}

// servePackets answers what comes from one packet socket until it is closed.
func (s *Server) servePackets(ctx context.Context, p net.PacketConn, g *errgroup.Group) error {
	fast, isFast := p.(addrPortConn)
	in, out := make([]byte, mdns.MaxMsgSize), make([]byte, 0, udpSize)
	var pause backoff
	for {
		var n int
		var from netip.AddrPort
		var peer net.Addr
		var err error
		if isFast {
			n, from, err = fast.ReadFromUDPAddrPort(in)
		} else {
			n, peer, err = p.ReadFrom(in)
		}
		if err != nil {
			if err := pause.after(ctx, err); err != nil {
				return err
			}
			continue
		}
		pause.reset()
		reply := func(b []byte) {
			if len(b) == 0 {
				return
			}
			var err error
			if isFast {
				_, err = fast.WriteToUDPAddrPort(b, from)
			} else {
				_, err = p.WriteTo(b, peer)
			}
			if err != nil && ctx.Err() == nil {
				s.log.Debug("send an answer", "err", err)
			}
		}
		answer, forward := s.answer(out[:0], in[:n], false)
		if !forward {
			reply(answer)
			continue
		}
		s.later(g, in[:n], func(raw []byte) { reply(s.forward(ctx, raw, false)) }, reply)
	}
}

// later has a question answered by another goroutine, or refuses it when too many wait.
func (s *Server) later(g *errgroup.Group, raw []byte, do, reply func([]byte)) {
	select {
	case s.forwarding <- struct{}{}:
	default:
		reply(fail(raw, mdns.RcodeServerFailure))
		return
	}
	raw = append([]byte(nil), raw...)
	g.Go(func() error {
		defer func() { <-s.forwarding }()
		do(raw)
		return nil
	})
}

// serveListener answers connections until the listener is closed.
func (s *Server) serveListener(ctx context.Context, l net.Listener, g *errgroup.Group) error {
	free := make(chan struct{}, maxConns)
	var pause backoff
	for {
		c, err := l.Accept()
		if err != nil {
			if err := pause.after(ctx, err); err != nil {
				return err
			}
			continue
		}
		pause.reset()
		select {
		case free <- struct{}{}:
		default:
			c.Close()
			continue
		}
		g.Go(func() error {
			defer func() { <-free }()
			s.serveConn(ctx, c)
			return nil
		})
	}
}

// serveConn answers one connection's questions one after another.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	for {
		if c.SetDeadline(time.Now().Add(idleConn)) != nil {
			return
		}
		raw, err := readMessage(c)
		if err != nil {
			return // the asker went away, or never was one
		}
		answer := s.Handle(ctx, raw, true)
		if len(answer) == 0 || writeMessage(c, answer) != nil {
			return
		}
	}
}

// readMessage reads one message with its length in front.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(b)+2), uint16(len(b))), b...))
	return err
}

// backoff outlasts errors of a socket that pass, such as too many open files.
type backoff struct{ d time.Duration }

func (b *backoff) reset() { b.d = 0 }

// after waits longer after each error in a row. It returns an error once the
// socket is closed or ctx ended.
func (b *backoff) after(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	b.d = min(max(2*b.d, 5*time.Millisecond), time.Second)
	select {
	case <-time.After(b.d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
