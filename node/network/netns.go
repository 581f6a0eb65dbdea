package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNetns is the network namespace of the calling thread; /proc/self would be that of
// the process's first thread.
const threadNetns = "/proc/thread-self/ns/net"

// host is the network namespace a Network works in.
type host struct {
	ns *os.File // nil: the process's own
}

func openHost(path string) (host, error) {
	if path == "" {
		return host{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return host{}, fmt.Errorf("open network namespace: %w", err)
	}
	return host{ns: f}, nil
}

func (h host) close() {
	if h.ns != nil {
		h.ns.Close()
	}
}

// do runs f on a thread that is in the namespace. Sockets opened by f stay there.
func (h host) do(f func() error) error {
	if h.ns == nil {
		return f()
	}
	return inNamespace(h.ns, f)
}

// inNamespace runs f on a thread of its own in a network namespace.
func inNamespace(ns *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// inPinned runs f on a thread of its own in a pinned network namespace.
func inPinned(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return inNamespace(ns, f)
}

// onOwnThread runs f on a thread that nothing else uses, before or after: the thread ends
// with f, so a namespace f entered can't leak. The process's first thread is spared, as it
// can't end and as /proc/self and /proc/net speak of its namespaces.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onOwnThread(f) // cannot be this thread again: it is locked here
			runtime.UnlockOSThread()
			return
		}
		done <- f() // never unlocked
	}()
	return <-done
}

// makeNetns makes a network namespace, pins it at path and runs setup on a thread inside,
// with the namespace's file. If setup fails nothing is left.
func makeNetns(path string, setup func(ns *os.File) error) error {
	return onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		ns, err := os.Open(threadNetns)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		defer ns.Close()
		if err := pin(path); err != nil {
			return err
		}
		if err := setup(ns); err != nil {
			return errors.Join(err, unpin(path))
		}
		return nil
	})
}

// pin bind-mounts the calling thread's network namespace.
func pin(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(threadNetns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("pin network namespace: %w", err)
	}
	return nil
}

// unpin lets go of a network namespace; a path that is gone is no error.
func unpin(path string) error {
	// EINVAL: a file nothing is mounted on, from a crash between the two steps of pin.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.ENOENT && err != unix.EINVAL {
		return fmt.Errorf("unpin %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// pinned reports whether a namespace is pinned at path.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// pins lists what is in the directory of pins.
func pins(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("list pinned namespaces: %w", err)
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths, nil
}

// openHandle opens netlink sockets in the calling thread's namespace.
func openHandle(families ...int) (*netlink.Handle, error) {
	h, err := netlink.NewHandle(families...)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// sysctl sets a kernel parameter of the calling thread's network namespace. key is the path
// below /proc/sys/net.
func sysctl(key, value string) error {
	path := filepath.Join("/proc/sys/net", key)
	if b, err := os.ReadFile(path); err == nil && string(b) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}
