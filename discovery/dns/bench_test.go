package dns

import (
	"fmt"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery/discoverytest"
)

func packed(b *testing.B, name string, qtype uint16) []byte {
	b.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(name, qtype)
	raw, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func BenchmarkHandle(b *testing.B) {
	s := newServer(b, crowd(10_000))
	s.refresh()
	for _, c := range []struct {
		name  string
		qtype uint16
	}{{"c77.shoal.", mdns.TypeA}, {"c77.shoal.", mdns.TypeAAAA}, {"nobody.shoal.", mdns.TypeA}, {"_80._tcp.c77.shoal.", mdns.TypeSRV}} {
		b.Run(c.name+mdns.TypeToString[c.qtype], func(b *testing.B) {
			raw, out := packed(b, c.name, c.qtype), make([]byte, 0, udpSize)
			b.ReportAllocs()
			for b.Loop() {
				if a, _ := s.answer(out, raw, false); len(a) < 12 {
					b.Fatal("no answer")
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}

// Askers keep a window of questions in flight over a real socket, in this process:
// they cost more than the server does.
func BenchmarkUDP(b *testing.B) {
	s := newServer(b, crowd(10_000))
	s.refresh()
	udp, _ := listen(b, s)
	raw := packed(b, "c77.shoal.", mdns.TypeA)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("udp4", udp)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a lost packet must not hang
			b.Error(err)
			return
		}
		in := make([]byte, 512)
		const window = 32
		for more := true; more; {
			sent := 0
			for ; sent < window && pb.Next(); sent++ {
				if _, err := c.Write(raw); err != nil {
					b.Error(err)
					return
				}
			}
			more = sent == window
			for range sent {
				if _, err := c.Read(in); err != nil {
					b.Error(err)
					return
				}
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		cat := discoverytest.New(discoverytest.Nodes(2)...)
		var cs []catalog.Container
		for i := range n {
			cs = append(cs, discoverytest.Running(fmt.Sprintf("c%d", i), "id1", fmt.Sprintf("10.77.%d.%d", i>>8, i&255),
				map[string]string{"com.docker.compose.project": "p", "com.docker.compose.service": fmt.Sprint(i), "tier": "x"},
				catalog.Port{ContainerPort: 80}))
		}
		cat.Put(cs...)
		v := cat.View()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if x := build(v, "shoal."); len(x.names) < n {
					b.Fatal("names are missing")
				}
			}
		})
	}
}
