package node

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

func readFrames(r io.Reader) (string, error) {
	var b bytes.Buffer
	_, err := stdcopy.Copy(&b, &b, r)
	return b.String(), err
}

func TestRealWalk(t *testing.T) {
	h := newRealHost(t)
	n, _ := h.node(t)
	loadBusybox(t, n)
	out, code := run(t, n, &container.HostConfig{AutoRemove: true}, "sh", "-c", "echo hello; echo oops >&2; exit 3")
	require.EqualValues(t, 3, code)
	require.Equal(t, "hello\noops\n", out)

	for i := range 5 { // a process that lives for a millisecond loses nothing
		out, code = run(t, n, nil, "echo", fmt.Sprint("line ", i))
		require.Zero(t, code)
		require.Equal(t, fmt.Sprintf("line %d\n", i), out)
	}
	list, err := n.ListContainers(t.Context(), api.ListOptions{All: true})
	require.NoError(t, err)
	require.Len(t, list, 5)
	logs, err := n.ContainerLogs(t.Context(), list[0].ID, api.LogsOptions{Stdout: true, Tail: -1})
	require.NoError(t, err)
	text, err := readFrames(logs)
	require.NoError(t, err)
	require.Equal(t, "line 4\n", text)
}
