package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/integration/lab"
)

// delta updates an image of one rebuilt layer, Debian's base system before and after
// the installation of curl, and compares the bytes that moved with a git pack that
// has the one tree and is told of the other, and the time with moving everything.
func (b *bench) delta(ctx context.Context) error {
	keep := b.trees
	if keep == "" {
		keep = b.tmp
	}
	trees := [2]string{filepath.Join(keep, "before"), filepath.Join(keep, "after")}
	if _, err := os.Stat(filepath.Join(keep, "made")); err != nil {
		if err := debian(ctx, trees); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(keep, "made"), nil, 0o644); err != nil {
			return err
		}
	}
	pack, err := thinPack(ctx, filepath.Join(b.tmp, "git"), trees)
	if err != nil {
		return err
	}
	for _, layer := range []struct {
		what   string
		gzip   bool
		speeds []string
	}{
		{"plain", false, []string{"200mbit", "unshaped"}},
		{"gzip", true, []string{"50mbit", "200mbit", "unshaped"}},
	} {
		archives, size := [2]string{}, int64(0)
		for i, tree := range trees {
			archives[i] = filepath.Join(b.tmp, fmt.Sprintf("debian%d.tar", i))
			if size, err = treeImage(ctx, tree, archives[i], fmt.Sprintf("debian:%d", i), layer.gzip); err != nil {
				return err
			}
		}
		for _, speed := range layer.speeds {
			var moved, took, whole, spent, spentWhole []float64
			for range b.updates {
				u, err := b.update(ctx, archives, speed)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", layer.what, speed, err)
				}
				fmt.Fprintf(os.Stderr, "%s, %s: %+v\n", layer.what, speed, u)
				moved, took, whole = append(moved, u.moved/1e6), append(took, u.took), append(whole, u.whole)
				spent, spentWhole = append(spent, u.spent), append(spentWhole, u.spentWhole)
			}
			what := fmt.Sprintf("update of a %s layer of %d MB rebuilt after apt-get install curl, %s: ", layer.what, size/1e6, speed)
			b.add(figure{what + "bytes moved", "MB", median(moved), pack / 1e6, spread(moved) + "; peer: git's thin pack between the two trees"})
			b.add(figure{what + "time", "s", median(took), median(whole), spread(took) + "; peer: the same image to a node that has nothing of it, " + spread(whole)})
			b.add(figure{what + "processor time of all agents", "s", median(spent), median(spentWhole), "peer: as before"})
		}
	}
	return nil
}

// updated is what an update took, and what moving everything did: seconds, and seconds
// of processors.
type updated struct{ moved, took, whole, spent, spentWhole float64 }

// update brings the first image to node 2, and then the second to node 3, which has
// nothing, and to node 2. Nodes cut their blobs before.
func (b *bench) update(ctx context.Context, archives [2]string, speed string) (u updated, err error) {
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 3, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	bring := func(image, node int) (float64, error) {
		begin := time.Now()
		err := b.must(ctx, l.Socket(1), "create", "-e", fmt.Sprintf("constraint:node==node%d", node), fmt.Sprintf("debian:%d", image), "true")
		return time.Since(begin).Seconds(), err
	}
	for i, archive := range archives {
		if err := b.must(ctx, l.NodeSocket(1), "load", "-q", "-i", archive); err != nil {
			return u, err
		}
		if i == 0 {
			if _, err := bring(0, 2); err != nil {
				return u, err
			}
			if err := cutAhead(ctx, l.Data(2), 1); err != nil {
				return u, err
			}
		}
	}
	if err := cutAhead(ctx, l.Data(1), 2); err != nil {
		return u, err
	}
	if speed != "unshaped" {
		rate, err := lab.ParseRate(speed)
		if err != nil {
			return u, err
		}
		for n := 1; n <= 3; n++ {
			if err := l.Shape(n, rate); err != nil {
				return u, err
			}
		}
	}
	before, err := received(l.Log(2))
	if err != nil {
		return u, err
	}
	if u.whole, u.spentWhole, err = b.measured(l, func() (float64, error) { return bring(1, 3) }); err != nil {
		return u, err
	}
	if err := cutAhead(ctx, l.Data(3), 1); err != nil { // not beside what follows
		return u, err
	}
	if u.took, u.spent, err = b.measured(l, func() (float64, error) { return bring(1, 2) }); err != nil {
		return u, err
	}
	after, err := received(l.Log(2))
	u.moved = after - before
	return u, err
}

// measured is what something took, and the processor time of all agents meanwhile.
func (b *bench) measured(l *lab.Lab, do func() (float64, error)) (took, spent float64, err error) {
	var agents []int
	for n := 1; n <= l.Nodes(); n++ {
		agents = append(agents, l.Pid(n))
	}
	before, err := processor(agents...)
	if err != nil {
		return 0, 0, err
	}
	if took, err = do(); err != nil {
		return 0, 0, err
	}
	after, err := processor(agents...)
	return took, after - before, err
}

