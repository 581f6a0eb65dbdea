package supervisor_test

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
)

// confined is a script that says whether it runs under a filter, and whether the
// filter is Docker's.
const confined = `
grep Seccomp: /proc/self/status
unshare -m true 2>/dev/null && echo unshare works || echo unshare refused`

func TestSeccomp(t *testing.T) {
	h := newHost(t)
	if !h.seccomp {
		b := h.bundle(sh("true"))
		b.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		_, err := h.Create(t.Context(), "filtered", b)
		require.Equal(t, 400, api.Status(err), "never run unconfined what shall be confined: %v", err)
		require.ErrorContains(t, err, "seccomp=unconfined")
		return
	}
	for _, c := range []struct {
		name string
		o    func(*defaults.Options)
		want string
	}{
		{"default", func(*defaults.Options) {}, "Seccomp:\t2\nunshare refused\n"},
		{"with a capability", func(o *defaults.Options) { o.CapAdd = []string{"SYS_ADMIN"} }, "Seccomp:\t2\nunshare works\n"},
		{"no new privileges", func(o *defaults.Options) { o.NoNewPrivileges = true }, "Seccomp:\t2\nunshare refused\n"},
		{"unconfined", func(o *defaults.Options) {
			o.Seccomp, o.CapAdd = defaults.Unconfined, []string{"SYS_ADMIN"}
		}, "Seccomp:\t0\nunshare works\n"},
		{"own profile", func(o *defaults.Options) {
			o.CapAdd = []string{"SYS_ADMIN"}
			o.Seccomp = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["unshare"],"action":"SCMP_ACT_ERRNO"}]}`
		}, "Seccomp:\t2\nunshare refused\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sh(confined)
			c.o(&o)
			task := h.create("c", h.bundle(o))
			s, err := task.Attach(t.Context(), both)
			require.NoError(t, err)
			defer s.Close()
			require.NoError(t, task.Start(t.Context()))
			stdout, stderr := output(t, s)
			require.Empty(t, stderr)
			require.Contains(t, stdout, c.want)
			wait(t, task)
			require.NoError(t, task.Delete(t.Context()))
		})
	}
	t.Run("exec", func(t *testing.T) {
		b := h.bundle(sh("sleep 1000"))
		task := h.create("box", b)
		require.NoError(t, task.Start(t.Context()))
		p := *b.Spec.Process
		p.Args = []string{"sh", "-c", confined}
		e, err := task.Exec(t.Context(), "e", runtime.Process{Spec: &p, Streams: both})
		require.NoError(t, err)
		stdout, _ := output(t, e.Session())
		require.Contains(t, stdout, "Seccomp:\t2\nunshare refused\n")
	})
}
