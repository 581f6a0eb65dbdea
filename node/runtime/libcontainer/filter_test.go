//go:build seccomp

package libcontainer_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	noderuntime "github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/runtime/defaults"
	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor"
	"github.com/shoal-engine/shoal/node/supervisor/embedded"
)

// A filter that the supervisor compiled once decides as the one that libcontainer
// would have compiled in the container. This build does the latter, the embedded
// supervisor the former; the kernel tells what it has of each.
func TestFiltersDecideAlike(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	f, ok, err := embedded.Open()
	require.NoError(t, err)
	if !ok {
		t.Skip("needs an embedded supervisor")
	}
	require.NoError(t, f.Close())
	dir := t.TempDir()
	client, err := supervisor.Connect(t.Context(), supervisor.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Shutdown(context.Background(), true)) })
	factory := &libcontainer.Factory{Root: filepath.Join(dir, "plain"), CgroupParent: filepath.Base(dir), Logger: slog.New(slog.DiscardHandler)}

	for name, o := range map[string]defaults.Options{
		"default":  {},
		"admin":    {CapAdd: []string{"SYS_ADMIN"}},
		"few":      {CapDrop: []string{"ALL"}},
		"nothing":  {Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`},
		"one rule": {Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["unshare"],"action":"SCMP_ACT_ERRNO","errnoRet":42}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			o.Rootfs, o.Args = rootfs(t), []string{"/bin/busybox", "sleep", "1000"}
			spec, err := defaults.Spec(o)
			require.NoError(t, err)
			plain := runPlain(t, factory, spec)
			task, err := client.Create(t.Context(), "c", noderuntime.Bundle{Spec: spec, Dir: t.TempDir()})
			require.NoError(t, err)
			defer func() { require.NoError(t, task.Delete(t.Context())) }()
			require.NoError(t, task.Start(t.Context()))
			status, err := task.Status(t.Context())
			require.NoError(t, err)
			compare(t, plain, loadedFilter(t, status.Pid))
		})
	}
}

func rootfs(t *testing.T) string {
	dir := t.TempDir()
	src, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), src, 0o755))
	return dir
}

// runPlain gives the filter of a container that this process starts itself.
func runPlain(t *testing.T, f *libcontainer.Factory, spec *specs.Spec) []bpf.Instruction {
	c, err := f.Create("plain", spec, libcontainer.Stdio{})
	require.NoError(t, err)
	defer func() {
		require.NoError(t, c.Signal(unix.SIGKILL))
		require.Equal(t, 137, c.Init().Wait().Code)
		require.NoError(t, c.Destroy())
		require.NoError(t, f.RemoveParent())
	}()
	require.NoError(t, c.Start())
	return loadedFilter(t, c.Init().Pid())
}

// loadedFilter asks the kernel for a process's filter.
func loadedFilter(t *testing.T, pid int) []bpf.Instruction {
	const getFilter = 0x420c // PTRACE_SECCOMP_GET_FILTER
	soon := func(done func() bool) { require.Eventually(t, done, time.Minute, 5*time.Millisecond) }
	soon(func() bool { // a process can't be traced well while it becomes another
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && filepath.Base(exe) == "busybox"
	})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.PtraceSeize(pid))
	require.NoError(t, unix.PtraceInterrupt(pid))
	var stopped int
	for start := time.Now(); stopped != pid; {
		require.Less(t, time.Since(start), 10*time.Second)
		var err error
		stopped, err = unix.Wait4(pid, nil, unix.WALL|unix.WNOHANG, nil)
		require.NoError(t, err)
	}
	defer func() { require.NoError(t, unix.PtraceDetach(pid)) }()
	count, _, errno := unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, 0, 0, 0)
	if errno == unix.EIO || errno == unix.EINVAL {
		t.Skip("the kernel does not tell: ", errno)
	}
	require.Zero(t, errno)
	raw := make([]bpf.RawInstruction, count)
	_, _, errno = unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, uintptr(unsafe.Pointer(&raw[0])), 0, 0)
	require.Zero(t, errno)
	program, ok := bpf.Disassemble(raw)
	require.True(t, ok)
	return program
}

// compare asks both filters about every system call there could be, with the
// arguments that could make a difference.
func compare(t *testing.T, a, b []bpf.Instruction) {
	vmA, err := bpf.NewVM(a)
	require.NoError(t, err)
	vmB, err := bpf.NewVM(b)
	require.NoError(t, err)
	values := []uint64{0}
	for v := range telling(append(a, b...)) {
		values = append(values, v-1, v, v+1, v|1<<32)
	}
	decisions := map[int]int{}
	calls := []uint32{1<<30 - 1, 1<<31 - 1, 1<<32 - 1}
	for nr := range uint32(600) {
		calls = append(calls, nr, 1<<30+nr) // the latter are those of x32
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 0} {
		for _, nr := range calls {
			for _, v := range values {
				data := seccompData(nr, arch, v)
				gotA, errA := vmA.Run(data)
				gotB, errB := vmB.Run(data)
				if errA != nil || errB != nil || gotA != gotB {
					t.Fatalf("arch %#x call %d argument %#x: %#x %v against %#x %v", arch, nr, v, gotA, errA, gotB, errB)
				}
				decisions[gotA]++
			}
		}
	}
	t.Log(len(a), "instructions, decisions: ", fmt.Sprint(decisions))
	require.NotEmpty(t, decisions)
}

// telling are the numbers that a filter compares arguments with.
func telling(program []bpf.Instruction) map[uint64]bool {
	values, argument := map[uint64]bool{}, false
	for _, in := range program {
		switch in := in.(type) {
		case bpf.LoadAbsolute:
			argument = in.Off >= 16
		case bpf.JumpIf:
			if argument {
				values[uint64(in.Val)] = true
			}
		}
	}
	return values
}

// seccompData is the kernel's struct seccomp_data, each word as the virtual machine
// reads it: in network order. All arguments are the same.
func seccompData(nr, arch uint32, argument uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, nr)
	b = binary.BigEndian.AppendUint32(b, arch)
	b = append(b, make([]byte, 8)...) // the instruction's address
	for range 6 {
		b = binary.BigEndian.AppendUint32(b, uint32(argument))
		b = binary.BigEndian.AppendUint32(b, uint32(argument>>32))
	}
	return b
}
