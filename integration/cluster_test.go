package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/integration/lab"
)

// TestOneNameOneWinner races pairs of clients for a name.
func TestOneNameOneWinner(t *testing.T) {
	for round := range 20 {
		c := name(t)
		var results [2]result
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() { results[i] = docker(t, 1+(round+i)%3, "run", "-d", "--name", c, "busybox", "sleep", "1000") })
		}
		wg.Wait()
		won, lost := results[0], results[1]
		if won.code != 0 {
			won, lost = lost, won
		}
		require.Zero(t, won.code, won.err)
		require.Equal(t, 125, lost.code, lost.out)
		require.Contains(t, lost.err, fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by container \"%s\"", c, strings.TrimSpace(won.out)))
		require.Len(t, strings.Fields(ok(t, 1+round%3, "ps", "-aq", "--filter", "name=^"+c+"$")), 1)
		ok(t, 2, "rm", "-f", c)
	}
}

func TestPortsAreTheClusters(t *testing.T) {
	c, d := name(t), name(t)
	ok(t, 1, "run", "-d", "--name", c, "-p", "8080:80", "-e", "TEXT=hello", "web:1")
	for n := 1; n <= 3; n++ {
		for _, host := range []string{"127.0.0.1", lab.Address(1).String(), lab.Address(2).String(), lab.Address(3).String()} {
			r := inside(t, n, "curl", "-sS", "-m", "5", "http://"+host+":8080/")
			require.Contains(t, r.out, "hello from", "node %d asks %s: %s", n, host, r.err)
		}
		require.Contains(t, ok(t, n, "port", c), "0.0.0.0:8080")
	}
	r := docker(t, 3, "run", "-d", "--name", d, "-p", "8080:80", "web:1")
	require.Equal(t, 125, r.code)
	require.Contains(t, r.err, "port is already allocated")
	require.Empty(t, ok(t, 1, "ps", "-aq", "--filter", "name=^"+d+"$"), "a refused container leaves nothing")
	ok(t, 2, "rm", "-f", c)
	ok(t, 3, "run", "-d", "--name", d, "-p", "8080:80", "web:1")
	ok(t, 1, "rm", "-f", d)
}

// TestImagesTravel loads an image on one node and starts it on all others.
func TestImagesTravel(t *testing.T) {
	for n := 1; n <= 3; n++ {
		c := name(t)
		ok(t, 1, "run", "-d", "--name", c, "-e", fmt.Sprintf("constraint:node==node%d", n), "web:1")
		require.Contains(t, ok(t, 2, "ps", "--filter", "name="+c), c)
		where := shoal(t, 1, "image", "where", "web:1")
		require.Contains(t, where.out, fmt.Sprintf("node%d", n), where.err)
	}
}

func TestPlacementIsExplained(t *testing.T) {
	r := docker(t, 1, "run", "-d", "-e", "constraint:node==nowhere", "busybox", "true")
	require.Equal(t, 125, r.code)
	for n := 1; n <= 3; n++ {
		require.Contains(t, r.err, fmt.Sprintf("node%d", n), "a refusal names every node")
	}
	r = docker(t, 1, "run", "-d", "-m", "10000g", "busybox", "true")
	require.Equal(t, 125, r.code)
	require.Contains(t, r.err, "node3")
	c := name(t)
	ok(t, 2, "run", "-d", "--name", c, "-e", "constraint:node==node2", "busybox", "sh", "-c", "env; sleep 1000")
	require.NotContains(t, ok(t, 1, "logs", c), "constraint")
}

// A name comes and goes within nameTime, as is promised. A single look that took longer,
// because the machine had no time to start dig, counts up to nameLimit: what isn't told by
// events comes with a node's next comparison, after up to 30 seconds.
const (
	nameTime  = time.Second
	nameLimit = 10 * time.Second
)

// TestNamesFollowContainers bounds how long a name takes to come and to go.
func TestNamesFollowContainers(t *testing.T) {
	var came, went []time.Duration
	for target := 1; target <= 3; target++ {
		c := name(t)
		ok(t, 1, "run", "-d", "--name", c, "-p", "80", "--label", "tier=front", "-e", fmt.Sprintf("constraint:node==node%d", target), "web:1")
		var address string
		for n := 1; n <= 3; n++ {
			came = append(came, within(t, nameLimit, "the name's coming", func() bool {
				address = dig(t, n, c)
				return address != ""
			}))
			require.Equal(t, address, dig(t, n, c+".shoal"))
			require.Contains(t, dig(t, n, "tier.front.tag.shoal"), address)
			require.Contains(t, dig(t, n, "-t", "SRV", "_80._tcp."+c+".shoal"), fmt.Sprintf("node%d.node.shoal", target))
			r := inside(t, n, "curl", "-sS", "-m", "5", "http://"+address+"/")
			require.Contains(t, r.out, "from", "node %d reaches the container's address: %s", n, r.err)
		}
		// Containers on every host resolve it too, and reach it.
		for n := 1; n <= 3; n++ {
			out := ok(t, n, "run", "--rm", "-e", fmt.Sprintf("constraint:node==node%d", n), "web:1", "/web", "-get", "http://"+c+"/")
			require.Contains(t, out, "200 OK")
		}
		ok(t, 2, "stop", "-t", "1", c)
		for n := 1; n <= 3; n++ {
			went = append(went, within(t, nameLimit, "the name's going", func() bool { return dig(t, n, c) == "" }))
		}
	}
	for _, took := range [][]time.Duration{came, went} {
		slices.Sort(took)
		require.Less(t, took[len(took)*3/4], nameTime, "%v", took)
	}
}

