package server

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unread says whether the other end of a connection has bytes yet to read (on a
// unix socket) or to acknowledge (on TCP).
func unread(conn net.Conn) bool {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = control.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = v
		}
	})
	return err == nil && n > 0
}

// settle waits until the client has read the head of the answer, for a second at
// the most. docker-py reads the head through a buffer that it then forgets, with
// whatever output came in the same packet.
func settle(conn net.Conn) {
	deadline := time.NewTimer(time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for unread(conn) {
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}
