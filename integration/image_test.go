package integration

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// uniqueImage is the archive of an image that no other test has.
func uniqueImage(t *testing.T, ref string) (archive string) {
	t.Helper()
	dir := t.TempDir()
	note := filepath.Join(dir, "note")
	require.NoError(t, os.WriteFile(note, []byte(t.Name()), 0o600))
	archive = filepath.Join(dir, "image.tar")
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	out, err := exec.Command(filepath.Join(root, "bin/mkimage"), "-o", archive, "-ref", ref, "-cmd", "/web", "-pad", "4MiB", "-seed", fmt.Sprint(crc32.ChecksumIEEE([]byte(t.Name()+ref))),
		"/web="+filepath.Join(root, "bin/webapp"), "/note="+note).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return archive
}

// TestImageCopyToUsers brings a service's next version to where the present one runs.
func TestImageCopyToUsers(t *testing.T) {
	ok(t, 1, "load", "-q", "-i", uniqueImage(t, "seeded:1"))
	ok(t, 2, "run", "-d", "--name", name(t), "--label", "service=seeded", "-e", "constraint:node==node3", "seeded:1")
	ok(t, 1, "load", "-q", "-i", uniqueImage(t, "seeded:2"))

	r := shoal(t, 2, "image", "copy", "seeded:2", "--filter", "label=service=other")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "no container matches the filter")
	r = shoal(t, 2, "image", "copy", "seeded:2", "--filter", "nonsense")
	require.Equal(t, 2, r.code)
	require.Contains(t, r.err, "write KEY=VALUE")

	for i, filter := range []string{"label=service=seeded", "ancestor=seeded:1"} {
		r = shoal(t, 2, "image", "copy", "seeded:2", "--filter", filter)
		require.Zero(t, r.code, r.err)
		require.Contains(t, r.out, "node3\t"+[]string{"Complete", "Already there"}[i])
	}
	require.NotContains(t, shoal(t, 1, "image", "where", "seeded:2").out, "node2")
}

func TestImageCopy(t *testing.T) {
	ok(t, 1, "load", "-q", "-i", uniqueImage(t, "copied:1"))
	r := shoal(t, 2, "image", "copy", "copied:1")
	require.Equal(t, 2, r.code, "neither nodes nor --all")
	r = shoal(t, 2, "image", "copy", "copied:1", "nowhere")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "node nowhere not found")
	r = shoal(t, 2, "image", "copy", "nothing:1", "--all")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "No such image")

	r = shoal(t, 2, "image", "copy", "copied:1", "node3", "--json")
	require.Zero(t, r.code, r.err)
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	var last struct {
		ID, Status string
		Aux        struct {
			Peers map[string]int64
			Final bool
		}
	}
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last))
	require.Equal(t, "node3", last.ID)
	require.Equal(t, "Complete", last.Status)
	require.True(t, last.Aux.Final)
	require.Greater(t, last.Aux.Peers["node1"], int64(3<<20), "it came from the node that had it")
	require.NotContains(t, shoal(t, 1, "image", "where", "copied:1").out, "node2")

	r = shoal(t, 1, "image", "copy", "copied:1", "--all")
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, "node1\tAlready there")
	require.Contains(t, r.out, "node2\tComplete")
	within(t, time.Minute, "three holders", func() bool {
		return strings.Count(shoal(t, 1, "image", "where", "copied:1").out, "copied:1") == 3
	})
	ok(t, 1, "rmi", "copied:1")
}

