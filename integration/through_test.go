package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// request is a line of the registry's log: who asked for what, and how many bytes went.
var request = regexp.MustCompile(`(?m)^(\S+) - \S* ?\[[^]]*\] "GET (/v2/\S+/(?:blobs|manifests)/\S+) [^"]*" (20[06]) (\d+)`)

// given is how many bytes of what left a registry, as its log says.
func given(t *testing.T, log string) map[string]int64 {
	t.Helper()
	raw, err := os.ReadFile(log)
	require.NoError(t, err)
	out := map[string]int64{}
	for _, m := range request.FindAllStringSubmatch(string(raw), -1) {
		n, err := strconv.ParseInt(m[4], 10, 64)
		require.NoError(t, err)
		out[m[2]] += n
	}
	return out
}

// TestOneAsksTheRegistry: three nodes pull an image at once that none of them has, and
// it leaves the registry about once.
func TestOneAsksTheRegistry(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "access.log"))
	require.NoError(t, err)
	defer log.Close()
	host, _ := loggedRegistry(t, 1, 5097, false, log)
	ref := host + "/at-once:1"
	archive := filepath.Join(t.TempDir(), "image.tar")
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	out, err := exec.Command(filepath.Join(root, "bin/mkimage"), "-o", archive, "-ref", "at-once:1", "-cmd", "/web", "-pad", "96MiB", "-seed", "97",
		"/web="+filepath.Join(root, "bin/webapp")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	r := inside(t, 1, "skopeo", "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+archive, "docker://"+ref)
	require.Zero(t, r.code, r.err)
	forget(t, ref)
	for n := range 3 {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, shared.docker, "-H", "unix://"+shared.lab.NodeSocket(n+1), "rmi", "-f", ref)
			_ = cmd.Run() // it may be gone
		})
	}

	require.Empty(t, given(t, log.Name()))
	start := time.Now()
	var pulls sync.WaitGroup
	results := make([]result, 3)
	for i := range results {
		pulls.Go(func() { results[i] = onNode(t, shared.lab, i+1, "pull", "-q", ref) })
	}
	pulls.Wait()
	t.Logf("pulled by three nodes in %v", time.Since(start))
	ids := map[string]bool{}
	for i, r := range results {
		require.Zero(t, r.code, "node %d: %s", i+1, r.err)
		r = onNode(t, shared.lab, i+1, "image", "inspect", "-f", "{{.Id}}", ref)
		require.Zero(t, r.code, r.err)
		ids[strings.TrimSpace(r.out)] = true
	}
	require.Len(t, ids, 1)
	var blobs int64
	for what, n := range given(t, log.Name()) {
		t.Log(what, n)
		if strings.Contains(what, "/blobs/") {
			blobs += n
		}
	}
	size := int64(96 << 20)
	require.GreaterOrEqual(t, blobs, size)
	// A node that is starved of processor time for a second may go by itself for a while.
	require.LessOrEqual(t, float64(blobs), 1.5*float64(size), fmt.Sprintf("%.2f times the image left the registry", float64(blobs)/float64(size)))
}
