package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api/imagetar"
	"github.com/shoal-engine/shoal/integration/lab"
)

// noSpace is how the kernel says it.
const noSpace = "no space left on device"

// TestFullDisk fills a node's disk at each stage of getting an image: while a blob comes,
// while it is unpacked, and wholly. What fails says so, nothing of it stays, the node
// remains one of the cluster, and all of it works once there is room.
func TestFullDisk(t *testing.T) {
	l := own(t, 2)
	small := smallDisk(t, l, 2, "96M")
	const size = 24 << 20
	type image struct {
		ref, sum string
		leave    int64 // bytes of the disk, less than it takes
	}
	var images []image
	for _, i := range []image{{ref: "plain:1", leave: 12 << 20}, {ref: "gzip:1", leave: 12 << 20}, {ref: "unpacked:1", leave: size + 8<<20}} {
		var archive string
		archive, i.sum = dataImage(t, i.ref, size)
		if i.ref != "plain:1" {
			packed := filepath.Join(t.TempDir(), "packed.tar")
			out, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "--dest-compress", "docker-archive:"+archive, "oci-archive:"+packed+":"+i.ref).CombinedOutput()
			require.NoError(t, err, "%s", out)
			archive = packed
		}
		require.Zero(t, onNode(t, l, 1, "load", "-q", "-i", archive).code)
		images = append(images, i)
	}
	require.Zero(t, onNode(t, l, 1, "load", "-q", "-i", shared.busybox).code)
	require.Zero(t, onNode(t, l, 2, "load", "-q", "-i", shared.busybox).code)
	require.Zero(t, onCluster(t, l, 1, "run", "-d", "--name", "stays", "-e", "constraint:node==node2", "busybox", "sleep", "1000").code)
	for _, i := range images {
		before := filesOf(l, 2)
		free := fill(t, small, i.leave)
		for what, r := range map[string]result{
			"copy": shoalOn(t, l, 1, "image", "copy", i.ref, "node2"),
			"run":  onCluster(t, l, 1, "run", "--rm", "-e", "constraint:node==node2", i.ref, "true"),
		} {
			require.NotZero(t, r.code, "%s %s: %s", what, i.ref, r.out)
			require.Contains(t, r.err+r.out, noSpace, "%s %s", what, i.ref)
		}
		require.NotContains(t, onNode(t, l, 2, "images").out, strings.TrimSuffix(i.ref, ":1"))
		require.Equal(t, "stays", strings.TrimSpace(onCluster(t, l, 2, "ps", "--format", "{{.Names}}").out))
		free()
		nothingLeft(t, l, before)

		r := shoalOn(t, l, 1, "image", "copy", i.ref, "node2")
		require.Zero(t, r.code, r.err)
		r = onCluster(t, l, 1, "run", "--rm", "-e", "constraint:node==node2", i.ref, "sha256sum", "/data")
		require.Contains(t, r.out, i.sum, r.err)
		require.Zero(t, onNode(t, l, 2, "rmi", i.ref).code)
	}
	wholly(t, l, small)
	eagerly(t, l, small)
}

// eagerly starts a container before its image is there, and before it is known to fit.
func eagerly(t *testing.T, l *lab.Lab, small string) {
	t.Helper()
	startEarly(t, l, 2)
	archive, sum := dataImage(t, "eager:1", 24<<20)
	require.Zero(t, onNode(t, l, 1, "load", "-q", "-i", archive).code)
	run := func() result {
		return onCluster(t, l, 1, "run", "--rm", "-e", "constraint:node==node2", "eager:1", "sha256sum", "/data")
	}
	within(t, time.Minute, "node 2 is one of the cluster again", func() bool {
		return onCluster(t, l, 1, "run", "--rm", "-e", "constraint:node==node2", "busybox", "true").code == 0
	})
	before := filesOf(l, 2)
	free := fill(t, small, 12<<20)
	r := run()
	require.NotZero(t, r.code, r.out)
	require.Contains(t, r.err, noSpace)
	free()
	nothingLeft(t, l, before)
	r = run()
	require.Contains(t, r.out, sum, r.err)
}

