package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

// count prints 1, 2, 3, … for as long as it lives.
const count = `i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done`

// Writer is a container on each node that nobody touches: it must live through
// everything, with every line it wrote.
type Writer struct{ id, started string }

// StartWriters starts one writer on each node.
func StartWriters(ctx context.Context, nodes []*client.Client) ([]Writer, error) {
	var out []Writer
	for n := 1; n < len(nodes); n++ {
		made, err := nodes[n].CreateContainer(ctx, api.CreateOptions{Name: fmt.Sprint("writer", n), Config: &container.Config{
			Image: "busybox", Cmd: []string{"sh", "-c", count}, Env: []string{fmt.Sprintf("constraint:node==node%d", n)}, StopSignal: "SIGKILL",
		}})
		if err != nil {
			return nil, fmt.Errorf("make writer%d: %w", n, err)
		}
		if err := nodes[n].StartContainer(ctx, made.ID, api.StartOptions{}); err != nil {
			return nil, fmt.Errorf("start writer%d: %w", n, err)
		}
		i, err := nodes[n].InspectContainer(ctx, made.ID, api.InspectOptions{})
		if err != nil {
			return nil, fmt.Errorf("inspect writer%d: %w", n, err)
		}
		out = append(out, Writer{made.ID, i.State.StartedAt})
	}
	return out, nil
}

// Writers checks that the writers live and nothing they wrote is missing.
func (f *Final) Writers(ctx context.Context, ws []Writer) []string {
	var found []string
	for i, w := range ws {
		if why := f.uninterrupted(ctx, w.id, w.started); why != "" {
			found = append(found, fmt.Sprintf("writer%d: %s", i+1, why))
		}
		// Asked through another node than its own.
		raw, err := logs(ctx, f.whole[1+(i+1)%len(ws)], w.id)
		if err == nil {
			err = gapless(raw)
		}
		if err != nil {
			found = append(found, fmt.Sprintf("writer%d's log: %v", i+1, err))
		}
	}
	return found
}

func logs(ctx context.Context, e *client.Client, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*opLimit)
	defer cancel()
	r, err := e.ContainerLogs(ctx, id, api.LogsOptions{Stdout: true, Tail: -1})
	if err != nil {
		return "", err
	}
	defer r.Close()
	var out bytes.Buffer
	_, err = stdcopy.Copy(&out, io.Discard, r)
	return out.String(), err
}

// minLines is what a writer has surely written by the end of a round.
const minLines = 20

// gapless checks that a log counts from 1.
func gapless(log string) error {
	lines := strings.Fields(log)
	for i, l := range lines {
		if l != strconv.Itoa(i+1) {
			return fmt.Errorf("line %d of %d says %q", i+1, len(lines), l)
		}
	}
	if len(lines) < minLines {
		return fmt.Errorf("only %d lines", len(lines))
	}
	return nil
}
