package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// machine is what else this machine did when the benchmark began.
type machine struct {
	CPUs int
	Load [3]float64 // averages of 1, 5 and 15 minutes
	// Pressure is the share of the last ten seconds, in percent, in which something
	// waited for a processor; -1 if the kernel doesn't tell.
	Pressure float64
}

func lookAround() (machine, error) {
	m := machine{CPUs: runtime.NumCPU(), Pressure: -1}
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	if _, err := fmt.Sscan(string(raw), &m.Load[0], &m.Load[1], &m.Load[2]); err != nil {
		return m, fmt.Errorf("read /proc/loadavg: %w", err)
	}
	if raw, err := os.ReadFile("/proc/pressure/cpu"); err == nil {
		if _, err := fmt.Sscanf(string(raw), "some avg10=%f", &m.Pressure); err != nil {
			return m, fmt.Errorf("read /proc/pressure/cpu: %w", err)
		}
	}
	return m, nil
}

// busy says why figures taken now aren't worth much; empty if nothing speaks against them.
func (m machine) busy() string {
	switch {
	case m.Pressure >= 5:
		return fmt.Sprintf("in %.0f %% of the last ten seconds something waited for a processor", m.Pressure)
	case m.Load[0] >= 0.5:
		return fmt.Sprintf("the load average is %.2f", m.Load[0])
	}
	return ""
}

func (m machine) String() string {
	s := fmt.Sprintf("%d processors; load average at the start %.2f %.2f %.2f", m.CPUs, m.Load[0], m.Load[1], m.Load[2])
	if why := m.busy(); why != "" {
		s += "; NOT QUIET: " + why
	}
	return s
}

// processor is the time, in seconds, that processes and the children they waited for
// have spent on processors.
func processor(pids ...int) (float64, error) {
	const hertz = 100 // of /proc, whatever the kernel's own is
	total := 0.0
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		if len(fields) < 15 {
			return 0, errors.New("odd /proc stat")
		}
		for _, f := range fields[11:15] { // of user and system, its own and its children's
			n, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, err
			}
			total += n / hertz
		}
	}
	return total, nil
}

// anonymous is what a process has in memory that no file backs, in MiB.
func anonymous(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	total := 0.0
	for line := range strings.Lines(string(raw)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "RssAnon" && name != "RssShmem" {
			continue
		}
		kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			return 0, err
		}
		total += kb / 1024
	}
	return total, nil
}

// weighed is what each of some processes has in anonymous memory, in MiB.
func weighed(pids []int) ([]float64, error) {
	out := make([]float64, len(pids))
	var err error
	for i, pid := range pids {
		if out[i], err = anonymous(pid); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// watchEvery is often enough to see a fetch's memory grow, and seldom enough for the
// looking itself, which is done for every process, not to be seen.
const watchEvery = 100 * time.Millisecond

// watch notes the most that each process has in anonymous memory, in MiB, until the function it returns is called.
func watch(pids ...int) (stop func() ([]float64, error)) {
	most := make([]float64, len(pids))
	done := make(chan struct{})
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			now, err := weighed(pids)
			if err != nil {
				failed = err
				return
			}
			for i, v := range now {
				most[i] = max(most[i], v)
			}
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() ([]float64, error) {
		close(done)
		wg.Wait()
		return most, failed
	}
}
