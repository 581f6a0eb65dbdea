package network

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func BenchmarkConnect(b *testing.B) {
	for name, ports := range map[string][]Publish{"plain": nil, "published": {tcp(0, 80)}} {
		for _, pooled := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/pooled=%t", name, pooled), func(b *testing.B) {
				h := newTestHost(b)
				n := h.network(b, Config{Pool: -1})
				ctx := context.Background()
				for b.Loop() {
					if pooled {
						b.StopTimer()
						p, err := n.prepare(netip.Addr{}, nil)
						require.NoError(b, err)
						n.keep(p)
						b.StartTimer()
					}
					_, err := n.Connect(ctx, Request{ContainerID: "c", Mode: "bridge", Ports: ports})
					require.NoError(b, err)
					b.StopTimer()
					require.NoError(b, n.Disconnect(ctx, "c"))
					b.StartTimer()
				}
			})
		}
	}
}

func BenchmarkDisconnect(b *testing.B) {
	h := newTestHost(b)
	n := h.network(b, Config{Pool: -1})
	ctx := context.Background()
	for b.Loop() {
		b.StopTimer()
		_, err := n.Connect(ctx, Request{ContainerID: "c", Mode: "bridge"})
		require.NoError(b, err)
		b.StartTimer()
		require.NoError(b, n.Disconnect(ctx, "c"))
	}
}