// wholly leaves node 2 not one byte, and expects it to do all that needs none.
func wholly(t *testing.T, l *lab.Lab, small string) {
	t.Helper()
	for _, c := range []string{"old", "older"} {
		require.Zero(t, onCluster(t, l, 1, "run", "-d", "--name", c, "-e", "constraint:node==node2", "busybox", "sleep", "1000").code)
	}
	free := fill(t, small, 0)
	require.Equal(t, "hi", strings.TrimSpace(onCluster(t, l, 1, "exec", "stays", "echo", "hi").out))
	r := onCluster(t, l, 1, "run", "--name", "none", "-e", "constraint:node==node2", "busybox", "true")
	require.NotZero(t, r.code, r.out)
	require.Contains(t, r.err, noSpace)
	r = onCluster(t, l, 1, "rm", "-f", "old")
	require.Zero(t, r.code, r.err)
	require.NoError(t, l.Kill(t.Context(), 2))
	free()
	free = fill(t, small, 0)
	require.NoError(t, l.Start(t.Context(), 2))
	within(t, time.Minute, "node 2 is one of the cluster on a full disk", func() bool {
		return strings.Contains(onCluster(t, l, 1, "ps", "--format", "{{.Names}}").out, "stays") &&
			onCluster(t, l, 1, "exec", "stays", "true").code == 0
	})
	r = onCluster(t, l, 1, "rm", "-f", "older")
	require.Zero(t, r.code, r.err)
	free()
	require.Zero(t, onCluster(t, l, 2, "run", "--rm", "-e", "constraint:node==node2", "busybox", "true").code)
	require.Empty(t, onCluster(t, l, 1, "ps", "-aq", "--filter", "name=none").out)
	require.Zero(t, onCluster(t, l, 1, "rm", "-f", "stays").code)
}

// TestKilledWhileFetching kills the agent that fetches an image, again and again, each
// time when more has come, and at last before it is unpacked. What came isn't sent again.
func TestKilledWhileFetching(t *testing.T) {
	l := own(t, 2)
	const size, stages = 24 << 20, 6
	archive, sum := dataImage(t, "slow:1", size)
	require.Zero(t, onNode(t, l, 1, "load", "-q", "-i", archive).code)
	require.NoError(t, l.Shape(1, 40_000_000)) // about five seconds
	begin := sentByNode(t, l, 1)
	for stage := 1; stage <= stages; stage++ {
		ctx, stop := context.WithCancel(t.Context())
		var copying sync.WaitGroup
		copying.Go(func() {
			for ctx.Err() == nil { // a node that has just come back isn't known to be there
				cmd := exec.CommandContext(ctx, shared.shoal, "image", "copy", "slow:1", "node2")
				cmd.Env = append(os.Environ(), "SHOAL_HOST=unix://"+l.Socket(1))
				_ = cmd.Run()
			}
		})
		within(t, time.Minute, fmt.Sprintf("%d of %d parts are there", stage, stages), func() bool {
			return held(t, l, 2) >= size*int64(stage)/stages
		})
		require.NoError(t, l.Kill(ctx, 2))
		stop()
		copying.Wait()
		require.NoError(t, l.Start(t.Context(), 2))
	}
	within(t, time.Minute, "the image is copied", func() bool { return shoalOn(t, l, 1, "image", "copy", "slow:1", "node2").code == 0 })
	// What was under way at each kill, headers, and what nodes tell each other.
	require.Less(t, float64(sentByNode(t, l, 1)-begin), 1.5*size)
	r := onCluster(t, l, 1, "run", "--rm", "-e", "constraint:node==node2", "slow:1", "sha256sum", "/data")
	require.Contains(t, r.out, sum, r.err)
}

