package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/client"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/integration/lab"
)

// Figures of the drivers. Few names and ports make much of a quarrel.
const (
	workers   = 8
	names     = 6
	ports     = 3
	firstPort = 18001
	// opLimit is how long a driver waits for an answer. What it gives up on is unclear.
	opLimit = 5 * time.Second
	// restLimit is how long a driver rests between operations, at the most.
	restLimit = 60 * time.Millisecond
)

// Labels of the containers that are made.
const (
	opLabel    = "chaos.op"    // the operation that made it
	roundLabel = "chaos.round" // the round's seed
)

// dial connects with an agent's socket. That nobody listens is certain.
func dial(socket string) *client.Client {
	return client.New(client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errUnsent, err)
		}
		return conn, err
	}})
}

// Driver is some workers that use the cluster through every node.
type Driver struct {
	lab   *lab.Lab
	h     *History
	seed  uint64
	nodes []*client.Client // by number, the first is none

	mu  sync.Mutex
	ids []string // of containers that were made and not yet surely removed
}

// NewDriver makes the workers of a round.
func NewDriver(l *lab.Lab, h *History, seed uint64) *Driver {
	d := &Driver{lab: l, h: h, seed: seed, nodes: make([]*client.Client, l.Nodes()+1)}
	for n := 1; n <= l.Nodes(); n++ {
		d.nodes[n] = dial(l.Socket(n))
	}
	return d
}

// Close gives up the connections.
func (d *Driver) Close() {
	for _, c := range d.nodes[1:] {
		_ = c.Close() // only idle connections
	}
}

// Run works until ctx ends; operations under way are finished.
func (d *Driver) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	for w := range workers {
		r := rand.New(rand.NewPCG(d.seed, uint64(w)+1))
		tasks.Go(func() {
			for pause(ctx, time.Duration(r.Int64N(int64(restLimit)))) {
				d.step(context.WithoutCancel(ctx), r)
			}
		})
	}
	tasks.Wait()
}

// mix is what drivers do, as often as it is here.
var mix = []Kind{
	Create, Create, Create, Create, Start, Start, Start, Stop, Rename, Rename, Remove, Remove, Remove, Tag, Resolve,
}

// step does one random thing.
func (d *Driver) step(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	op := Op{Kind: mix[r.IntN(len(mix))], Node: 1 + r.IntN(len(d.nodes)-1), Name: fmt.Sprint("n", r.IntN(names))}
	pick, port := r.IntN(1<<30), r.IntN(2*ports)
	switch op.Kind {
	case Create:
		if port < ports {
			op.Port = firstPort + uint16(port)
		}
		d.create(ctx, op)
		return
	case Tag, Resolve:
		d.look(ctx, op)
		return
	case Start, Stop, Remove:
		op.Name = ""
	}
	if op.ID = d.some(pick); op.ID != "" {
		d.change(ctx, op)
	}
}

// some is one of the containers there are, or "".
func (d *Driver) some(pick int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ids) == 0 {
		return ""
	}
	return d.ids[pick%len(d.ids)]
}

func (d *Driver) create(ctx context.Context, op Op) {
	op = d.h.Begin(op)
	made, err := d.nodes[op.Node].CreateContainer(ctx, sleeper(op, d.seed))
	op.ID = made.ID
	d.h.Finish(op, err)
	if err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ids = append(d.ids, made.ID)
	}
}

// sleeper is a container that does nothing, and ends at once when told to.
func sleeper(op Op, seed uint64) api.CreateOptions {
	o := api.CreateOptions{
		Name: op.Name,
		Config: &container.Config{
			Image: "busybox", Cmd: []string{"sleep", "1000000"}, StopSignal: "SIGKILL",
			Labels: map[string]string{opLabel: strconv.Itoa(op.N), roundLabel: strconv.FormatUint(seed, 10)},
		},
		HostConfig: &container.HostConfig{},
	}
	if op.Port != 0 {
		port := network.MustParsePort("80/tcp")
		o.Config.ExposedPorts = network.PortSet{port: {}}
		o.HostConfig.PortBindings = network.PortMap{port: {{HostIP: netip.IPv4Unspecified(), HostPort: strconv.Itoa(int(op.Port))}}}
	}
	return o
}

// change does something to one container.
func (d *Driver) change(ctx context.Context, op Op) {
	e := d.nodes[op.Node]
	op = d.h.Begin(op)
	var err error
	switch op.Kind {
	case Start:
		if err = e.StartContainer(ctx, op.ID, api.StartOptions{}); err == nil {
			if i, err := e.InspectContainer(ctx, op.ID, api.InspectOptions{}); err == nil && i.State != nil {
				op.Started = i.State.StartedAt
			}
		}
	case Stop:
		err = e.StopContainer(ctx, op.ID, api.StopOptions{})
	case Rename:
		err = e.RenameContainer(ctx, op.ID, op.Name)
	case Remove:
		err = e.RemoveContainer(ctx, op.ID, api.RemoveOptions{Force: true})
	}
	op = d.h.Finish(op, err)
	if op.Kind == Remove && op.Verdict == Done {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i, id := range d.ids {
			if id == op.ID {
				d.ids = append(d.ids[:i:i], d.ids[i+1:]...)
				break
			}
		}
	}
}

// look does what changes no container.
func (d *Driver) look(ctx context.Context, op Op) {
	c := d.lab.Control(op.Node)
	op = d.h.Begin(op)
	var err error
	if op.Kind == Tag {
		_, err = c.TagContainer(ctx, op.Name, map[string]string{"chaos.tag": strconv.Itoa(op.N)}, nil)
	} else {
		_, err = c.Resolve(ctx, discovery.Query{Name: op.Name, Port: 80}, 0)
	}
	d.h.Finish(op, err)
}