// cutAhead waits until a node has cut so many blobs into chunks.
func cutAhead(ctx context.Context, data string, blobs int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		cut, err := filepath.Glob(filepath.Join(data, "chunks", "[0-9a-f]*"))
		if err != nil || len(cut) >= 2*blobs { // by content and by tokens
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// received adds up what a node got from others, as it says in its log.
func received(log string) (total float64, err error) {
	raw, err := os.ReadFile(log)
	if err != nil {
		return 0, err
	}
	for _, from := range regexp.MustCompile(`msg="blob fetched".* from=(\S+)`).FindAllSubmatch(raw, -1) {
		for _, n := range regexp.MustCompile(`:(\d+)`).FindAllSubmatch(from[1], -1) {
			v, err := strconv.ParseFloat(string(n[1]), 64)
			if err != nil {
				return 0, err
			}
			total += v
		}
	}
	return total, nil
}

// debian makes the trees, from the mirror this machine uses.
func debian(ctx context.Context, trees [2]string) error {
	mirror, suite, err := aptSource()
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"debootstrap", "--variant=minbase", suite, trees[0], mirror},
		{"cp", "-a", trees[0], trees[1]},
		{"cp", "--remove-destination", "/etc/resolv.conf", filepath.Join(trees[1], "etc/resolv.conf")},
		{"chroot", trees[1], "apt-get", "-qq", "update"},
		{"chroot", trees[1], "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "install", "-y", "curl"},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out[max(0, len(out)-500):])
		}
	}
	return nil
}

// aptSource is the first mirror that apt uses here, and the release of this machine.
func aptSource() (mirror, suite string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	if m := regexp.MustCompile(`(?m)^VERSION_CODENAME=(\S+)$`).FindSubmatch(release); m != nil {
		suite = string(m[1])
	}
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	url := regexp.MustCompile(`(?m)^(?:URIs:|deb\s+(?:\[[^]]*\]\s+)?)\s*(https?://\S+)`)
	for _, f := range append(files, "/etc/apt/sources.list") {
		raw, _ := os.ReadFile(f)
		if m := url.FindSubmatch(raw); m != nil && suite != "" {
			return string(m[1]), suite, nil
		}
	}
	return "", "", errors.New("apt has no source here to make a Debian tree from")
}

// treeImage writes a docker-save archive of one layer, a tar with its names in order,
// compressed as Docker does if that is wanted, and returns the layer's size.
func treeImage(ctx context.Context, tree, path, ref string, compress bool) (size int64, err error) {
	layer := tree + ".tar"
	if out, err := exec.CommandContext(ctx, "tar", "--sort=name", "--numeric-owner", "-C", tree, "-cf", layer, ".").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("tar: %w: %s", err, out)
	}
	defer os.Remove(layer)
	diff, err := packLayer(layer, layer+".gz")
	if err != nil {
		return 0, err
	}
	defer os.Remove(layer + ".gz")
	if compress {
		layer += ".gz"
	}
	f, err := os.Open(layer)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size = fi.Size()
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/bin/true"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff.String()}},
	})
	if err != nil {
		return 0, err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return 0, err
	}
	return size, writeTar(path, []entry{
		{"layer.tar", size, f},
		{"config.json", int64(len(config)), bytes.NewReader(config)},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	})
}

// packLayer compresses a layer and returns its diff ID.
func packLayer(from, to string) (diff digest.Digest, err error) {
	in, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	z := gzip.NewWriter(out)
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(io.MultiWriter(z, sum.Hash()), in); err != nil {
		return "", err
	}
	return sum.Digest(), z.Close()
}

type entry struct {
	name string
	size int64
	body io.Reader
}

func writeTar(path string, entries []entry) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	w := bufio.NewWriterSize(out, 1<<20)
	t := tar.NewWriter(w)
	for _, e := range entries {
		if err := t.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: e.size}); err != nil {
			return err
		}
		if _, err := io.Copy(t, e.body); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), w.Flush(), out.Close())
}

// thinPack is the size of what git sends for the second tree to one that has the first.
func thinPack(ctx context.Context, repo string, trees [2]string) (float64, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"--git-dir=" + repo, "-c", "core.excludesFile=/dev/null", "-c", "gc.auto=0"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=b", "GIT_AUTHOR_EMAIL=b@b", "GIT_COMMITTER_NAME=b", "GIT_COMMITTER_EMAIL=b@b")
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w", args[0], err)
		}
		return string(out), nil
	}
	if _, err := git("init", "-q", "--bare"); err != nil {
		return 0, err
	}
	var commits []string
	for _, tree := range trees {
		if _, err := git("--work-tree="+tree, "add", "-A", "-f", "."); err != nil {
			return 0, err
		}
		id, err := git("write-tree")
		if err != nil {
			return 0, err
		}
		args := []string{"commit-tree", "-m", "tree", strings.TrimSpace(id)}
		for _, parent := range commits {
			args = append(args, "-p", parent)
		}
		if id, err = git(args...); err != nil {
			return 0, err
		}
		commits = append(commits, strings.TrimSpace(id))
	}
	list := commits[1] + "\n^" + commits[0] + "\n"
	cmd := exec.CommandContext(ctx, "sh", "-c", `git --git-dir="$0" pack-objects --thin --revs --stdout -q | wc -c`, repo)
	cmd.Stdin = strings.NewReader(list)
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("git pack-objects: %w", err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}
