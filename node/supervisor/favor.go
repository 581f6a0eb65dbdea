package supervisor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// FavorDynMods makes the host's cgroup v2 hierarchy quick to move processes into,
// at the price of slower forks and exits: with it, starting a container no longer
// waits some 10 ms for a grace period of the kernel. It changes the whole host until
// its reboot, so nothing does it unasked. That a kernel before 6.0 knows no such thing is no
// error, nor is a host without cgroup v2.
func FavorDynMods() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return fmt.Errorf("find cgroup v2: %w", err)
	}
	if len(mounts) == 0 {
		return nil
	}
	m := mounts[0]
	flags, data := remountOptions(m.Options, m.VFSOptions)
	err = unix.Mount("", m.Mountpoint, "", flags, data)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remount %s: %w", m.Mountpoint, err)
	}
	return nil
}

// remountOptions keep what a mount has: a remount drops what it doesn't name.
func remountOptions(perMount, perSuper string) (flags uintptr, data string) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV,
		"noexec": unix.MS_NOEXEC, "relatime": unix.MS_RELATIME, "noatime": unix.MS_NOATIME,
	}
	flags = unix.MS_REMOUNT
	for o := range strings.SplitSeq(perMount, ",") {
		flags |= known[o]
	}
	options := []string{"favordynmods"}
	for o := range strings.SplitSeq(perSuper, ",") {
		if o != "" && o != "rw" && o != "ro" && o != "favordynmods" {
			options = append(options, o)
		}
	}
	return flags, strings.Join(options, ",")
}
