package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/integration/lab"
)

// onNode runs a docker command against node n alone.
func onNode(t *testing.T, l *lab.Lab, n int, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+l.NodeSocket(n), "DOCKER_CONFIG="+filepath.Dir(shared.busybox))
	return runCommand(t, cmd)
}

// TestPrivateImage: what is private to node 1 and node 2 reaches node 3 in no way, and
// every refusal says why.
func TestPrivateImage(t *testing.T) {
	archive := uniqueImage(t, "secret:1")
	ok(t, 1, "load", "-q", "-i", archive)
	r := shoal(t, 3, "image", "private", "secret:1", "--node", "node1", "--node", "tag:vault=yes", "--json")
	require.Zero(t, r.code, r.err)
	var private []struct {
		Digest, ID          string
		Nodes, Tags, Others []string
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &private))
	require.Equal(t, []string{"node1"}, private[0].Nodes)
	require.Zero(t, shoal(t, 1, "tag", "--node", "node2", "vault=yes").code)
	defer func() {
		shoal(t, 1, "image", "public", "secret:1")
		shoal(t, 1, "tag", "--node", "node2", "vault-")
	}()
	within(t, time.Minute, "all know", func() bool {
		for n := 1; n <= 3; n++ {
			if !strings.Contains(shoal(t, n, "image", "where", "secret:1").out, "node1, node2") {
				return false
			}
		}
		return true
	})
	const who = "private to node1, nodes tagged vault=yes"
	refused := func(r result, why string) {
		t.Helper()
		require.NotZero(t, r.code, r.out)
		require.Contains(t, r.out+r.err, why)
	}
	by := "secret@" + private[0].Digest
	refused(docker(t, 3, "run", "--rm", "-e", "constraint:node==node3", "secret:1"), "node3: image secret:1 is "+who)
	refused(docker(t, 3, "pull", "secret:1"), "image secret:1 is "+who+": node3 may not have it")
	refused(docker(t, 3, "pull", by), who+": node3 may not have it")
	refused(docker(t, 3, "save", "-o", filepath.Join(t.TempDir(), "x"), "secret:1"), who)
	refused(onNode(t, shared.lab, 3, "pull", "secret:1"), who+": node3 may not have it")
	refused(onNode(t, shared.lab, 3, "pull", by), who+": node3 may not have it")
	refused(shoal(t, 1, "image", "copy", "secret:1", "node3"), who+": node3 may not have it")
	registry := func(n int, path string) result {
		return inside(t, n, "curl", "-s", "-w", "\n%{http_code}", "-H", "Accept: */*", "http://localhost:5000/v2/"+path)
	}
	out := registry(3, "secret/manifests/1").out
	require.Contains(t, out, `"DENIED"`)
	require.Contains(t, out, "node3 may not have it")
	require.Contains(t, out, "\n403")
	require.Contains(t, registry(3, "secret/manifests/"+private[0].Digest).out, "\n403")
	require.Contains(t, registry(3, "secret/blobs/"+private[0].ID).out, "\n404")
	require.Contains(t, registry(1, "secret/manifests/1").out, "\n200")

	c := name(t)
	ok(t, 3, "run", "-d", "--name", c, "-e", "constraint:node!=node1", "secret:1")
	within(t, time.Minute, "node 2 holds it, and only nodes that may", func() bool {
		where := shoal(t, 1, "image", "where", "secret:1").out
		return strings.Contains(where, "node2 ") && !strings.Contains(where, "node3 ") && !strings.Contains(where, "not to this node")
	})
	require.NotContains(t, onNode(t, shared.lab, 3, "images", "-a").out, "secret")
	require.Contains(t, registry(2, "secret/manifests/1").out, "\n200")

	// The next version is private as soon as it is there.
	ok(t, 1, "load", "-q", "-i", newVersion(t, "secret:1"))
	refused(docker(t, 3, "pull", "secret:1"), who)
	require.Zero(t, shoal(t, 3, "image", "public", "secret:1").code)
	ok(t, 1, "rm", "-f", c)
	within(t, time.Minute, "it is public", func() bool { return docker(t, 3, "pull", "secret:1").code == 0 })
	ok(t, 3, "run", "-d", "--name", c, "-e", "constraint:node==node3", "secret:1")
	ok(t, 1, "rm", "-f", c)
	ok(t, 1, "rmi", "-f", "secret:1")
}

