package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/integration/lab"
)

// TestStartsEarly runs a container whose image takes long to come, and kills the agent
// under it and then the node that the image comes from.
func TestStartsEarly(t *testing.T) {
	l := own(t, 2)
	startEarly(t, l, 2)
	archive, want := dataImage(t, "slow:2", 48<<20)
	require.Zero(t, onNode(t, l, 1, "load", "-q", "-i", archive).code)
	within(t, time.Minute, "node 1 has cut it", func() bool {
		made, err := os.ReadDir(filepath.Join(l.Data(1), "chunks"))
		return err == nil && len(made) > 0
	})
	require.NoError(t, l.Shape(1, 4_000_000)) // the image takes 100 s
	r := onCluster(t, l, 2, "run", "-d", "--name", "eager", "-e", "constraint:node==node2", "slow:2",
		"sh", "-c", "echo up; sha256sum /data; echo done; exec sleep 1000")
	require.Zero(t, r.code, r.err)
	logs := func() string { return onNode(t, l, 2, "logs", "eager").out }
	within(t, time.Minute, "it says something", func() bool { return strings.Contains(logs(), "up") })
	require.NoError(t, l.Shape(1, 1_000_000)) // the rest would take minutes, while agents die
	require.Empty(t, onNode(t, l, 2, "images", "-q").out, "the image isn't whole, and is listed")

	require.NoError(t, l.Kill(t.Context(), 2))
	require.NoError(t, l.Start(t.Context(), 2))
	require.Equal(t, "true", strings.TrimSpace(onNode(t, l, 2, "inspect", "-f", "{{.State.Running}}", "eager").out))
	require.Empty(t, onNode(t, l, 2, "images", "-q").out)
	require.NoError(t, l.Kill(t.Context(), 1))
	require.NoError(t, l.Start(t.Context(), 1))
	require.NoError(t, l.Shape(1, 0))

	within(t, 2*time.Minute, "it has read all", func() bool { return strings.Contains(logs(), "done") })
	require.Contains(t, logs(), want)
	within(t, time.Minute, "the image is whole", func() bool { return onNode(t, l, 2, "images", "-q").out != "" })
	within(t, time.Minute, "nothing of its arrival is left", func() bool {
		left, err := os.ReadDir(filepath.Join(l.Data(2), "images", "early"))
		return err == nil && len(left) == 0
	})
	require.Equal(t, "/data: OK", strings.TrimSpace(onNode(t, l, 2, "exec", "eager", "sh", "-c", "echo '"+want+"  /data' | sha256sum -c").out))
	require.Zero(t, onNode(t, l, 2, "restart", "-t", "0", "eager").code)
	within(t, time.Minute, "it reads all again", func() bool { return strings.Count(logs(), want) == 2 })
	require.Zero(t, onNode(t, l, 2, "rm", "-f", "eager").code)
}

// onCluster runs a docker command against the cluster, through node n.
func onCluster(t *testing.T, l *lab.Lab, n int, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+l.Socket(n), "DOCKER_CONFIG="+filepath.Dir(shared.busybox))
	return runCommand(t, cmd)
}

// startEarly restarts a node's agent with start_early.
func startEarly(t *testing.T, l *lab.Lab, n int) {
	t.Helper()
	config, err := os.OpenFile(filepath.Join(l.Dir(), fmt.Sprintf("node%d", n), "agent.toml"), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = config.WriteString("\n[images]\nstart_early = true\n")
	require.NoError(t, err)
	require.NoError(t, config.Close())
	require.NoError(t, l.Stop(t.Context(), n))
	require.NoError(t, l.Start(t.Context(), n))
}
