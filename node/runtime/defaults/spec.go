package defaults

import (
	"encoding/json"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/shoal-engine/shoal/api"
)

// Spec composes the spec of a container. InvalidArgument says which option makes
// no sense; a device that is not there is an error, too.
func Spec(o Options) (*specs.Spec, error) {
	caps, err := Capabilities(o.Privileged, o.CapAdd, o.CapDrop)
	if err != nil {
		return nil, err
	}
	resources, err := o.Resources.spec()
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Hostname:    o.Hostname,
		Domainname:  o.Domainname,
		Annotations: o.Annotations,
		Root:        &specs.Root{Path: o.Rootfs, Readonly: o.ReadonlyRootfs},
		Process:     process(o, caps),
		Mounts:      mounts(o),
		Linux: &specs.Linux{
			CgroupsPath: o.CgroupsPath,
			Namespaces:  namespaces(o),
			Resources:   resources,
			Sysctl:      sysctls(o),
		},
	}
	if o.UTS.Host {
		s.Hostname, s.Domainname = "", ""
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = hiddenPaths(o)
	if err := addDevices(s, o); err != nil {
		return nil, err
	}
	s.Linux.Seccomp, err = seccompProfile(s, o)
	return s, err
}

func process(o Options, caps []string) *specs.Process {
	p := &specs.Process{
		Terminal:        o.Tty,
		Args:            o.Args,
		Env:             environment(o),
		Cwd:             o.Cwd,
		User:            specs.User{UID: o.UID, GID: o.GID, AdditionalGids: o.AdditionalGIDs},
		NoNewPrivileges: o.NoNewPrivileges,
		Rlimits:         o.Rlimits,
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if o.OOMScoreAdj != 0 {
		p.OOMScoreAdj = &o.OOMScoreAdj
	}
	return p
}

// environment puts what Docker gives every process before the container's own.
func environment(o Options) []string {
	env := []string{"PATH=" + DefaultPath}
	if o.Hostname != "" {
		env = append(env, "HOSTNAME="+o.Hostname)
	}
	if o.Tty {
		env = append(env, "TERM=xterm")
	}
	return MergeEnv(env, o.Env)
}

// MergeEnv adds overrides to an environment; a variable that is already there
// keeps its place and changes its value, and one without "=" is removed.
func MergeEnv(env, overrides []string) []string {
	env = slices.Clone(env)
	for _, v := range overrides {
		name, hasValue := variable(v)
		i := slices.IndexFunc(env, func(e string) bool { n, _ := variable(e); return n == name })
		switch {
		case i >= 0 && hasValue:
			env[i] = v
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case hasValue:
			env = append(env, v)
		}
	}
	return env
}

func variable(v string) (name string, hasValue bool) {
	for i := range len(v) {
		if v[i] == '=' {
			return v[:i], true
		}
	}
	return v, false
}

// namespaces are private ones but where the options say otherwise.
func namespaces(o Options) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	cgroup := o.Cgroup
	if !cgroup.New && cgroup.Path == "" {
		cgroup.Host = cgroup.Host || !unified()
	}
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		Namespace
	}{
		{specs.NetworkNamespace, o.Netns},
		{specs.UTSNamespace, o.UTS},
		{specs.PIDNamespace, o.PID},
		{specs.IPCNamespace, o.IPC},
		{specs.CgroupNamespace, cgroup},
	} {
		if !n.Host {
			list = append(list, specs.LinuxNamespace{Type: n.kind, Path: n.Path})
		}
	}
	return list
}

// sysctls let unprivileged processes ping and listen on low ports, as Docker does
// wherever that changes no other namespace.
func sysctls(o Options) map[string]string {
	all := map[string]string{}
	if !o.Netns.Host {
		for name, value := range map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
		} {
			if sysctlExists(name) {
				all[name] = value
			}
		}
	}
	for name, value := range o.Sysctls {
		all[name] = value
	}
	return all
}

func seccompProfile(s *specs.Spec, o Options) (*specs.LinuxSeccomp, error) {
	switch {
	case o.Seccomp == Unconfined, o.Privileged && o.Seccomp == "":
		return nil, nil
	case o.Seccomp == "":
		return seccomp.GetDefaultProfile(s)
	}
	// The library takes every rule to be there.
	var rules struct {
		Syscalls []*struct{} `json:"syscalls"`
	}
	if err := json.Unmarshal([]byte(o.Seccomp), &rules); err != nil {
		return nil, api.InvalidArgument("Decoding seccomp profile failed: %w", err)
	}
	if slices.Contains(rules.Syscalls, nil) {
		return nil, api.InvalidArgument("Decoding seccomp profile failed: a rule is null")
	}
	p, err := seccomp.LoadProfile(o.Seccomp, s)
	if err != nil {
		return nil, api.InvalidArgument("%w", err)
	}
	return p, nil
}
