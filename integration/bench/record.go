package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// record is what one part measured, when, and how busy the machine was before.
type record struct {
	Taken   time.Time
	Machine machine
	Figures []figure
}

func (r record) print() {
	fmt.Println(r.Machine)
	fmt.Println()
	fmt.Println("| what | unit | Shoal | peer | ratio | |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, f := range r.Figures {
		peer := "–"
		if f.Peer != 0 {
			peer = number(f.Peer)
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", f.Name, f.Unit, number(f.Shoal), peer, f.ratio(), f.Note)
	}
	fmt.Println()
}

// records are the latest figures of each part, by the part's name.
type records map[string]record

// readRecords reads a file of records; none is an empty one.
func readRecords(path string) (records, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return records{}, nil
	}
	if err != nil {
		return nil, err
	}
	r := records{}
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func (r records) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// figures are those of all parts, in the order of their names.
func (r records) figures() (all []figure) {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		all = append(all, r[name].Figures...)
	}
	return all
}

// quiet waits at most so long until nothing speaks against measuring, and warns if
// something still does.
func quiet(ctx context.Context, settle time.Duration) (machine, error) {
	end := time.Now().Add(settle)
	for {
		m, err := lookAround()
		if err != nil {
			return m, err
		}
		why := m.busy()
		if why == "" {
			return m, nil
		}
		left := time.Until(end)
		if left <= 0 {
			fmt.Fprintln(os.Stderr, "bench: take the figures as orders of magnitude:", why)
			return m, nil
		}
		select {
		case <-time.After(min(left, time.Second)):
		case <-ctx.Done():
			return m, context.Cause(ctx)
		}
	}
}
