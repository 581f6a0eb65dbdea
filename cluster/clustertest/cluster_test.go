package clustertest_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/clustertest"
)

// inBubble runs a test with a lab in fake time.
func inBubble(t *testing.T, f func(t *testing.T, l *clustertest.Lab)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := clustertest.New(t, dir)
		t.Cleanup(func() {
			l.Close()
			// Gossip's last probes notice by time-outs that their node has ended.
			<-time.After(time.Minute)
		})
		f(t, l)
	})
}

func load(t *testing.T, e api.Engine) {
	t.Helper()
	s, err := e.LoadImages(t.Context(), bytes.NewReader(apitest.Busybox(t)), api.LoadOptions{})
	require.NoError(t, err)
	for _, err := range api.All(s) {
		require.NoError(t, err)
	}
}

func create(ctx context.Context, e api.Engine, name string, env ...string) (string, error) {
	c, err := e.CreateContainer(ctx, api.CreateOptions{Name: name, Config: &container.Config{
		Image: "busybox:latest", Cmd: []string{"sleep", "10000"}, Env: env,
	}})
	return c.ID, err
}

func run(t *testing.T, e api.Engine, name string, env ...string) string {
	t.Helper()
	id, err := create(t.Context(), e, name, env...)
	require.NoError(t, err)
	require.NoError(t, e.StartContainer(t.Context(), id, api.StartOptions{}))
	return id
}

// ps are the names of the running containers with their states.
func ps(t *testing.T, e api.Engine) map[string]string {
	t.Helper()
	cs, err := e.ListContainers(t.Context(), api.ListOptions{})
	require.NoError(t, err)
	out := map[string]string{}
	for _, c := range cs {
		out[strings.TrimPrefix(c.Names[0], "/")] = c.Status
	}
	return out
}

func TestOneEngine(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		for i := range 6 {
			run(t, nodes[i%3].Engine(), fmt.Sprint("c", i))
			for _, n := range nodes {
				require.Len(t, ps(t, n.Engine()), i+1, "every node shows it at once")
			}
		}
		on := map[string]int{}
		for _, c := range nodes[1].Reader().View().Containers() {
			on[c.NodeID]++
		}
		require.Equal(t, map[string]int{"a": 2, "b": 2, "c": 2}, on, "they spread")
		for _, n := range nodes {
			require.NoError(t, n.Engine().StopContainer(t.Context(), "c0", api.StopOptions{Timeout: new(int)}), n.ID)
			require.NoError(t, n.Engine().StartContainer(t.Context(), "/c0", api.StartOptions{}))
		}
		info, err := nodes[2].Engine().Info(t.Context())
		require.NoError(t, err)
		require.Equal(t, 6, info.ContainersRunning)
		require.Equal(t, 6, info.NCPU)
	})
}

func TestConstraints(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[2].Engine())
		id := run(t, nodes[0].Engine(), "x1", "constraint:node==node-b", "KEEP=me")
		c, err := nodes[0].Reader().View().Container("x1")
		require.NoError(t, err)
		require.Equal(t, "b", c.NodeID)
		i, err := nodes[2].Engine().InspectContainer(t.Context(), id, api.InspectOptions{})
		require.NoError(t, err)
		require.Contains(t, i.Config.Env, "KEEP=me")
		require.False(t, slices.ContainsFunc(i.Config.Env, func(e string) bool { return strings.HasPrefix(e, "constraint:") }))
		_, err = create(t.Context(), nodes[0].Engine(), "y1", "constraint:host==nowhere")
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = nodes[0].SetNodeTags(t.Context(), "node-c", map[string]string{"host": "nowhere"}, nil)
		require.NoError(t, err)
		run(t, nodes[0].Engine(), "y1", "constraint:host==nowhere")
	})
}

func TestOneWinsAName(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		for round := range 200 {
			name := fmt.Sprint("n", round)
			var tasks sync.WaitGroup
			errs := make([]error, len(nodes))
			ids := make([]string, len(nodes))
			for i, n := range nodes {
				tasks.Go(func() { ids[i], errs[i] = create(t.Context(), n.Engine(), name) })
			}
			tasks.Wait()
			won := ""
			for i, err := range errs {
				if err == nil {
					require.Empty(t, won, "two got %s", name)
					won = ids[i]
				}
			}
			require.NotEmpty(t, won, "nobody got %s: %v", name, errs)
			for _, err := range errs {
				if err != nil {
					require.ErrorIs(t, err, errdefs.ErrConflict)
					require.ErrorContains(t, err, `The container name "/`+name+`" is already in use by container "`+won+`"`)
				}
			}
			require.NoError(t, nodes[round%3].Engine().RemoveContainer(t.Context(), name, api.RemoveOptions{}))
		}
	})
}

func TestLeaderDies(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		run(t, nodes[1].Engine(), "on-a", "constraint:node==node-a")
		run(t, nodes[1].Engine(), "on-b", "constraint:node==node-b")
		l.Isolate("a")
		for _, n := range nodes[1:] {
			n.Until(t.Context(), t, "a's container is lost", func(v catalog.View) bool {
				c, err := v.Container("on-a")
				require.NoError(t, err)
				return c.Lost
			})
		}
		status := ps(t, nodes[2].Engine())
		require.Contains(t, status["on-a"], "Unreachable: node node-a")
		require.NotContains(t, status["on-b"], "Unreachable")
		err := nodes[2].Engine().StopContainer(t.Context(), "on-a", api.StopOptions{})
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "node-a")
		_, err = create(t.Context(), nodes[2].Engine(), "on-a")
		require.ErrorIs(t, err, errdefs.ErrConflict, "the name stays claimed")
		run(t, nodes[2].Engine(), "after", "affinity:container!=on-b") // c, then: a can't be reached
		nodes[1].Until(t.Context(), t, "a is written down", func(v catalog.View) bool {
			a, _ := v.Node("a")
			return a.Down
		})
		began := time.Now()
		require.Len(t, ps(t, nodes[0].Engine()), 2, "a cut off node still answers with what it knows")
		require.Less(t, time.Since(began), time.Second)

		l.Heal()
		for _, n := range nodes {
			n.Until(t.Context(), t, "everybody is up again", func(v catalog.View) bool {
				for _, m := range v.Nodes() {
					if m.Down {
						return false
					}
				}
				return !slices.ContainsFunc(v.Containers(), func(c catalog.Container) bool { return c.Lost })
			})
			require.Len(t, ps(t, n.Engine()), 3, "adopted, not duplicated")
		}
	})
}

func TestNodeComesBackFromDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		id := run(t, nodes[0].Engine(), "x1", "constraint:node==node-c")
		before, _ := nodes[0].Reader().View().Node("c")
		l.Stop("c")
		// Meanwhile the container ends, and another one is made behind the cluster's back.
		host := l.Hosts.Host("c", 0)
		require.NoError(t, host.KillContainer(t.Context(), id, "KILL"))
		_, err := create(t.Context(), host.Fake, "stray")
		require.NoError(t, err)
		c := l.Start("c")
		for _, n := range []*clustertest.Node{nodes[0], c} {
			n.Until(t.Context(), t, "c's report", func(v catalog.View) bool {
				x, errX := v.Container("x1")
				s, errS := v.Container("stray")
				return errX == nil && errS == nil && x.State == container.StateExited && s.NodeID == "c" && !x.Lost
			})
		}
		after, _ := c.Reader().View().Node("c")
		require.Equal(t, before.Subnet, after.Subnet)
		require.Equal(t, before.Joined, after.Joined)
		run(t, c.Engine(), "y1")
		require.NoError(t, nodes[1].Engine().RemoveContainer(t.Context(), "stray", api.RemoveOptions{}))
	})
}

func TestWholeClusterRestarts(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		ids := []string{"a", "b", "c"}
		nodes := l.Form(t.Context(), ids...)
		load(t, nodes[0].Engine())
		run(t, nodes[0].Engine(), "x1")
		for _, id := range ids {
			l.Stop(id)
		}
		for _, id := range ids {
			nodes = append(nodes, l.Start(id))
		}
		for _, n := range nodes[3:] {
			n.Until(t.Context(), t, "x is there", func(v catalog.View) bool { _, err := v.Container("x1"); return err == nil })
		}
		run(t, nodes[5].Engine(), "y1")
		require.Len(t, ps(t, nodes[4].Engine()), 2)
	})
}

func TestJoining(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a")
		old, err := nodes[0].Token(t.Context())
		require.NoError(t, err)
		fresh, err := nodes[0].RotateToken(t.Context())
		require.NoError(t, err)
		require.NotEqual(t, old, fresh)

		b := l.Start("b")
		_, err = b.Token(t.Context())
		require.ErrorIs(t, err, cluster.ErrNoCluster)
		err = b.Join(t.Context(), old)
		require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
		require.ErrorContains(t, err, "doesn't take this token")
		require.False(t, b.Member())
		_, known := nodes[0].Reader().View().Node("b")
		require.False(t, known)

		require.NoError(t, b.Join(t.Context(), fresh))
		require.True(t, b.Member())
		require.ErrorIs(t, b.Join(t.Context(), fresh), errdefs.ErrConflict)
		require.ErrorIs(t, b.Init(t.Context()), errdefs.ErrConflict)
		v := b.Reader().View()
		require.Len(t, v.Nodes(), 2)
	})
}

// TestJoiningFirst: whoever asks to join before the node has looked whether it is in a
// cluster already is let in, and told so.
func TestJoiningFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		a := l.Form(t.Context(), "a")[0]
		token, err := a.Token(t.Context())
		require.NoError(t, err)
		b, run := l.Make("b")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		joined := make(chan error, 1)
		go func() { joined <- b.Join(ctx, token) }()
		<-time.After(30 * time.Second) // for all that joining can do by itself
		run()
		require.NoError(t, <-joined)
		require.True(t, b.Member())
	})
}

func TestLeaving(t *testing.T) {
	inBubble(t, func(t *testing.T, l *clustertest.Lab) {
		nodes := l.Form(t.Context(), "a", "b", "c")
		load(t, nodes[0].Engine())
		load(t, nodes[1].Engine())
		run(t, nodes[1].Engine(), "on-a", "constraint:node==node-a")
		require.NoError(t, nodes[0].Leave(t.Context())) // the first leader
		for _, n := range nodes[1:] {
			n.Until(t.Context(), t, "a is gone, and one of two votes", func(v catalog.View) bool {
				voters := 0
				for _, m := range v.Nodes() {
					if m.Voter {
						voters++
					}
				}
				return len(v.Nodes()) == 2 && voters == 1
			})
		}
		run(t, nodes[1].Engine(), "on-a") // the name is free
		nodes[0].Until(t.Context(), t, "a knows that it is out", func(catalog.View) bool { return !nodes[0].Member() })
		require.Len(t, ps(t, nodes[0].Engine()), 1, "its container is still its own")

		token, err := nodes[2].Token(t.Context())
		require.NoError(t, err)
		require.NoError(t, nodes[0].Join(t.Context(), token))
		nodes[1].Until(t.Context(), t, "what runs on a is adopted under another name", func(v catalog.View) bool {
			return slices.ContainsFunc(v.Containers(), func(c catalog.Container) bool {
				return c.NodeID == "a" && strings.HasPrefix(c.Name, "on-a-")
			})
		})
	})
}
