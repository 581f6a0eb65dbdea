package node

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/shoal-engine/shoal/api"
	nodeimage "github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
)

// spec composes what the runtime runs. The root file system is mounted and the
// place in the network is there.
func (n *Node) spec(r record, root nodeimage.Root, p place) (*specs.Spec, error) {
	if p.shares == nil {
		if err := n.writeFiles(r, p); err != nil {
			return nil, err
		}
	}
	who, err := lookUser(root.Path, r.Config.User, r.HostConfig.GroupAdd)
	if err != nil {
		return nil, err
	}
	safety, err := parseSecurity(r.HostConfig.SecurityOpt)
	if err != nil {
		return nil, err
	}
	h := r.HostConfig
	o := defaults.Options{
		Rootfs: root.Path, ReadonlyRootfs: h.ReadonlyRootfs,
		Args: append([]string{r.Path}, r.Args...),
		Env:  environment(r.Config.Env, who.home), Cwd: r.Config.WorkingDir,
		UID: who.uid, GID: who.gid, AdditionalGIDs: who.groups, Tty: r.Config.Tty,
		Hostname: r.Config.Hostname, Domainname: r.Config.Domainname, Netns: p.netns,
		ShmSize: h.ShmSize, Privileged: h.Privileged, CapAdd: h.CapAdd, CapDrop: h.CapDrop,
		NoNewPrivileges: safety.noNewPrivileges, Seccomp: safety.seccomp,
		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths,
		Sysctls: h.Sysctls, OOMScoreAdj: h.OomScoreAdj,
		Resources: resources(h), Annotations: maps.Clone(h.Annotations),
	}
	if p.shares != nil {
		with := p.shares.get().Config
		o.Hostname, o.Domainname = with.Hostname, with.Domainname
	}
	if h.CgroupParent != "" {
		o.CgroupsPath = filepath.Join("/", h.CgroupParent, r.ID)
	}
	if err := n.namespaces(r, &o); err != nil {
		return nil, err
	}
	for _, d := range h.Devices {
		o.Devices = append(o.Devices, defaults.Device{
			HostPath: d.PathOnHost, ContainerPath: d.PathInContainer, Access: d.CgroupPermissions,
		})
	}
	for _, u := range h.Ulimits {
		o.Rlimits = append(o.Rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard),
		})
	}
	if o.Resources.Devices, err = deviceRules(h.DeviceCgroupRules); err != nil {
		return nil, err
	}
	if o.Mounts, err = n.mounts(r, root, p); err != nil {
		return nil, err
	}
	s, err := defaults.Spec(o)
	if err == nil && h.Umask != nil {
		s.Process.User.Umask = h.Umask
	}
	return s, err
}

// environment adds HOME, as Docker's runtime does, unless it is set.
func environment(env []string, home string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "HOME=") {
			return env
		}
	}
	return append(slices.Clone(env), "HOME="+home)
}

