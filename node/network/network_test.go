package network

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContainersReachEachOther(t *testing.T) {
	h := newTestHost(t)
	n := h.network(t, Config{})
	a, b := connect(t, n, "a"), connect(t, n, "b")
	serve(t, b.NetnsPath, ":80")
	requireAnswer(t, a.NetnsPath, b.Address.Addr().String()+":80", a.Address.Addr().String())
	requireAnswer(t, h.path, b.Address.Addr().String()+":80", "10.77.3.1")
	require.Equal(t, macOf(a.Address.Addr()), a.MAC)
}

func TestPublishedPort(t *testing.T) {
	h, outside := newTestHost(t), newTestHost(t)
	cable(t, h, outside, "lan", "192.168.50.1/24", "192.168.50.2/24")
	n := h.network(t, Config{})
	a, b := connect(t, n, "a", tcp(8080, 80)), connect(t, n, "b")
	serve(t, a.NetnsPath, ":80")

	t.Run("keeps the client's address", func(t *testing.T) {
		requireAnswer(t, outside.path, "192.168.50.1:8080", "192.168.50.2")
	})
	t.Run("answers the host", func(t *testing.T) {
		requireAnswer(t, h.path, "192.168.50.1:8080", "192.168.50.1")
		requireAnswer(t, h.path, "10.77.3.1:8080", "10.77.3.1")
	})
	t.Run("answers the host's loopback", func(t *testing.T) {
		requireAnswer(t, h.path, "127.0.0.1:8080", "10.77.3.1")
	})
	t.Run("answers another container", func(t *testing.T) {
		requireAnswer(t, b.NetnsPath, "192.168.50.1:8080", "10.77.3.1")
		requireAnswer(t, b.NetnsPath, "10.77.3.1:8080", "10.77.3.1")
	})
	t.Run("answers the container itself", func(t *testing.T) {
		requireAnswer(t, a.NetnsPath, "192.168.50.1:8080", "10.77.3.1")
	})
}