// dig asks node n's name server.
func dig(t *testing.T, n int, args ...string) string {
	t.Helper()
	return strings.TrimSpace(inside(t, n, append([]string{"dig", "+short", "+time=1", "+tries=1"}, args...)...).out)
}

// TestLeaderDies kills the leader's agent: nothing acknowledged is lost, the rest
// goes on within seconds, its containers were never interrupted.
func TestLeaderDies(t *testing.T) {
	leader := 0
	within(t, time.Minute, "a leader", func() bool {
		for _, s := range shared.lab.Status(t.Context()) {
			if s.Role == "leader" {
				leader = s.N
			}
		}
		return leader != 0
	})
	other := leader%3 + 1
	var before []string
	for i := range 6 {
		c := name(t)
		ok(t, other, "run", "-d", "--name", c, "-e", fmt.Sprintf("constraint:node==node%d", i%3+1), "busybox", "sh", "-c", "while :; do date +%s; sleep 1; done")
		before = append(before, c)
	}
	started := map[string]string{}
	for _, c := range before {
		started[c] = ok(t, other, "inspect", "-f", "{{.State.StartedAt}}", c)
	}
	require.NoError(t, shared.lab.Kill(t.Context(), leader))
	t.Cleanup(func() { _ = shared.lab.Start(context.Background(), leader) })
	for _, n := range []int{leader%3 + 1, (leader+1)%3 + 1} {
		c := name(t)
		took := within(t, 5*time.Second, "a docker run after the leader's death", func() bool {
			r := docker(t, n, "run", "-d", "--name", c, "busybox", "sleep", "1000")
			return r.code == 0
		})
		t.Logf("node %d accepted docker run %v after the kill", n, took)
		before = append(before, c)
	}
	all := ok(t, other, "ps", "-a", "--format", "{{.Names}}")
	for _, c := range before {
		require.Contains(t, strings.Fields(all), c)
	}
	require.NoError(t, shared.lab.Start(t.Context(), leader))
	for c, at := range started {
		within(t, time.Minute, "the return of "+c, func() bool {
			r := docker(t, leader, "inspect", "-f", "{{.State.StartedAt}} {{.State.Running}}", c)
			return strings.TrimSpace(r.out) == at+" true"
		})
	}
	for _, c := range before {
		require.Len(t, strings.Fields(ok(t, leader, "ps", "-aq", "--filter", "name=^"+c+"$")), 1, "adopted, never duplicated")
	}
}

// TestAgentDiesWhileContainersEnd checks that logs and exit codes survive.
func TestAgentDiesWhileContainersEnd(t *testing.T) {
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "-e", "constraint:node==node3", "busybox", "sh", "-c", "for i in $(seq 1 20); do echo $i; sleep 0.1; done; exit 9")
	require.NoError(t, shared.lab.Kill(t.Context(), 3))
	sock := ok(t, 1, "ps", "-a", "--filter", "name="+c, "--format", "{{.Names}}")
	require.Equal(t, c, sock)
	require.NoError(t, shared.lab.Start(t.Context(), 3))
	within(t, time.Minute, "the exit code", func() bool {
		return docker(t, 1, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", c).out == "exited 9\n"
	})
	require.Len(t, strings.Fields(ok(t, 2, "logs", c)), 20)
}

func TestPartitionedNode(t *testing.T) {
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "-e", "constraint:node==node3", "web:1")
	require.NoError(t, shared.lab.Partition([][]int{{1, 2}, {3}}))
	t.Cleanup(func() { _ = shared.lab.Heal() })
	within(t, 15*time.Second, "withdrawal of a lost node's names", func() bool { return dig(t, 1, c) == "" })
	within(t, time.Minute, "a docker run on the majority's side", func() bool {
		return docker(t, 1, "run", "--rm", "busybox", "true").code == 0
	})
	require.Contains(t, ok(t, 2, "ps", "-a", "--format", "{{.Names}}"), c, "a listing doesn't hang on a lost node")
	require.NoError(t, shared.lab.Heal())
	within(t, time.Minute, "the name's return", func() bool { return dig(t, 1, c) != "" })
	within(t, time.Minute, "three ready nodes", func() bool {
		return strings.Count(shoal(t, 1, "node", "ls").out, " ready ") == 3
	})
}