func TestImageVerify(t *testing.T) {
	ok(t, 1, "load", "-q", "-i", uniqueImage(t, "checked:1"))
	require.Zero(t, shoal(t, 1, "image", "copy", "checked:1", "node2").code)
	within(t, time.Minute, "two holders", func() bool {
		return strings.Count(shoal(t, 2, "image", "where", "checked:1").out, "checked:1") == 2
	})
	type checked struct{ Kind, Digest, State, Why string }
	verify := func(n, code int, args ...string) (all []checked, states map[string]int) {
		t.Helper()
		r := shoal(t, n, append([]string{"image", "verify", "--json"}, args...)...)
		require.Equal(t, code, r.code, r.err)
		require.NoError(t, json.Unmarshal([]byte(r.out), &all))
		states = map[string]int{}
		for _, c := range all {
			states[c.State]++
		}
		return all, states
	}
	all, states := verify(2, 0, "checked:1")
	require.Len(t, states, 1)
	require.NotZero(t, states["ok"])
	damage := func(n int) (damaged int) {
		for _, c := range all {
			if c.Kind != "blob" {
				continue
			}
			path := filepath.Join(shared.lab.Data(n), "images/blobs/sha256", strings.TrimPrefix(c.Digest, "sha256:"))
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("damage"), 7)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			damaged++
		}
		return damaged
	}
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "-e", "constraint:node==node2", "checked:1")
	n := damage(2)
	_, states = verify(2, 0)
	require.Equal(t, n, states["repaired"], "%v", states)
	_, states = verify(2, 0)
	require.Zero(t, states["repaired"])
	require.Equal(t, "true", ok(t, 1, "inspect", "-f", "{{.State.Running}}", c), "containers run on")

	// Where both have it damaged, it is lost, and said so; a load brings it back.
	damage(1)
	damage(2)
	_, states = verify(1, 1, "checked:1")
	require.NotZero(t, states["lost"])
	require.Equal(t, 1, shoal(t, 1, "image", "verify", "nothing:1").code)
	require.Equal(t, "true", ok(t, 1, "inspect", "-f", "{{.State.Running}}", c))
	ok(t, 1, "load", "-q", "-i", uniqueImage(t, "checked:1"))
	_, states = verify(1, 0, "checked:1")
	require.Zero(t, states["lost"])
	_, states = verify(2, 0, "checked:1")
	require.Equal(t, n, states["repaired"])
	ok(t, 1, "rm", "-f", c)
	ok(t, 1, "rmi", "checked:1")
}

// TestTransportPlugin moves an image between two clusters that know nothing of each
// other but a git repository.
func TestTransportPlugin(t *testing.T) {
	bin, repository := t.TempDir(), filepath.Join(t.TempDir(), "blobs.git")
	text, err := os.ReadFile("plugins/shoal-transport-git")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "shoal-transport-git"), text, 0o755))
	cluster := func() *env {
		l := single(t)
		path := filepath.Join(l.Dir(), "node1", "agent.toml")
		old, err := os.ReadFile(path)
		require.NoError(t, err)
		added := fmt.Sprintf("\n[transport]\nplugins = [\"git\"]\nplugin_dir = %q\noffer = true\n[transport.settings.git]\nrepository = %q\n", bin, repository)
		require.NoError(t, os.WriteFile(path, append(old, added...), 0o600))
		require.NoError(t, l.Stop(t.Context(), 1))
		require.NoError(t, l.Start(t.Context(), 1))
		return &env{lab: l, docker: shared.docker, busybox: shared.busybox}
	}
	a, b := cluster(), cluster()
	r := runCommand(t, a.command(t.Context(), 1, "load", "-q", "-i", uniqueImage(t, "carried:1")))
	require.Zero(t, r.code, r.err)
	within(t, time.Minute, "the image's blobs in the repository", func() bool {
		out, _ := exec.Command("git", "--git-dir", repository, "for-each-ref").Output()
		return strings.Count(string(out), "refs/blobs/sha256/") >= 4 // manifest, config, two layers
	})
	where, err := a.lab.Control(1).ImageWhere(t.Context(), "carried:1")
	require.NoError(t, err)
	r = runCommand(t, b.command(t.Context(), 1, "pull", "-q", "carried@"+where[0].Digest))
	require.Zero(t, r.code, r.err)
	r = runCommand(t, b.command(t.Context(), 1, "run", "--rm", "carried@"+where[0].Digest, "/web", "-h"))
	require.NotEqual(t, 125, r.code, r.err)
}
