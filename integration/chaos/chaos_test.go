package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/integration/lab"
)

const (
	nodes = 5
	// seedFile keeps the seeds of rounds that found something, one in a line.
	seedFile = "seeds.txt"
	// dirPrefix is followed by the process that the lab is of.
	dirPrefix = "/run/shoal-chaos-"
)

// TestChaos goes through rounds for CHAOS_TIME, or through two: one whose seed once
// found something and a new one. CHAOS_SEED replays one seed instead.
func TestChaos(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes namespaces and containers")
	}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	seeds, until := plan(t)
	l := up(ctx, t)
	ops, unclear := 0, 0
	for i := 0; i == 0 || i < len(seeds) || time.Now().Before(until); i++ {
		seed := rand.Uint64()
		if i < len(seeds) {
			seed = seeds[i]
		}
		t.Logf("seed %d (CHAOS_SEED=%d replays it)", seed, seed)
		r, err := Round(ctx, l, seed, t.Logf)
		require.NoError(t, err)
		ops, unclear = ops+len(r.Ops), unclear+r.Count(Unclear)
		t.Logf("%d operations: %d done, %d refused, %d unclear; %d listings; all agreed after %v",
			len(r.Ops), r.Count(Done), r.Count(Refused), r.Count(Unclear), r.Looks, r.Settled.Round(time.Millisecond))
		if len(r.Findings) > 0 {
			keep(t, l, r)
			t.Fatalf("seed %d: %d findings:\n  %s", seed, len(r.Findings), strings.Join(r.Findings, "\n  "))
		}
	}
	t.Logf("in all %d operations, %d of them unclear", ops, unclear)
}

// plan is what to do: the seeds to begin with, and how long to go on after them.
func plan(t *testing.T) (seeds []uint64, until time.Time) {
	if s := os.Getenv("CHAOS_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "CHAOS_SEED")
		return []uint64{seed}, until
	}
	kept := readSeeds(t)
	if s := os.Getenv("CHAOS_TIME"); s != "" {
		d, err := time.ParseDuration(s)
		require.NoError(t, err, "CHAOS_TIME")
		return kept, time.Now().Add(d)
	}
	if len(kept) > 0 {
		seeds = append(seeds, kept[rand.IntN(len(kept))])
	}
	return append(seeds, rand.Uint64()), until
}

func readSeeds(t *testing.T) []uint64 {
	f, err := os.Open(seedFile)
	require.NoError(t, err)
	defer f.Close()
	var out []uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, seedFile)
		out = append(out, seed)
	}
	return out
}

// up makes a lab with the image on its first node. It goes with the test, and labs
// that earlier processes left behind go too.
func up(ctx context.Context, t *testing.T) *lab.Lab {
	sweep(t)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	out, err := exec.Command(filepath.Join(root, "bin/mkimage"), "-o", archive, "-busybox").CombinedOutput()
	require.NoError(t, err, "make the image (has `make build` run?): %s", out)
	l, err := lab.Up(ctx, dirPrefix+strconv.Itoa(os.Getpid()), lab.Options{Nodes: nodes, Binary: filepath.Join(root, "bin/shoal"), Out: io.Discard})
	require.NoError(t, err)
	t.Cleanup(func() { down(t, l) })
	f, err := os.Open(archive)
	require.NoError(t, err)
	defer f.Close()
	progress, err := dial(l.Socket(1)).LoadImages(ctx, f, api.LoadOptions{Quiet: true})
	require.NoError(t, err)
	for _, err := range api.All(progress) {
		require.NoError(t, err)
	}
	return l
}

func down(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, l.Down(ctx))
}

// sweep removes the labs of processes that were killed.
func sweep(t *testing.T) {
	dirs, err := filepath.Glob(dirPrefix + "*")
	require.NoError(t, err)
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(dir, dirPrefix))
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if l, err := lab.Open(dir); err == nil {
			down(t, l)
		}
	}
}

// keep writes down what a round that found something was like, and its seed.
func keep(t *testing.T, l *lab.Lab, r Report) {
	dir, err := os.MkdirTemp("", fmt.Sprintf("shoal-chaos-%d-", r.Seed))
	require.NoError(t, err)
	var b strings.Builder
	for _, o := range r.Ops {
		fmt.Fprintln(&b, o)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "history.txt"), []byte(b.String()), 0o600))
	for n := 1; n <= l.Nodes(); n++ {
		raw, err := os.ReadFile(l.Log(n))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("node%d.log", n)), raw, 0o600))
	}
	t.Logf("the history and the agents' logs are in %s", dir)
	if os.Getenv("CHAOS_SEED") != "" {
		return
	}
	for _, seed := range readSeeds(t) {
		if seed == r.Seed {
			return
		}
	}
	f, err := os.OpenFile(seedFile, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	what, _, _ := strings.Cut(r.Findings[0], "\n")
	_, err = fmt.Fprintf(f, "%d # %s\n", r.Seed, what)
	require.NoError(t, err)
}
