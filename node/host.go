package node

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is what a node knows of the machine it is on.
type host struct {
	arch, kernel, system, systemVersion string
	cgroupVersion                       string // "1" or "2"
	controllers                         map[string]bool
	memory                              int64 // bytes
	cpus                                int
}

// probeHost looks at the machine. What can't be found out stays empty.
func probeHost() host {
	h := host{arch: goruntime.GOARCH, cpus: goruntime.NumCPU(), cgroupVersion: "1", controllers: map[string]bool{}}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.memory = int64(info.Totalram) * int64(info.Unit)
	}
	release := osRelease(readFirst("/etc/os-release", "/usr/lib/os-release"))
	h.system, h.systemVersion = release["PRETTY_NAME"], release["VERSION_ID"]
	if h.system == "" {
		h.system = "Linux"
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		h.cgroupVersion = "2"
		for c := range strings.FieldsSeq(string(b)) {
			h.controllers[c] = true
		}
		return h
	}
	if b, err := os.ReadFile("/proc/cgroups"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line) // name, hierarchy, groups, enabled
			if len(f) == 4 && f[3] == "1" {
				h.controllers[f[0]] = true
			}
		}
	}
	return h
}

func readFirst(paths ...string) []byte {
	for _, p := range paths {
		if b, err := os.ReadFile(p); !errors.Is(err, fs.ErrNotExist) {
			return b
		}
	}
	return nil
}

// osRelease reads the assignments of os-release(5).
func osRelease(b []byte) map[string]string {
	m := map[string]string{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		k, v, ok := strings.Cut(strings.TrimSpace(s.Text()), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		} else {
			v = strings.Trim(v, `'"`)
		}
		m[k] = v
	}
	return m
}

// hostname is asked for each time: it may change.
func (host) hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}
