package defaults

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultPath is the PATH of a container whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Unconfined is the Options.Seccomp that asks for no filter.
const Unconfined = "unconfined"

// Options describe a container after everything symbolic in them was looked up:
// users are numbers, mounts are paths of the host, images are a root directory.
type Options struct {
	Rootfs         string // a mounted root file system
	ReadonlyRootfs bool

	Args           []string
	Env            []string // added to and replacing PATH, HOSTNAME and TERM
	Cwd            string   // empty means /
	UID, GID       uint32
	AdditionalGIDs []uint32
	Tty            bool

	Hostname, Domainname string
	// Netns is the network namespace. The zero value makes an empty one.
	Netns Namespace
	// PID, IPC, UTS and Cgroup are the other namespaces. The zero value makes a new
	// one; of Cgroup it does what Docker does, which is new on cgroup v2 alone.
	PID, IPC, UTS, Cgroup Namespace

	Mounts  []specs.Mount // replace default mounts of the same destination
	Devices []Device
	ShmSize int64 // bytes of /dev/shm; 0 means 64 MiB

	Privileged      bool
	CapAdd, CapDrop []string // as users write them: net_admin, CAP_NET_ADMIN, ALL
	NoNewPrivileges bool
	// Seccomp is empty for Docker's profile, Unconfined for none, or a profile's JSON.
	Seccomp                    string
	MaskedPaths, ReadonlyPaths []string // nil means Docker's, empty means none

	Sysctls     map[string]string
	Rlimits     []specs.POSIXRlimit
	OOMScoreAdj int
	Resources   Resources

	// CgroupsPath is the container's cgroup; empty lets the runtime choose one that
	// is unique to its data directory.
	CgroupsPath string
	Annotations map[string]string
}

// Namespace says which namespace of a kind a container runs in.
type Namespace struct {
	Host bool   // the supervisor's own
	Path string // an existing one, if not empty
	New  bool   // a new one where the default would be another
}

// Device is a device of the host that a container sees. Access is made of r, w
// and m; empty means all three. A HostPath that is a directory stands for every
// device in it.
type Device struct {
	HostPath, ContainerPath, Access string
}

// Resources are limits; zero values set none.
type Resources struct {
	Memory            int64 // bytes
	MemorySwap        int64 // memory and swap in bytes; -1 unlimited, 0 means twice Memory
	MemoryReservation int64
	MemorySwappiness  *uint64
	OOMKillDisable    bool
	NanoCPUs          int64 // billionths of a processor; sets period and quota
	CPUPeriod         uint64
	CPUQuota          int64 // µs of each period
	CPUShares         uint64
	CpusetCpus        string
	CpusetMems        string
	PidsLimit         int64 // -1 and 0 mean none
	BlkioWeight       uint16
	Devices           []specs.LinuxDeviceCgroup // further device rules
}
