package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/cmd/shoal/control"
)

// DefaultDir is where a lab lives unless told otherwise.
const DefaultDir = "/run/shoal-lab"

// maxNodes is what the underlay's numbering and one machine's memory bear.
const maxNodes = 200

// Lab is one throw-away cluster. Its methods are safe to call from several
// processes as far as they concern different nodes.
type Lab struct {
	dir   string
	state state
}

// state is what D/lab.json holds.
type state struct {
	Version int
	Nodes   int
	Binary  string // the shoal that agents run
	Data    string // the nodes' data
	Rate    uint64 // bits a second, 0 unshaped
}

// Options of a new lab.
type Options struct {
	Nodes  int
	Rate   uint64    // bits a second on every node's link, both ways; 0 unshaped
	Binary string    // path of the shoal binary
	Out    io.Writer // progress, one line a step
	// Tags of a node, by its number.
	Tags func(n int) map[string]string
}

// Open finds the lab in dir.
func Open(dir string) (*Lab, error) {
	l := &Lab{dir: dir}
	raw, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no lab in %s: start one with `shoal lab up`", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab: %w", err)
	}
	if err := json.Unmarshal(raw, &l.state); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): remove the lab with `shoal lab down --dir %s`", filepath.Join(dir, "lab.json"), err, dir)
	}
	return l, nil
}

// Up makes a lab in dir and returns once every node sees every other. If that
// fails, nothing of it stays.
func Up(ctx context.Context, dir string, o Options) (*Lab, error) {
	if err := checkUp(dir, o); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	sum := sha256.Sum256([]byte(dir))
	l := &Lab{dir: dir, state: state{
		Version: 1, Nodes: o.Nodes, Binary: o.Binary, Rate: o.Rate,
		Data: filepath.Join("/var/lib/shoal-lab", hex.EncodeToString(sum[:4])),
	}}
	if err := l.up(ctx, o); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return nil, errors.Join(err, l.Down(clean))
	}
	return l, nil
}

func checkUp(dir string, o Options) error {
	switch {
	case os.Getuid() != 0:
		return errors.New("a lab needs root: it makes network namespaces, links and containers")
	case o.Nodes < 1 || o.Nodes > maxNodes:
		return fmt.Errorf("a lab has 1 to %d nodes, not %d", maxNodes, o.Nodes)
	}
	if _, err := os.Stat(filepath.Join(dir, "lab.json")); err == nil {
		return fmt.Errorf("there is a lab in %s already: `shoal lab status` shows it, `shoal lab down` ends it", dir)
	}
	if len(filepath.Join(dir, "node200", "shoal.sock")) > 100 {
		return fmt.Errorf("directory %s is too long for the names of unix sockets; choose a shorter one", dir)
	}
	return nil
}

