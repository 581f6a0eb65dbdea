package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/stretchr/testify/require"
)

// TestVolumes works with a volume from every host: it stays on one, and containers go
// there.
func TestVolumes(t *testing.T) {
	c := name(t)
	v := "data-" + c
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = shared.command(ctx, 1, "volume", "rm", "-f", v).Run()
	})
	ok(t, 2, "volume", "create", "--label", "test=volumes", v)
	require.Equal(t, "node2", ok(t, 1, "volume", "inspect", "-f", "{{.Status.node}}", v))
	ok(t, 3, "run", "--rm", "-v", v+":/d", "busybox", "sh", "-c", "echo kept > /d/f")
	require.Equal(t, "kept", ok(t, 1, "run", "--rm", "-v", v+":/d:ro", "busybox", "cat", "/d/f"))

	ok(t, 1, "run", "-d", "--name", c, "-v", v+":/d", "-v", "/nameless", "busybox", "sleep", "1000")
	require.Contains(t, docker(t, 3, "volume", "rm", v).err, "volume is in use")
	require.Contains(t, docker(t, 3, "volume", "rm", "no-such-volume").err, "o such volume") // clients differ in the letter before
	nameless := ok(t, 2, "inspect", "-f",
		`{{range .Mounts}}{{if eq .Destination "/nameless"}}{{.Name}}{{end}}{{end}}`, c)
	require.Len(t, nameless, 64)
	listed := func(n int, args ...string) []string {
		return strings.Fields(ok(t, n, append([]string{"volume", "ls", "-q"}, args...)...))
	}
	for n := 1; n <= 3; n++ {
		require.Contains(t, listed(n), v)
		require.Contains(t, listed(n), nameless)
		require.NotContains(t, listed(n, "-f", "dangling=true"), v)
		require.Regexp(t, `(?m)^`+v+` +1 +5B$`, ok(t, n, "system", "df", "-v"))
		require.Regexp(t, `(?m)^Local Volumes +[0-9]+ +[2-9] `, ok(t, n, "system", "df"))
	}
	ok(t, 3, "rm", "-f", "-v", c)
	require.Contains(t, listed(1), v)
	require.NotContains(t, listed(1), nameless)
	ok(t, 3, "volume", "rm", v)
	require.NotContains(t, listed(1), v)
}

// TestDiskUsage asks the client what an image takes that two hosts hold.
func TestDiskUsage(t *testing.T) {
	size := func(n int, socket string) float64 {
		cmd := shared.command(t.Context(), n, "system", "df", "--format", `{{if eq .Type "Images"}}{{.Size}}{{end}}`)
		cmd.Env = append(cmd.Env, "DOCKER_HOST=unix://"+socket)
		r := runCommand(t, cmd)
		require.Zero(t, r.code, r.err)
		bytes, err := units.FromHumanSize(strings.TrimSpace(r.out))
		require.NoError(t, err)
		return float64(bytes)
	}
	sum := 0.0
	for n := 1; n <= 3; n++ {
		sum += size(n, strings.Replace(shared.lab.Socket(n), "shoal.sock", "node.sock", 1))
	}
	require.Positive(t, sum)
	require.InEpsilon(t, sum, size(2, shared.lab.Socket(2)), 0.01, "the cluster is the sum of its nodes")
	ok(t, 3, "system", "prune", "-f", "--filter", "label=nobody-has-this")
}
