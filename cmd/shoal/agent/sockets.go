package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// listen makes a unix socket that root, and the group if there is one, may use. A
// socket left behind by an agent that died is replaced; one that answers is not.
func listen(path, group string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("somebody serves %s already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the socket: %w", err)
	}
	// The mask makes the socket private from its first moment; this is start-up,
	// nothing else makes files meanwhile.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if group == "" {
		return l, nil
	}
	gid, err := groupID(group)
	if err == nil {
		err = errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660))
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("give %s to group %s: %w", path, group, err)
	}
	return l, nil
}