// newVersion is an archive of another image of the same name.
func newVersion(t *testing.T, ref string) (archive string) {
	t.Run("new version", func(t *testing.T) {
		raw, err := os.ReadFile(uniqueImage(t, ref))
		require.NoError(t, err)
		archive = filepath.Join(filepath.Dir(filepath.Dir(t.TempDir())), filepath.Base(t.Name())+".tar")
		require.NoError(t, os.WriteFile(archive, raw, 0o600))
	})
	t.Cleanup(func() { os.Remove(archive) })
	return archive
}

// TestShutOut: a transfer ends in its middle when its image becomes private to others, and
// when its node is removed, which then gets nothing and can't come back with what it knows.
func TestShutOut(t *testing.T) {
	dir := fmt.Sprintf("/run/shoal-test-%d-%d", os.Getpid(), shared.counter.Add(1))
	l, err := lab.Up(t.Context(), dir, lab.Options{Nodes: 2, Binary: shared.shoal, Out: io.Discard})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, l.Down(ctx))
	})
	run := func(n int, name string, args ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+l.Socket(n), "SHOAL_HOST=unix://"+l.Socket(n), "DOCKER_CONFIG="+filepath.Dir(shared.busybox))
		return runCommand(t, cmd)
	}
	require.Zero(t, run(1, shared.docker, "load", "-q", "-i", uniqueImage(t, "slow:1")).code)
	token := strings.TrimSpace(run(1, shared.shoal, "token").out)
	require.NoError(t, l.Shape(1, 2_000_000)) // 4 MiB take 17 s
	pulling := func() chan result {
		t.Helper()
		done := make(chan result, 1)
		before := arrived(t, l.Data(2))
		go func() { done <- run(2, shared.docker, "pull", "slow:1") }()
		within(t, time.Minute, "bytes come", func() bool {
			select {
			case r := <-done:
				t.Fatalf("the pull ended: %+v", r)
			default:
			}
			return arrived(t, l.Data(2)) > before+256<<10
		})
		return done
	}
	ended := func(done chan result) result {
		t.Helper()
		select {
		case r := <-done:
			require.NotZero(t, r.code, r.out)
			return r
		case <-time.After(time.Minute):
			t.Fatal("the transfer goes on")
			return result{}
		}
	}
	done := pulling()
	require.Zero(t, run(1, shared.shoal, "image", "private", "slow:1", "--node", "node1").code)
	ended(done)
	require.Contains(t, run(2, shared.docker, "pull", "slow:1").err, "private to node1")
	require.Zero(t, run(1, shared.shoal, "image", "public", "slow:1").code)

	done = pulling()
	r := run(1, shared.shoal, "node", "rm", "node2")
	require.NotZero(t, r.code)
	require.Contains(t, r.err, "--force")
	r = run(1, shared.shoal, "node", "rm", "--force", "node2")
	require.Zero(t, r.code, r.err)
	ended(done)
	require.NotContains(t, run(1, shared.shoal, "node", "ls").out, "node2")
	require.NotZero(t, run(2, shared.docker, "pull", "slow:1").code)
	require.NoError(t, l.Shape(1, 0))
	within(t, time.Minute, "node 2 knows", func() bool { return !strings.Contains(run(2, shared.shoal, "node", "ls").out, "node1") })
	r = run(2, shared.shoal, "join", token)
	require.NotZero(t, r.code)
	require.Contains(t, r.err, "doesn't take this token")
	r = run(2, shared.shoal, "join", strings.TrimSpace(run(1, shared.shoal, "token").out))
	require.Zero(t, r.code, r.err)
	require.Zero(t, run(2, shared.docker, "pull", "slow:1").code)
}

// arrived is how many bytes of images a node has.
func arrived(t *testing.T, data string) (n int64) {
	t.Helper()
	for _, dir := range []string{"ingest", "blobs/sha256"} {
		entries, err := os.ReadDir(filepath.Join(data, "images", dir))
		require.NoError(t, err)
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil {
				continue
			}
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512 // room for all of it is made at once
			}
		}
	}
	return n
}
