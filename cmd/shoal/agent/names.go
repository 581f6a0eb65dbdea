package agent

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/shoal-engine/shoal/discovery/dns"
)

// serveNames answers name look-ups of the host and of its containers until ctx
// ends. When the containers' gateway moves, the sockets move with it.
func (a *Agent) serveNames(ctx context.Context) error {
	if err := a.network.Setup(ctx); err != nil {
		a.log.Warn("containers have no network of their own here; --network host works", "err", err)
	}
	upstream := a.cfg.DNS.Upstream
	if upstream == nil {
		upstream = hostResolvers("/etc/resolv.conf")
	}
	srv, err := dns.New(dns.Config{Reader: a.front, Self: a.id, Domain: a.cfg.DNS.Domain, Upstream: upstream, Logger: a.log})
	if err != nil {
		return fmt.Errorf("the name server: %w", err)
	}
	gateway := a.network.Info().Gateway
	for ctx.Err() == nil {
		serving, stop := context.WithCancel(ctx)
		packets, listeners := a.nameSockets(gateway)
		done := make(chan error, 1)
		go func() { done <- srv.Serve(serving, packets, listeners) }()
		select {
		case gateway = <-a.gateway:
		case <-ctx.Done():
		case err = <-done:
			done <- err
		}
		stop()
		if err := <-done; err != nil && serving.Err() == nil {
			return fmt.Errorf("the name server: %w", err)
		}
	}
	return nil
}

// nameSockets opens what can be opened: a port 53 that somebody else has is no
// reason not to run.
func (a *Agent) nameSockets(gateway netip.Addr) (packets []net.PacketConn, listeners []net.Listener) {
	addrs := a.cfg.DNS.Listen
	if gateway.IsValid() && a.network.Degraded() == nil {
		addrs = append([]string{netip.AddrPortFrom(gateway, 53).String()}, addrs...)
	}
	for _, addr := range addrs {
		p, err := net.ListenPacket("udp", addr)
		if err != nil {
			a.log.Warn("names are not served here; set dns.listen to another address", "address", addr, "err", err)
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			p.Close()
			a.log.Warn("names are not served here; set dns.listen to another address", "address", addr, "err", err)
			continue
		}
		packets, listeners = append(packets, p), append(listeners, l)
	}
	return packets, listeners
}

// hostResolvers reads the servers that the host itself asks.
func hostResolvers(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan() && len(out) < 3; {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(addr, 53).String())
		}
	}
	return out
}
