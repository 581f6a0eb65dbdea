package defaults

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const defaultShmSize = 64 << 20

// mounts are Docker's own, without those that the options replace, and then the
// options' with parents before children.
func mounts(o Options) []specs.Mount {
	replaced := map[string]bool{}
	for _, m := range o.Mounts {
		replaced[filepath.Clean(m.Destination)] = true
	}
	var list []specs.Mount
	for _, m := range standardMounts(o) {
		inDev := replaced["/dev"] && strings.HasPrefix(m.Destination, "/dev/")
		inSys := replaced["/sys"] && strings.HasPrefix(m.Destination, "/sys/")
		if !replaced[m.Destination] && !inDev && !inSys {
			list = append(list, m)
		}
	}
	own := slices.Clone(o.Mounts)
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return append(list, own...)
}

func depth(path string) int { return strings.Count(filepath.Clean(path), "/") }

func standardMounts(o Options) []specs.Mount {
	access := "ro"
	if o.Privileged {
		access = "rw"
	}
	shm := o.ShmSize
	if shm == 0 {
		shm = defaultShmSize
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"}},
	}
	if o.IPC.Host {
		return append(list, bind("/dev/mqueue"), bind("/dev/shm"))
	}
	return append(list,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
	)
}

func bind(path string) specs.Mount {
	return specs.Mount{Destination: path, Type: "bind", Source: path, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
}

// hiddenPaths are those a container must not read and those it must not write.
func hiddenPaths(o Options) (masked, readonly []string) {
	if o.Privileged {
		return o.MaskedPaths, o.ReadonlyPaths
	}
	masked, readonly = o.MaskedPaths, o.ReadonlyPaths
	if masked == nil {
		masked = []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
			"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
			"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		}
		// The error of Glob is about its pattern alone.
		throttle, _ := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
		masked = append(masked, throttle...)
	}
	if readonly == nil {
		readonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	return masked, readonly
}