func (l *Lab) up(ctx context.Context, o Options) error {
	if err := l.save(); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "network: %d namespaces on one switch\n", o.Nodes)
	if err := makeSwitch(l.switchPath()); err != nil {
		return err
	}
	for n := 1; n <= o.Nodes; n++ {
		if err := l.makeNode(n, o); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
	}
	fmt.Fprintf(o.Out, "agents: starting %d\n", o.Nodes)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for n := 1; n <= o.Nodes; n++ {
		g.Go(func() error { return l.Start(gctx, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.form(ctx, o.Out); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "ready: %d nodes, one engine\n", o.Nodes)
	return nil
}

// form makes one cluster of the running agents.
func (l *Lab) form(ctx context.Context, out io.Writer) error {
	first := l.Control(1)
	if err := first.Init(ctx); err != nil {
		return fmt.Errorf("init node1: %w", err)
	}
	token, err := first.Token(ctx)
	if err != nil {
		return fmt.Errorf("get the join token: %w", err)
	}
	for n := 2; n <= l.state.Nodes; n++ {
		if err := l.Control(n).Join(ctx, token); err != nil {
			return fmt.Errorf("join node%d: %w", n, err)
		}
	}
	fmt.Fprintf(out, "cluster: %d nodes joined\n", l.state.Nodes)
	for n := 1; n <= l.state.Nodes; n++ {
		if err := l.awaitNodes(ctx, n, l.state.Nodes); err != nil {
			return err
		}
	}
	return nil
}

// awaitNodes blocks until node n lists want ready nodes.
func (l *Lab) awaitNodes(ctx context.Context, n, want int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var last string
	err := poll(ctx, 50*time.Millisecond, func() bool {
		nodes, err := l.Control(n).Nodes(ctx)
		if err != nil {
			last = err.Error()
			return false
		}
		ready := 0
		for _, node := range nodes {
			if node.Ready() {
				ready++
			}
		}
		last = fmt.Sprintf("%d of %d nodes are ready", ready, want)
		return ready >= want
	})
	if err != nil {
		return fmt.Errorf("wait for node%d to see the cluster: %s: %w", n, last, err)
	}
	return nil
}

// makeNode prepares a node's namespace, directories and configuration.
func (l *Lab) makeNode(n int, o Options) error {
	for _, d := range []string{l.nodeDir(n), l.dataDir(n)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := pinNamespace(l.netns(n)); err != nil {
		return err
	}
	if err := plug(l.switchPath(), l.netns(n), n); err != nil {
		return err
	}
	if o.Rate > 0 {
		if err := shape(l.switchPath(), l.netns(n), n, o.Rate); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(l.nodeDir(n), "resolv.conf"), []byte("nameserver 127.0.0.1\noptions timeout:1\n"), 0o644); err != nil {
		return err
	}
	var tags map[string]string
	if o.Tags != nil {
		tags = o.Tags(n)
	}
	return os.WriteFile(l.configPath(n), agentConfig(l, n, tags), 0o600)
}

// Down ends every process of the lab and removes all it made. It may be repeated,
// and clears up after a lab that died half way. A node that can't be removed keeps
// its namespace, so that the next try has one to work in.
func (l *Lab) Down(ctx context.Context) error {
	var errs []error
	for n := 1; n <= l.state.Nodes; n++ {
		if err := l.remove(ctx, n); err != nil {
			errs = append(errs, fmt.Errorf("node%d: %w", n, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab in %s is not all gone: %w", l.dir, err)
	}
	if err := unpinNamespace(l.switchPath()); err != nil {
		return err
	}
	if l.state.Data != "" {
		if err := os.RemoveAll(l.state.Data); err != nil {
			return fmt.Errorf("remove the nodes' data: %w", err)
		}
	}
	return os.RemoveAll(l.dir)
}

// remove ends one node for good.
func (l *Lab) remove(ctx context.Context, n int) error {
	if err := l.reset(ctx, n); err != nil {
		return err
	}
	if err := os.RemoveAll(l.dataDir(n)); err != nil {
		return err
	}
	return unpinNamespace(l.netns(n))
}

// Partition splits the network into groups that don't reach each other; Heal
// makes it whole.
func (l *Lab) Partition(groups [][]int) error {
	for g, nodes := range groups {
		for _, n := range nodes {
			if err := group(l.switchPath(), n, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// Heal ends every partition.
func (l *Lab) Heal() error {
	all := make([]int, l.state.Nodes)
	for i := range all {
		all[i] = i + 1
	}
	return l.Partition([][]int{all})
}

// Shape limits a node's link, both ways, to bits a second; 0 lifts the limit.
func (l *Lab) Shape(n int, bits uint64) error {
	if err := l.known(n); err != nil {
		return err
	}
	return shape(l.switchPath(), l.netns(n), n, bits)
}

// Nodes is how many nodes the lab has.
func (l *Lab) Nodes() int { return l.state.Nodes }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Socket is where node n serves the whole cluster.
func (l *Lab) Socket(n int) string { return filepath.Join(l.nodeDir(n), "shoal.sock") }

// NodeSocket is where node n serves itself alone.
func (l *Lab) NodeSocket(n int) string { return filepath.Join(l.nodeDir(n), "node.sock") }

// Log is the file that node n's agent logs into.
func (l *Lab) Log(n int) string { return filepath.Join(l.nodeDir(n), "agent.log") }

func (l *Lab) nodeDir(n int) string    { return filepath.Join(l.dir, fmt.Sprintf("node%d", n)) }
func (l *Lab) dataDir(n int) string    { return filepath.Join(l.state.Data, fmt.Sprintf("node%d", n)) }
func (l *Lab) netns(n int) string      { return filepath.Join(l.nodeDir(n), "namespace") }
func (l *Lab) configPath(n int) string { return filepath.Join(l.nodeDir(n), "agent.toml") }
func (l *Lab) switchPath() string      { return filepath.Join(l.dir, "switch") }

func (l *Lab) known(n int) error {
	if n < 1 || n > l.state.Nodes {
		return fmt.Errorf("node %d: this lab has nodes 1 to %d", n, l.state.Nodes)
	}
	return nil
}

func (l *Lab) save() error {
	raw, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(l.dir, ".lab.json")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("save the lab: %w", err)
	}
	return os.Rename(tmp, filepath.Join(l.dir, "lab.json"))
}

// poll calls ok at the interval until it holds or ctx ends.
func poll(ctx context.Context, every time.Duration, ok func() bool) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
	return nil
}

// Data is where node n keeps its images, containers and catalog.
func (l *Lab) Data(n int) string { return l.dataDir(n) }

// Control asks node n's agent.
func (l *Lab) Control(n int) *control.Client { return control.New(l.Socket(n)) }
