package p2p

import (
	"context"
	"errors"
	"net"
	"syscall"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

const (
	// congestion is the kernel's control that keeps queues on the way short. The usual
	// one fills them until something is lost, and whatever else takes the same way waits
	// in them.
	congestion = "bbr"
	// unsent is how much a connection may hold that the kernel hasn't sent yet.
	unsent = 128 << 10
	// bulkPriority is the kernel's for what can wait (TC_PRIO_BULK): this host's own
	// queues send it after the rest, if they know of priorities.
	bulkPriority = 2
)

// background sets a connection up to give way to others. What the kernel doesn't know is
// left out.
func background(c net.Conn) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return errors.New("not a socket")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, bulkPriority),
		)
	})
	return errors.Join(err, failed)
}

// backgrounder sets up the connections that are upgraded.
type backgrounder struct {
	transport.Upgrader
	h *Host
}

func (b backgrounder) set(c manet.Conn) {
	if err := background(c); err != nil {
		b.h.log.Debug("set a connection up for the background", "addr", c.RemoteMultiaddr().String(), "err", err)
	}
}

// Upgrade sees connections that this host opens.
func (b backgrounder) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	b.set(c)
	return b.Upgrader.Upgrade(ctx, t, keepWindow(c, b.h.sending), dir, p, scope)
}

// GateMaListener sees where others open them.
func (b backgrounder) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return b.Upgrader.GateMaListener(backgroundListener{l, b})
}

type backgroundListener struct {
	manet.Listener
	b backgrounder
}

func (l backgroundListener) Accept() (manet.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.b.set(c)
	return keepWindow(c, l.b.h.sending), nil
}