// held is how many bytes a node has on its disk of blobs that are coming, or are there.
func held(t *testing.T, l *lab.Lab, n int) (size int64) {
	t.Helper()
	for _, dir := range []string{"ingest", "blobs"} {
		_ = filepath.WalkDir(filepath.Join(l.Data(n), "images", dir), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // it has moved on
			}
			if info, err := d.Info(); err == nil {
				size += 512 * info.Sys().(*syscall.Stat_t).Blocks // a file that is coming may have holes
			}
			return nil
		})
	}
	return size
}

// sentByNode is how many bytes have left a node's link.
func sentByNode(t *testing.T, l *lab.Lab, n int) int64 {
	t.Helper()
	r := runCommand(t, exec.CommandContext(t.Context(), shared.shoal, "lab", "exec", "--dir", l.Dir(), strconv.Itoa(n), "--", "cat", "/sys/class/net/eth0/statistics/tx_bytes"))
	v, err := strconv.ParseInt(strings.TrimSpace(r.out), 10, 64)
	require.NoError(t, err, r.err)
	return v
}

// dataImage is an image of one layer, noise before the programs, and the noise's sum.
func dataImage(t *testing.T, ref string, size int) (archive, sum string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	require.NoError(t, err)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(ref))).Read(data)
	files := []imagetar.File{{Name: "data", Body: data}, {Name: "bin/busybox", Body: busybox, Mode: 0o755}}
	for _, name := range []string{"sh", "sha256sum", "sleep", "echo", "true"} {
		files = append(files, imagetar.File{Name: "bin/" + name, Link: "busybox"})
	}
	image := imagetar.Image{Refs: []string{ref}, Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, Layers: [][]imagetar.File{files}}
	raw, err := imagetar.Bytes(image)
	require.NoError(t, err)
	archive = filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(archive, raw, 0o600))
	return archive, fmt.Sprintf("%x", sha256.Sum256(data))
}

// smallDisk gives a node of a lab a file system of its own for its data.
func smallDisk(t *testing.T, l *lab.Lab, n int, size string) (dir string) {
	t.Helper()
	dir = l.Data(n)
	require.NoError(t, l.Stop(t.Context(), n))
	file, aside := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	do := func(args ...string) error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return nil
	}
	require.NoError(t, do("cp", "-a", dir+"/.", aside))
	require.NoError(t, do("truncate", "-s", size, file))
	require.NoError(t, do("mkfs.ext4", "-q", "-m0", "-b", "4096", file))
	if err := do("mount", "-o", "loop", file, dir); err != nil {
		t.Log("no loop devices here, memory will do:", err)
		require.NoError(t, do("mount", "-t", "tmpfs", "-o", "size="+size, "none", dir))
	}
	require.NoError(t, do("cp", "-a", aside+"/.", dir))
	t.Cleanup(func() { // before the lab's own
		out, err := exec.Command("umount", "--lazy", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	require.NoError(t, l.Start(t.Context(), n))
	return dir
}

// fill takes all of a file system but some bytes, until free is called.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	zeros := bytes.Repeat([]byte{0}, 1<<20)
	for {
		var s unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(f.Fd()), &s))
		left := int64(s.Bavail)*s.Bsize - leave
		if left <= 0 {
			break
		}
		if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			break
		}
		require.NoError(t, f.Sync()) // or what is free isn't known yet
	}
	return func() { require.NoError(t, os.Remove(path)) }
}

// nothingLeft waits until node 2's image store has the files that it had before.
func nothingLeft(t *testing.T, l *lab.Lab, before []string) {
	t.Helper()
	require.EventuallyWithT(t, func(t2 *assert.CollectT) { assert.Equal(t2, before, filesOf(l, 2)) }, time.Minute, 50*time.Millisecond)
}

// filesOf lists what a node's image store has on the disk.
func filesOf(l *lab.Lab, n int) (names []string) {
	root := filepath.Join(l.Data(n), "images")
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() { // an error is of what has just gone
			names = append(names, strings.TrimPrefix(path, root))
		}
		return nil
	})
	return names
}
