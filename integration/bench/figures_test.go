package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPercentile(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	require.Equal(t, 50.0, percentile(hundred, 50))
	require.Equal(t, 99.0, percentile(hundred, 99))
	require.Equal(t, 100.0, percentile(hundred, 100))
	require.Equal(t, 7.0, percentile([]float64{7}, 99))
	require.Equal(t, 9.0, percentile([]float64{9, 7}, 99), "two values: the larger one")
	require.Equal(t, 100.0, hundred[0], "the values stay as they were")
}

// TestRecordsKeepOtherParts: what isn't measured again stays.
func TestRecordsKeepOtherParts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "figures.json")
	none, err := readRecords(path)
	require.NoError(t, err)
	require.Empty(t, none)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	first := records{"b": {Taken: now, Figures: []figure{{Name: "x", Shoal: 1, Peer: 2}}}, "a": {Figures: []figure{{Name: "y"}}}}
	require.NoError(t, first.write(path))
	again, err := readRecords(path)
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.Equal(t, []figure{{Name: "y"}, {Name: "x", Shoal: 1, Peer: 2}}, again.figures())
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = readRecords(path)
	require.ErrorContains(t, err, path)
}

func TestQuietGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := quiet(ctx, time.Hour)
	if m.busy() == "" {
		require.NoError(t, err)
	} else {
		require.ErrorIs(t, err, context.Canceled)
	}
}

func TestLastFetch(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	write := func(lines ...string) { require.NoError(t, os.WriteFile(log, []byte(strings.Join(lines, "\n")), 0o600)) }
	write(`level=INFO msg="blob fetched" digest=a bytes=556 took=1ms from=node1:556`)
	_, err := lastFetch(log)
	require.ErrorContains(t, err, "tells of no large blob")
	write(`level=INFO msg="blob fetched" digest=b bytes=1073741824 took=9s from=node1:1073741824`,
		`level=INFO msg="blob fetched" digest=b bytes=1073741824 took=5.25s from=node1:1073741824`,
		`level=INFO msg="blob fetched" digest=a bytes=556 took=1ms from=node1:556`)
	took, err := lastFetch(log)
	require.NoError(t, err)
	require.Equal(t, 5250*time.Millisecond, took)
}

func TestBusy(t *testing.T) {
	require.Empty(t, machine{CPUs: 2, Load: [3]float64{0.2, 3, 5}, Pressure: 1}.busy(), "what was long ago doesn't matter")
	require.Contains(t, machine{Load: [3]float64{0.2}, Pressure: 40}.busy(), "40 %")
	require.Contains(t, machine{Load: [3]float64{1.5}, Pressure: -1}.busy(), "1.50")
	require.Contains(t, machine{CPUs: 2, Load: [3]float64{1.5}, Pressure: -1}.String(), "NOT QUIET")
}

// TestOwnFigures compares what /proc says of this process with what is known of it.
func TestOwnFigures(t *testing.T) {
	me := os.Getpid()
	before, err := processor(me)
	require.NoError(t, err)
	begin, own := time.Now(), ownProcessor()
	for ownProcessor()-own < 0.2 && time.Since(begin) < time.Minute {
	}
	after, err := processor(me)
	require.NoError(t, err)
	require.InDelta(t, ownProcessor()-own, after-before, 0.1)

	idle, err := anonymous(me)
	require.NoError(t, err)
	stop := watch(me)
	held := make([]byte, 64<<20)
	for i := range held {
		held[i] = 1
	}
	most, err := stop()
	require.NoError(t, err)
	now, err := anonymous(me)
	require.NoError(t, err)
	require.Greater(t, now-idle, 50.0, "%d bytes more are held", len(held))
	runtime.KeepAlive(held)
	require.GreaterOrEqual(t, most[0], idle)
	require.Len(t, most, 1)
}
