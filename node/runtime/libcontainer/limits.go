package libcontainer

import (
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimits are the kinds of limits by name.
var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// possibleProcess copies a process with limits and priorities that only a
// privileged supervisor may set replaced by the nearest that this one may.
func (f *Factory) possibleProcess(id string, p *specs.Process) *specs.Process {
	c := *p
	if mayExceed() {
		return &c
	}
	c.Rlimits = nil
	for _, r := range p.Rlimits {
		var own unix.Rlimit
		kind, ok := rlimits[r.Type]
		if ok && unix.Getrlimit(kind, &own) == nil && r.Hard > own.Max {
			f.Logger.Warn("limit lowered to what this host allows", "id", id, "limit", r.Type, "from", r.Hard, "to", own.Max)
			r.Hard, r.Soft = own.Max, min(r.Soft, own.Max)
		}
		c.Rlimits = append(c.Rlimits, r)
	}
	if own := oomScoreAdj(); p.OOMScoreAdj != nil && *p.OOMScoreAdj < own {
		f.Logger.Warn("oom_score_adj raised to what this host allows", "id", id, "from", *p.OOMScoreAdj, "to", own)
		c.OOMScoreAdj = &own
	}
	return &c
}

// mayExceed says whether this process may set limits above its own.
func mayExceed() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func oomScoreAdj() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}
