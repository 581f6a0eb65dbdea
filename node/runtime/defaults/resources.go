package defaults

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// cpuPeriod is the kernel's default, in µs, in which NanoCPUs are counted.
const cpuPeriod = 100_000

// minMemory is the least memory in bytes with which a container can be set up.
const minMemory = 6 << 20

func (r Resources) spec() (*specs.LinuxResources, error) {
	if r.Memory != 0 && r.Memory < minMemory {
		return nil, api.InvalidArgument("Minimum memory limit allowed is 6MB")
	}
	if r.MemorySwap > 0 && r.Memory > r.MemorySwap {
		return nil, api.InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0) {
		return nil, api.InvalidArgument("Conflicting options: Nano CPUs and CPU Quota/Period cannot both be set.")
	}
	spec := &specs.LinuxResources{Memory: r.memory(), CPU: r.cpu()}
	if r.PidsLimit > 0 {
		spec.Pids = &specs.LinuxPids{Limit: &r.PidsLimit}
	}
	if r.BlkioWeight > 0 {
		spec.BlockIO = &specs.LinuxBlockIO{Weight: &r.BlkioWeight}
	}
	return spec, nil
}

func (r Resources) memory() *specs.LinuxMemory {
	m := &specs.LinuxMemory{Swappiness: r.MemorySwappiness}
	if r.Memory > 0 {
		m.Limit = &r.Memory
		swap := r.MemorySwap
		if swap == 0 {
			swap = 2 * r.Memory
		}
		if swapLimited() {
			m.Swap = &swap
		}
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.OOMKillDisable {
		m.DisableOOMKiller = &r.OOMKillDisable
	}
	return m
}

func (r Resources) cpu() *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	period, quota := r.CPUPeriod, r.CPUQuota
	if r.NanoCPUs > 0 {
		period, quota = cpuPeriod, r.NanoCPUs*cpuPeriod/1e9
	}
	if period > 0 {
		c.Period = &period
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if r.CPUShares > 0 {
		c.Shares = &r.CPUShares
	}
	return c
}

// unified says whether cgroup v2 is the only one of the host.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// swapLimited says whether the kernel limits swap; asking it to where it can't
// would fail the container. On cgroup v2 the file is in all groups but the root.
func swapLimited() bool {
	pattern := "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
	if unified() {
		pattern = "/sys/fs/cgroup/*/memory.swap.max"
	}
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

func sysctlExists(name string) bool {
	_, err := os.Stat(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")))
	return err == nil
}
