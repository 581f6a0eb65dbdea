package defaults

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestCapabilities(t *testing.T) {
	all, err := bounding()
	require.NoError(t, err)
	without := func(list []string, c string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x == c })
	}
	for _, c := range []struct {
		name       string
		privileged bool
		add, drop  []string
		want       []string
	}{
		{name: "default", want: docker},
		{name: "add in any spelling", add: []string{"net_admin", "CAP_NET_ADMIN"}, want: append(slices.Clone(docker), "CAP_NET_ADMIN")},
		{name: "drop", drop: []string{"mknod"}, want: without(docker, "CAP_MKNOD")},
		{name: "drop all, add one", add: []string{"KILL"}, drop: []string{"all"}, want: []string{"CAP_KILL"}},
		{name: "add all, drop one", add: []string{"ALL"}, drop: []string{"KILL"}, want: without(all, "CAP_KILL")},
		{name: "both all", add: []string{"ALL"}, drop: []string{"ALL"}, want: all},
		{name: "privileged", privileged: true, drop: []string{"KILL"}, want: all},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Capabilities(c.privileged, c.add, c.drop)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	_, err = Capabilities(false, []string{"FLY"}, nil)
	require.EqualError(t, err, `invalid CapAdd: unknown capability: "FLY"`)
	require.Equal(t, 400, api.Status(err))
}

func TestMountsOfTheUserReplaceDefaults(t *testing.T) {
	list := mounts(Options{Mounts: []specs.Mount{
		{Destination: "/a/b"}, {Destination: "/dev/"}, {Destination: "/a"},
	}})
	var at []string
	for _, m := range list {
		at = append(at, m.Destination)
	}
	require.Equal(t, []string{"/proc", "/sys", "/sys/fs/cgroup", "/dev/", "/a", "/a/b"}, at)
}

func TestEnvironment(t *testing.T) {
	o := Options{Hostname: "h", Tty: true, Env: []string{"TERM=vt100", "A=1", "A=2", "HOSTNAME"}}
	require.Equal(t, []string{"PATH=" + DefaultPath, "TERM=vt100", "A=2"}, environment(o))
}

func TestSpecOfPlainContainer(t *testing.T) {
	s, err := Spec(Options{Rootfs: "/r", Args: []string{"true"}, Hostname: "h"})
	require.NoError(t, err)
	require.Equal(t, "/", s.Process.Cwd)
	require.Equal(t, docker, s.Process.Capabilities.Bounding)
	require.Empty(t, s.Process.Capabilities.Ambient)
	require.Contains(t, s.Linux.MaskedPaths, "/proc/kcore")
	require.Contains(t, s.Linux.ReadonlyPaths, "/proc/sys")
	require.False(t, s.Linux.Resources.Devices[0].Allow, "every device is refused first")
	require.NotNil(t, s.Linux.Seccomp)
	require.Equal(t, specs.LinuxSeccompAction("SCMP_ACT_ERRNO"), s.Linux.Seccomp.DefaultAction)
	require.False(t, allows(s.Linux.Seccomp, "mount"))

	s, err = Spec(Options{CapAdd: []string{"SYS_ADMIN"}})
	require.NoError(t, err)
	require.True(t, allows(s.Linux.Seccomp, "mount"), "the profile follows the capabilities")
}

func allows(p *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(p.Syscalls, func(c specs.LinuxSyscall) bool {
		return c.Action == specs.ActAllow && slices.Contains(c.Names, name)
	})
}

func TestSpecOfPrivilegedContainer(t *testing.T) {
	s, err := Spec(Options{Privileged: true})
	require.NoError(t, err)
	require.Nil(t, s.Linux.Seccomp)
	require.Empty(t, s.Linux.MaskedPaths)
	require.Empty(t, s.Linux.ReadonlyPaths)
	require.Equal(t, []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, s.Linux.Resources.Devices)
	require.True(t, slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" }))
	for _, m := range s.Mounts {
		require.NotContains(t, m.Options, "ro", m.Destination)
	}
}

func TestDevices(t *testing.T) {
	s, err := Spec(Options{Devices: []Device{{HostPath: "/dev/zero", ContainerPath: "/dev/nil", Access: "r"}}})
	require.NoError(t, err)
	require.Len(t, s.Linux.Devices, 1)
	require.Equal(t, "/dev/nil", s.Linux.Devices[0].Path)
	rule := s.Linux.Resources.Devices[len(s.Linux.Resources.Devices)-1]
	require.Equal(t, "r", rule.Access)
	require.EqualValues(t, 1, *rule.Major)
	require.EqualValues(t, 5, *rule.Minor)

	_, err = Spec(Options{Devices: []Device{{HostPath: "/dev/nothing-here"}}})
	require.Equal(t, 400, api.Status(err))
	_, err = Spec(Options{Devices: []Device{{HostPath: "/etc/passwd"}}})
	require.ErrorIs(t, err, errNoDevice)
}

func TestResources(t *testing.T) {
	r, err := Resources{NanoCPUs: 1_500_000_000, Memory: 64 << 20, PidsLimit: 7}.spec()
	require.NoError(t, err)
	require.EqualValues(t, 150_000, *r.CPU.Quota)
	require.EqualValues(t, 100_000, *r.CPU.Period)
	require.EqualValues(t, 64<<20, *r.Memory.Limit)
	require.EqualValues(t, 7, *r.Pids.Limit)
	for _, bad := range []Resources{{Memory: 1}, {Memory: 64 << 20, MemorySwap: 1}, {NanoCPUs: 1, CPUQuota: 1}} {
		_, err := bad.spec()
		require.Equal(t, 400, api.Status(err), "%+v", bad)
	}
}

func TestHostNamespacesAreLeftAlone(t *testing.T) {
	s, err := Spec(Options{
		Hostname: "h", Netns: Namespace{Host: true}, PID: Namespace{Host: true}, UTS: Namespace{Host: true},
		IPC: Namespace{Path: "/proc/1/ns/ipc"},
	})
	require.NoError(t, err)
	kinds := map[specs.LinuxNamespaceType]string{}
	for _, n := range s.Linux.Namespaces {
		kinds[n.Type] = n.Path
	}
	require.NotContains(t, kinds, specs.NetworkNamespace)
	require.NotContains(t, kinds, specs.PIDNamespace)
	require.Equal(t, "/proc/1/ns/ipc", kinds[specs.IPCNamespace])
	require.Empty(t, s.Linux.Sysctl)
	require.Empty(t, s.Hostname)
}

// FuzzProfile feeds profiles of users, which come from outside.
func FuzzProfile(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW"}`)
	f.Add(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}}]}`)
	f.Add(`{"syscalls":[null]}`)
	f.Fuzz(func(t *testing.T, profile string) {
		s, err := Spec(Options{Seccomp: profile})
		if err != nil {
			return
		}
		_, err = json.Marshal(s)
		require.NoError(t, err)
	})
}
