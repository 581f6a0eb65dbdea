package cluster

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/system"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Ping implements api.System.
func (r *Router) Ping(ctx context.Context) (api.Ping, error) {
	e, err := r.local(ctx)
	if err != nil {
		return api.Ping{}, err
	}
	return e.Ping(ctx)
}

// Version implements api.System.
func (r *Router) Version(ctx context.Context) (system.VersionResponse, error) {
	e, err := r.local(ctx)
	if err != nil {
		return system.VersionResponse{}, err
	}
	return e.Version(ctx)
}

// Info implements api.System: this node's answer with the sums of the cluster.
func (r *Router) Info(ctx context.Context) (system.Info, error) {
	e, err := r.local(ctx)
	if err != nil {
		return system.Info{}, err
	}
	i, err := e.Info(ctx)
	if err != nil {
		return i, err
	}
	r.sync(ctx, listSync)
	v := r.reader.View()
	i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped = 0, 0, 0, 0
	for _, c := range v.Containers() {
		i.Containers++
		switch c.State {
		case container.StateRunning, container.StateRestarting:
			i.ContainersRunning++
		case container.StatePaused:
			i.ContainersPaused++
		default:
			i.ContainersStopped++
		}
	}
	i.Images = len(clusterImages(v))
	i.NCPU, i.MemTotal = 0, 0
	lost := lostNodes(v)
	for _, n := range v.Nodes() {
		if n.ID != r.self && lost(n.ID) {
			i.Warnings = append(i.Warnings, "WARNING: node "+n.Name+" can't be reached")
			continue
		}
		i.NCPU += n.CPUs
		i.MemTotal += n.Memory
	}
	return i, nil
}

// nodeAttribute tells in an event where it happened.
const nodeAttribute = "node.name"

// Events implements api.System: those of all nodes, with nodes coming and going.
func (r *Router) Events(ctx context.Context, o api.EventsOptions) (api.Stream[events.Message], error) {
	ctx, cancel := context.WithCancel(ctx)
	s, send, finish := api.Pipe[events.Message](ctx)
	m := &merger{r: r, o: o, send: send, following: map[string]bool{}, changed: make(chan struct{}, 1)}
	// The nodes there are follow before the call returns, so that nothing that the
	// caller does next is missed.
	if err := m.update(ctx); err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer cancel()
		err := m.run(ctx)
		cancel()
		m.tasks.Wait()
		finish(err)
	}()
	return closing[events.Message]{s, cancel}, nil
}

// closing ends what feeds a stream when the stream is closed.
type closing[T any] struct {
	api.Stream[T]
	cancel context.CancelFunc
}

func (c closing[T]) Close() error {
	c.cancel()
	return c.Stream.Close()
}

// merger joins the event streams of nodes into one.
type merger struct {
	r     *Router
	o     api.EventsOptions
	send  func(events.Message) error
	tasks sync.WaitGroup

	changed chan struct{} // has an element when a stream ended
	mu      sync.Mutex    // guards following; never held while sending
	// following are the nodes that have a stream.
	following map[string]bool
}

// retryEvents is when a node whose stream broke is asked again.
const retryEvents = time.Second

// run follows nodes as they come, until the time asked for or the end of ctx.
func (m *merger) run(ctx context.Context) error {
	if !m.o.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, m.o.Until)
		defer cancel()
		if !m.o.Until.After(time.Now()) {
			m.tasks.Wait() // what is past is replayed, no more
			return nil
		}
	}
	// Who comes from now on has nothing to replay.
	m.o.Since = time.Time{}
	for {
		v := m.r.reader.View()
		if err := m.update(ctx); err != nil && ctx.Err() == nil {
			m.r.log.Debug("events of a node are missing", "error", err)
		}
		if err := m.wait(ctx, v.Index()); err != nil {
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && !m.o.Until.IsZero() {
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

// wait returns when nodes may have come or streams have ended.
func (m *merger) wait(ctx context.Context, index uint64) error {
	inner, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		defer cancel()
		_ = m.r.reader.Wait(inner, index) // ends when the view or the caller does
	})
	select {
	case <-inner.Done():
	case <-m.changed:
	}
	cancel()
	waiting.Wait()
	return ctx.Err()
}

// update opens a stream to every reachable node that has none. The error is of the
// local node, without which there is no answer at all.
func (m *merger) update(ctx context.Context) error {
	var failed error
	for _, n := range m.r.alive(m.r.reader.View()) {
		m.mu.Lock()
		has := m.following[n.ID]
		m.mu.Unlock()
		if has {
			continue
		}
		if err := m.open(ctx, n); err != nil && n.ID == m.r.self {
			failed = err
		}
	}
	return failed
}

func (m *merger) open(ctx context.Context, n catalog.Node) error {
	e, err := m.r.peer(ctx, n.ID)
	if err != nil {
		return err
	}
	s, err := e.Events(ctx, m.o)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.following[n.ID] = true
	m.mu.Unlock()
	m.tasks.Go(func() {
		for msg, err := range api.All(s) {
			if err != nil && !errors.Is(err, io.EOF) {
				break
			}
			msg.Actor.Attributes = withNode(msg.Actor.Attributes, n.Name)
			if m.send(msg) != nil { // streams take turns there
				break
			}
		}
		m.ended(ctx, n.ID)
	})
	return nil
}

// ended lets a node's stream be opened again, a moment later.
func (m *merger) ended(ctx context.Context, id string) {
	if !m.o.Until.IsZero() && !m.o.Until.After(time.Now()) {
		return
	}
	t := time.NewTimer(retryEvents)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return
	}
	m.mu.Lock()
	delete(m.following, id)
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func withNode(attributes map[string]string, name string) map[string]string {
	out := maps.Clone(attributes)
	if out == nil {
		out = map[string]string{}
	}
	out[nodeAttribute] = name
	return out
}
