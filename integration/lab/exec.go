package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Enter replaces this process by a command in node n's network: its namespace,
// its resolv.conf, its /sys. It returns only if that fails.
func (l *Lab) Enter(n int, argv []string) error {
	if err := l.known(n); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	// The thread stays locked: exec makes it the process.
	runtime.LockOSThread()
	if err := setns(l.netns(n)); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach the mounts: %w", err)
	}
	// /sys shows the network of whoever mounted it.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return fmt.Errorf("find /etc/resolv.conf: %w", err)
	}
	if err := unix.Mount(filepath.Join(l.nodeDir(n), "resolv.conf"), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("put node %d's resolv.conf in place: %w", n, err)
	}
	return fmt.Errorf("run %s: %w", argv[0], unix.Exec(path, argv, os.Environ()))
}

// startIn starts a command in the namespace pinned at path.
func startIn(path string, cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := setns(path); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", path, err)
	}
	return nil
}

// Namespace is a network namespace beside a lab, for peers to be measured in.
type Namespace struct{ path string }

// NewNamespace makes a namespace, pinned at path, whose loopback is up.
func NewNamespace(path string) (*Namespace, error) {
	if err := pinNamespace(path); err != nil {
		return nil, err
	}
	h, ns, err := inside(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	return &Namespace{path}, nil
}

// Start starts a command in the namespace.
func (n *Namespace) Start(cmd *exec.Cmd) error { return startIn(n.path, cmd) }

// Close lets the namespace go.
func (n *Namespace) Close() error { return unpinNamespace(n.path) }
