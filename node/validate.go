package node

import (
	"fmt"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

const (
	defaultShm = 64 << 20
	minMemory  = 6 << 20 // what Docker asks for: less and no process starts
)

// complete fills what the caller left open with Docker's defaults.
func complete(host *container.HostConfig, cgroupVersion string) {
	if host.NetworkMode == "" || host.NetworkMode.IsDefault() {
		host.NetworkMode = network.NetworkBridge
	}
	if host.RestartPolicy.Name == "" {
		host.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if host.IpcMode == "" {
		host.IpcMode = container.IPCModePrivate
	}
	if host.CgroupnsMode == "" {
		host.CgroupnsMode = container.CgroupnsModeHost
		if cgroupVersion == "2" && !host.Privileged {
			host.CgroupnsMode = container.CgroupnsModePrivate
		}
	}
	if host.ShmSize == 0 {
		host.ShmSize = defaultShm
	}
	if host.LogConfig.Type == "" {
		host.LogConfig.Type = "json-file"
	}
	if host.LogConfig.Config == nil {
		host.LogConfig.Config = map[string]string{}
	}
	if host.Runtime == "" {
		host.Runtime = runtimeName
	}
	if host.Memory > 0 && host.MemorySwap == 0 {
		host.MemorySwap = 2 * host.Memory
	}
}

// runtimeName is what inspection and info call the runtime.
const runtimeName = "runc"

// checkConfig refuses a configuration that makes no sense.
func checkConfig(c *container.Config) error {
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return api.InvalidArgument("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := parseSignal(c.StopSignal); err != nil {
			return err
		}
	}
	for _, e := range c.Env {
		if e == "" || e[0] == '=' {
			return api.InvalidArgument("invalid environment variable: %s", e)
		}
		if strings.ContainsRune(e, 0) {
			return api.InvalidArgument("invalid environment variable: it contains a NUL")
		}
	}
	return nil
}

// checkHost refuses what makes no sense or can't be done, and warns of what is
// left out.
func checkHost(h *container.HostConfig) (warnings []string, err error) {
	for _, check := range []func(*container.HostConfig) error{
		checkPolicies, checkMemory, checkCPUs, checkNamespaces, checkLog, checkPorts, checkHosts, checkUnsupported,
	} {
		if err := check(h); err != nil {
			return nil, err
		}
	}
	return leftOut(h), nil
}

func checkPolicies(h *container.HostConfig) error {
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return api.InvalidArgument("can't create 'AutoRemove' container with restart policy")
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return api.InvalidArgument("%w", err)
	}
	if !h.Isolation.IsValid() {
		return api.InvalidArgument("invalid isolation '%s' on %s", h.Isolation, runtime.GOOS)
	}
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return api.InvalidArgument("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if _, ok := h.Annotations[""]; ok {
		return api.InvalidArgument("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	return nil
}

func checkMemory(h *container.HostConfig) error {
	switch {
	case h.Memory != 0 && h.Memory < minMemory:
		return api.InvalidArgument("Minimum memory limit allowed is 6MB")
	case h.Memory > 0 && h.MemorySwap > 0 && h.MemorySwap < h.Memory:
		return api.InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
	case h.Memory == 0 && h.MemorySwap > 0:
		return api.InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
	case h.MemorySwappiness != nil && (*h.MemorySwappiness < -1 || *h.MemorySwappiness > 100):
		return api.InvalidArgument("Invalid value: %d, valid memory swappiness range is 0-100", *h.MemorySwappiness)
	case h.MemoryReservation > 0 && h.MemoryReservation < minMemory:
		return api.InvalidArgument("Minimum memory reservation allowed is 6MB")
	case h.Memory > 0 && h.MemoryReservation > h.Memory:
		return api.InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")
	case h.ShmSize < 0:
		return api.InvalidArgument("SHM size can not be less than 0")
	}
	return nil
}

func checkCPUs(h *container.HostConfig) error {
	cpus := runtime.NumCPU()
	switch {
	case h.NanoCPUs > 0 && h.CPUPeriod > 0:
		return api.InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case h.NanoCPUs > 0 && h.CPUQuota > 0:
		return api.InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case h.NanoCPUs < 0 || h.NanoCPUs > int64(cpus)*1e9:
		return api.InvalidArgument("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", cpus, cpus)
	case h.CPUShares < 0:
		return api.InvalidArgument("shares must be greater than or equal to 0")
	case h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1000000):
		return api.InvalidArgument("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case h.CPUQuota > 0 && h.CPUQuota < 1000:
		return api.InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	return nil
}

func checkNamespaces(h *container.HostConfig) error {
	switch {
	case !h.IpcMode.Valid():
		return api.InvalidArgument("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return api.InvalidArgument("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return api.InvalidArgument("invalid UTS mode: %v", h.UTSMode)
	case !h.UsernsMode.Valid():
		return api.InvalidArgument("invalid userns mode: %v", h.UsernsMode)
	case !h.CgroupnsMode.Valid():
		return api.InvalidArgument("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case h.NetworkMode.IsContainer() && h.NetworkMode.ConnectedContainer() == "":
		return api.InvalidArgument("Invalid network mode: invalid container format container:<name|id>")
	case h.NetworkMode.IsUserDefined():
		return api.NotFound("network %s not found", h.NetworkMode)
	}
	if !h.NetworkMode.IsPrivate() && len(h.PortBindings) > 0 && h.NetworkMode.IsContainer() {
		return api.InvalidArgument("conflicting options: port publishing and the container type network mode")
	}
	return nil
}

// logOptions are the options of the json-file log driver; those with false change
// nothing here.
var logOptions = map[string]bool{"max-size": true, "max-file": true, "labels": false, "env": false, "tag": false}

func checkLog(h *container.HostConfig) error {
	if h.LogConfig.Type == "none" {
		return nil
	}
	if h.LogConfig.Type != "json-file" {
		return api.InvalidArgument("logger: no log driver named '%s' is registered", h.LogConfig.Type)
	}
	for k := range h.LogConfig.Config {
		if _, ok := logOptions[k]; !ok {
			return api.InvalidArgument("unknown log opt '%s' for json-file log driver", k)
		}
	}
	_, _, err := logLimits(h)
	return err
}

// logLimits reads the bytes and the number of files that a log may have.
func logLimits(h *container.HostConfig) (size int64, files int, err error) {
	if s, ok := h.LogConfig.Config["max-size"]; ok {
		if size, err = units.FromHumanSize(s); err != nil || size < 0 {
			return 0, 0, api.InvalidArgument("invalid value for max-size: %s", s)
		}
	}
	files = 1
	if s, ok := h.LogConfig.Config["max-file"]; ok {
		if files, err = strconv.Atoi(s); err != nil || files < 1 {
			return 0, 0, api.InvalidArgument("invalid value for max-file: %s", s)
		}
	}
	return size, files, nil
}

func checkPorts(h *container.HostConfig) error {
	for port, bindings := range h.PortBindings {
		if port.Num() == 0 {
			return api.InvalidArgument("invalid port specification: %q", port.String())
		}
		if !slices.Contains([]network.IPProtocol{network.TCP, network.UDP, network.SCTP}, port.Proto()) {
			return api.InvalidArgument("invalid port specification: %q", port.String())
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return api.InvalidArgument("invalid port specification: %q", b.HostPort)
			}
		}
	}
	return nil
}

func checkHosts(h *container.HostConfig) error {
	for _, e := range h.ExtraHosts {
		name, address, ok := strings.Cut(e, ":")
		if !ok || name == "" || address == "" {
			return api.InvalidArgument("bad format for add-host: %q", e)
		}
	}
	return nil
}

// checkUnsupported refuses what a container can't do without and this engine
// hasn't got.
func checkUnsupported(h *container.HostConfig) error {
	switch {
	case h.Init != nil && *h.Init:
		return api.InvalidArgument("an init process (--init) is not supported")
	case len(h.DeviceRequests) > 0:
		r := h.DeviceRequests[0]
		return api.InvalidArgument("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
	case len(h.StorageOpt) > 0:
		return api.InvalidArgument("--storage-opt is not supported")
	case h.Cgroup != "":
		return api.InvalidArgument("sharing another container's cgroup is not supported")
	case h.VolumeDriver != "" && h.VolumeDriver != "local":
		return api.InvalidArgument("error looking up volume plugin %s: plugin %q not found", h.VolumeDriver, h.VolumeDriver)
	case h.Runtime != runtimeName && h.Runtime != "io.containerd.runc.v2":
		return api.InvalidArgument("unknown or invalid runtime name: %s", h.Runtime)
	}
	_, err := parseSecurity(h.SecurityOpt)
	return err
}

// leftOut names the options that change nothing here.
func leftOut(h *container.HostConfig) []string {
	var w []string
	warn := func(when bool, what string) {
		if when {
			w = append(w, fmt.Sprintf("%s is not supported. It has no effect.", what))
		}
	}
	warn(len(h.BlkioWeightDevice) > 0, "A block I/O weight per device")
	warn(len(h.BlkioDeviceReadBps)+len(h.BlkioDeviceWriteBps)+len(h.BlkioDeviceReadIOps)+len(h.BlkioDeviceWriteIOps) > 0,
		"Throttling of block I/O")
	warn(h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0, "Real-time scheduling of processors")
	warn(len(h.Links) > 0, "The environment of a link, other than the name in /etc/hosts,")
	for _, k := range []string{"labels", "env", "tag"} {
		_, set := h.LogConfig.Config[k]
		warn(set, "Log option "+k)
	}
	if s, err := parseSecurity(h.SecurityOpt); err == nil {
		warn(s.appArmor != "" && s.appArmor != "unconfined", "AppArmor")
	}
	if !h.NetworkMode.IsPrivate() && len(h.PortBindings) > 0 {
		w = append(w, "Published ports are discarded when using host network mode")
	}
	return w
}

// security is what the options of --security-opt mean.
type security struct {
	noNewPrivileges bool
	seccomp         string // "", "unconfined", or a profile
	appArmor        string
}

func parseSecurity(options []string) (security, error) {
	var s security
	for _, o := range options {
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":") // as it was written before Docker 1.11
		}
		switch {
		case k == "no-new-privileges" && !ok:
			s.noNewPrivileges = true
		case !ok:
			return s, api.InvalidArgument("invalid --security-opt 1: %q", o)
		case k == "no-new-privileges":
			on, err := strconv.ParseBool(v)
			if err != nil {
				return s, api.InvalidArgument("invalid --security-opt 2: %q", o)
			}
			s.noNewPrivileges = on
		case k == "seccomp":
			s.seccomp = v
			if v == "builtin" {
				s.seccomp = ""
			}
		case k == "apparmor":
			s.appArmor = v
		case k == "label": // SELinux is not in use here: as with Docker, nothing to do
		case k == "writable-cgroups":
			return s, api.InvalidArgument("--security-opt writable-cgroups is not supported")
		default:
			return s, api.InvalidArgument("invalid --security-opt 2: %q", o)
		}
	}
	return s, nil
}
