package lab

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cmd/shoal/config"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"": 0, "0": 0, "none": 0, "100mbit": 100e6, "1gbit": 1e9, "500kbit": 500e3, "1.5mbit": 1.5e6, "10mbps": 80e6, "2048bit": 2048,
	} {
		got, err := ParseRate(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"100", "fast", "-1mbit", "mbit", "1e30gbit", "0mbit"} {
		_, err := ParseRate(in)
		require.ErrorContains(t, err, in)
	}
}

func TestParseGroups(t *testing.T) {
	got, err := ParseGroups("1,2/node3", 5)
	require.NoError(t, err)
	require.Equal(t, [][]int{{1, 2}, {3}, {4, 5}}, got)
	for _, in := range []string{"", "1/1", "0", "6", "a/b", "1,,2"} {
		_, err := ParseGroups(in, 5)
		require.Error(t, err, in)
	}
}

func TestAddressesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for n := 1; n <= maxNodes; n++ {
		a := Address(n)
		require.True(t, underlay.Contains(a))
		require.False(t, seen[a.String()], "node %d", n)
		seen[a.String()] = true
	}
}

func TestAgentConfigIsOne(t *testing.T) {
	l := &Lab{dir: "/run/x", state: state{Nodes: 3, Data: "/var/lib/x"}}
	c, err := config.Parse(string(agentConfig(l, 2, map[string]string{"zone": "a\"b", "x.y": "1"})))
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	require.Equal(t, "node2", c.Name)
	require.Equal(t, map[string]string{"zone": "a\"b", "x.y": "1"}, c.Tags)
	require.Equal(t, l.Socket(2), c.Socket())
	require.Equal(t, l.NodeSocket(2), c.NodeSocket())
}

func FuzzParseGroups(f *testing.F) {
	f.Add("1,2/3", 3)
	f.Fuzz(func(t *testing.T, s string, nodes int) {
		nodes = max(0, min(nodes, maxNodes))
		groups, err := ParseGroups(s, nodes)
		if err != nil {
			return
		}
		n := 0
		for _, g := range groups {
			n += len(g)
		}
		require.Equal(t, nodes, n, "every node is in exactly one group")
	})
}
