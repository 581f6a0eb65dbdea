package libcontainer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// unknownExit is the code of a process whose own nobody can tell.
const unknownExit = 255

// socketPair makes two connected sockets, one for a child.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console"), nil
}

// receiveFile takes the file that was sent over a socket, ready to be waited for
// with all others.
func receiveFile(socket *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("recvmsg: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	if len(messages) != 1 {
		return nil, errors.New("no file came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("parse rights: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("set nonblock: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// foreignExit is the exit code of an ended process that is not our child: from the
// kernel if it was reaped (6.15 and newer), or else from its remains.
func foreignExit(pid int, pidfd *os.File) int {
	code := unknownExit
	if raw, err := pidfd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
			if err := unix.IoctlPidfdInfo(int(fd), &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
				code = exitCode(syscall.WaitStatus(info.Exit_code))
			}
		})
	}
	if code != unknownExit {
		return code
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return unknownExit
	}
	// The name may hold spaces; the state is the third field, the code the 52nd.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 50 || fields[0] != "Z" {
		return unknownExit
	}
	status, err := strconv.Atoi(fields[49])
	if err != nil {
		return unknownExit
	}
	return exitCode(syscall.WaitStatus(status))
}