func resources(h *container.HostConfig) defaults.Resources {
	res := defaults.Resources{
		Memory: h.Memory, MemorySwap: h.MemorySwap, MemoryReservation: h.MemoryReservation,
		NanoCPUs: h.NanoCPUs, CPUPeriod: uint64(h.CPUPeriod), CPUQuota: h.CPUQuota, CPUShares: uint64(h.CPUShares),
		CpusetCpus: h.CpusetCpus, CpusetMems: h.CpusetMems, BlkioWeight: h.BlkioWeight,
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness >= 0 {
		v := uint64(*h.MemorySwappiness)
		res.MemorySwappiness = &v
	}
	if h.OomKillDisable != nil {
		res.OOMKillDisable = *h.OomKillDisable
	}
	if h.PidsLimit != nil {
		res.PidsLimit = *h.PidsLimit
	}
	return res
}

// namespaces chooses the namespaces other than the network's.
func (n *Node) namespaces(r record, o *defaults.Options) error {
	h := r.HostConfig
	o.PID.Host, o.IPC.Host, o.UTS.Host = h.PidMode.IsHost(), h.IpcMode.IsHost(), h.UTSMode.IsHost()
	o.Cgroup.Host, o.Cgroup.New = h.CgroupnsMode.IsHost(), h.CgroupnsMode.IsPrivate()
	for kind, ns := range map[string]struct {
		ref  string
		dest *defaults.Namespace
	}{"pid": {h.PidMode.Container(), &o.PID}, "ipc": {h.IpcMode.Container(), &o.IPC}} {
		if ns.ref == "" {
			continue
		}
		other, err := n.index.find(ns.ref)
		if err != nil {
			return err
		}
		state := other.get().State
		if !state.live() {
			return api.Conflict("can't join %s namespace of container %s: container is not running", kind, other.id)
		}
		*ns.dest = processNamespace(state.Pid, kind)
	}
	return nil
}

// deviceRules reads --device-cgroup-rule: "c 1:3 mr".
func deviceRules(rules []string) ([]specs.LinuxDeviceCgroup, error) {
	var all []specs.LinuxDeviceCgroup
	for _, rule := range rules {
		var kind, numbers, access string
		if _, err := fmt.Sscanf(rule, "%s %s %s", &kind, &numbers, &access); err != nil {
			return nil, api.InvalidArgument("invalid device cgroup rule format: '%s'", rule)
		}
		major, minor, ok := strings.Cut(numbers, ":")
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		var err1, err2 error
		d.Major, err1 = deviceNumber(major)
		d.Minor, err2 = deviceNumber(minor)
		if !ok || err1 != nil || err2 != nil || !strings.Contains("abc", kind) || strings.Trim(access, "rwm") != "" {
			return nil, api.InvalidArgument("invalid device cgroup rule format: '%s'", rule)
		}
		all = append(all, d)
	}
	return all, nil
}

func deviceNumber(s string) (*int64, error) {
	if s == "*" {
		return nil, nil
	}
	var n int64
	_, err := fmt.Sscanf(s, "%d", &n)
	return &n, err
}

// mounts lists what is mounted over the image, volumes filled first.
func (n *Node) mounts(r record, root nodeimage.Root, p place) ([]specs.Mount, error) {
	taken := map[string]bool{}
	var own []specs.Mount
	for _, m := range r.Mounts {
		taken[m.Destination] = true
		s, err := n.mount(r.ID, m, root)
		if err != nil {
			return nil, err
		}
		own = append(own, s)
	}
	return append(n.fileMounts(r, p, taken), own...), nil
}

func (n *Node) mount(id string, m mountPoint, root nodeimage.Root) (specs.Mount, error) {
	s := specs.Mount{Destination: m.Destination, Source: m.Source}
	switch m.Type {
	case mount.TypeTmpfs:
		s.Type, s.Source = "tmpfs", "tmpfs"
		s.Options = []string{"noexec", "nosuid", "nodev"}
		for o := range strings.SplitSeq(m.Options, ",") {
			if o != "" {
				s.Options = append(s.Options, o)
			}
		}
		return s, nil
	case mount.TypeVolume:
		if _, err := n.volumes.ensure(m.volume(id)); err != nil {
			return s, err
		}
		if m.Fill {
			if err := fillVolume(root.Path, m.Destination, m.Source); err != nil {
				return s, fmt.Errorf("copy the image's files into volume %s: %w", m.Name, err)
			}
		}
		source, err := n.volumes.path(m)
		if err != nil {
			return s, err
		}
		s.Source = source
	case mount.TypeBind:
		if err := makeSource(m); err != nil {
			return s, err
		}
		if _, err := os.Stat(m.Source); err != nil {
			return s, api.InvalidArgument("invalid mount config for type %q: bind source path does not exist: %s", m.Type, m.Source)
		}
	}
	s.Type = "bind"
	s.Options = []string{"rbind"}
	if m.NonRecursive {
		s.Options[0] = "bind"
	}
	s.Options = append(s.Options, string(propagation(m)))
	if !m.RW {
		s.Options = append(s.Options, "ro")
	}
	return s, nil
}

func propagation(m mountPoint) mount.Propagation {
	if m.Propagation == "" {
		return mount.PropagationRPrivate
	}
	return m.Propagation
}
