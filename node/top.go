package node

import (
	"bytes"
	"context"
	"errors"
	osexec "os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// renamed finds columns of ps that are given another heading; only that of the
// pid may be, since it is what finds the container's processes.
var renamed = regexp.MustCompile(`\s+(\S*)=\s*(PID\S*)`)

// TopContainer implements api.Observers. It runs the host's ps.
func (n *Node) TopContainer(ctx context.Context, id string, psArgs []string) (container.TopResponse, error) {
	none := container.TopResponse{}
	c, err := n.find(ctx, id)
	if err != nil {
		return none, err
	}
	_, task, err := c.running()
	if err != nil {
		return none, err
	}
	args := strings.Fields(strings.Join(psArgs, " "))
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	for _, m := range renamed.FindAllStringSubmatch(" "+strings.Join(args, " "), -1) {
		if m[1] != "pid" {
			return none, api.InvalidArgument(`specifying "%s=%s" is not allowed`, m[1], m[2])
		}
	}
	pids, err := task.Pids(ctx)
	if err != nil {
		return none, err
	}
	out, err := ps(ctx, args, pids)
	if err != nil {
		return none, api.Internal("ps: %w", err)
	}
	return parsePS(out, pids)
}

// ps lists processes; some of its options don't go together with a choice of
// processes, and then it lists all.
func ps(ctx context.Context, args []string, pids []int) ([]byte, error) {
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	out, err := osexec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q"+strings.Join(list, ","))...).Output()
	if err != nil {
		out, err = osexec.CommandContext(ctx, "ps", args...).Output()
	}
	var exit *osexec.ExitError
	if errors.As(err, &exit) {
		if line, _, _ := bytes.Cut(exit.Stderr, []byte("\n")); len(line) > 0 {
			err = errors.New(string(line))
		}
	}
	return out, err
}

// parsePS picks the processes out of what ps printed. A line without pid is a
// thread of the process above it.
func parsePS(out []byte, pids []int) (container.TopResponse, error) {
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	top := container.TopResponse{Titles: strings.Fields(lines[0]), Processes: [][]string{}}
	at := slices.Index(top.Titles, "PID")
	if at < 0 {
		return top, api.InvalidArgument("Couldn't find PID field in ps output")
	}
	ours := false
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) < len(top.Titles) {
			continue
		}
		if fields[at] != "-" {
			pid, err := strconv.Atoi(fields[at])
			if err != nil {
				return top, api.Internal("Unexpected pid '%s': %w", fields[at], err)
			}
			ours = slices.Contains(pids, pid)
		}
		if ours {
			last := len(top.Titles) - 1
			top.Processes = append(top.Processes, append(fields[:last:last], strings.Join(fields[last:], " ")))
		}
	}
	return top, nil
}
