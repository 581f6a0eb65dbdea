package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/integration/lab"
)

// TestStartsEarly runs a container whose image takes long to come, and kills the agent
// under it and then the node that the image comes from.
func TestStartsEarly(t *testing.T) {
	dir := fmt.Sprintf("/run/shoal-test-%d-%d", os.Getpid(), shared.counter.Add(1))
	l, err := lab.Up(t.Context(), dir, lab.Options{Nodes: 2, Binary: shared.shoal, Out: io.Discard})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			saveLogs(l)
		}
		require.NoError(t, l.Down(ctx))
	})
	config, err := os.OpenFile(filepath.Join(l.Dir(), "node2", "agent.toml"), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = config.WriteString("\n[images]\nstart_early = true\n")
	require.NoError(t, err)
	require.NoError(t, config.Close())
	require.NoError(t, l.Stop(t.Context(), 2))
	require.NoError(t, l.Start(t.Context(), 2))

	archive, want := slowImage(t)
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

// slowImage is an image of one layer, 50 MB of data before the programs, and the sum of
// the data.
func slowImage(t *testing.T) (archive, sum string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	require.NoError(t, err)
	data := make([]byte, 48<<20)
	_, _ = rand.NewChaCha8([32]byte{77}).Read(data)
	files := []imagetar.File{{Name: "data", Body: data}, {Name: "bin/busybox", Body: busybox, Mode: 0o755}}
	for _, name := range []string{"sh", "sha256sum", "sleep", "echo"} {
		files = append(files, imagetar.File{Name: "bin/" + name, Link: "busybox"})
	}
	image := imagetar.Image{Refs: []string{"slow:2"}, Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, Layers: [][]imagetar.File{files}}
	raw, err := imagetar.Bytes(image)
	require.NoError(t, err)
	archive = filepath.Join(t.TempDir(), "slow.tar")
	require.NoError(t, os.WriteFile(archive, raw, 0o600))
	return archive, fmt.Sprintf("%x", sha256.Sum256(data))
}
