package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Bounds of what a call waits for besides its own work.
const (
	// listSync is how long a listing waits to be up to date before it shows what is
	// known here: long enough for any healthy cluster, short enough for a broken one.
	listSync = 200 * time.Millisecond
	// missSync is the same for something that isn't known here at all.
	missSync = 2 * time.Second
	// settle is how long a change waits to be seen in the catalog before it is
	// reported done, so that ps, DNS and the caller agree.
	settle = time.Second
	// madeLimit is how long the removal of a claim waits for its container, which may be
	// being made, before the claim is taken for left behind.
	madeLimit = 3 * time.Second
	// takenRetry is the pause before a node is asked again that has a name in use which
	// the catalog knows to be free.
	takenRetry = 50 * time.Millisecond
	// lostTry bounds a call to a node that seems to be gone.
	lostTry = time.Second
	// undo bounds the cleaning up after a failed call.
	undo = 10 * time.Second
)

// Store is what a router needs of the catalog: its replica's views, and changes.
type Store interface {
	catalog.Reader
	Propose(ctx context.Context, c catalog.Command) (catalog.Result, error)
	// Sync returns once the views show all that was acknowledged before.
	Sync(ctx context.Context) error
}

// RouterConfig is what a router is made of; all but Logger is required.
type RouterConfig struct {
	Self string // this node's ID
	// Peer is the engine of a single node, this one's included. Closing it is not
	// the router's business.
	Peer func(ctx context.Context, nodeID string) (api.Engine, error)
	// Store takes changes; its views may lag behind.
	Store Store
	// Reader is Store with liveness.
	Reader catalog.Reader
	Logger *slog.Logger
}

// Router is the cluster as one engine. Its methods may be called concurrently.
type Router struct {
	self   string
	peer   func(ctx context.Context, nodeID string) (api.Engine, error)
	store  Store
	reader catalog.Reader
	log    *slog.Logger
}

var _ api.Engine = (*Router)(nil)

// NewRouter makes a router; it starts nothing.
func NewRouter(c RouterConfig) *Router {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Router{self: c.Self, peer: c.Peer, store: c.Store, reader: c.Reader, log: c.Logger}
}

// sync is synced for callers who make do with what is known here.
func (r *Router) sync(ctx context.Context, limit time.Duration) { _ = r.synced(ctx, limit) }

// synced brings the local view up to date if that takes no longer than limit.
func (r *Router) synced(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := r.store.Sync(ctx)
	if err != nil {
		r.log.Debug("the catalog may be behind", "error", err)
	}
	return err
}

// await waits a bounded time until the view satisfies ok.
func (r *Router) await(ctx context.Context, limit time.Duration, ok func(catalog.View) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		v := r.reader.View()
		if ok(v) {
			return true
		}
		if r.reader.Wait(ctx, v.Index()) != nil {
			return false
		}
	}
}

// find looks a container up, here and then in the whole cluster. Only a node that is
// up to date may say that there is none.
func (r *Router) find(ctx context.Context, ref string) (catalog.Container, error) {
	c, err := r.reader.View().Container(ref)
	if !errdefs.IsNotFound(err) {
		return c, err
	}
	behind := r.synced(ctx, missSync)
	c, err = r.reader.View().Container(ref)
	if errdefs.IsNotFound(err) && behind != nil {
		return c, api.Unavailable("container %s isn't known on this node, which can't ask the others now: %w", ref, behind)
	}
	return c, err
}

// engine is the engine of the node that a container is on.
func (r *Router) engine(ctx context.Context, c catalog.Container) (api.Engine, error) {
	e, err := r.peer(ctx, c.NodeID)
	if err == nil && c.Lost && c.NodeID != r.self {
		// Gossip is slower to hear of a return than a caller is to ask: one short
		// try tells a node that is back from one that isn't.
		try, cancel := context.WithTimeout(ctx, lostTry)
		defer cancel()
		_, err = e.Ping(try)
	}
	if err != nil {
		return nil, api.Unavailable("container %s is on node %s, which can't be reached: %w", c.Name, r.nodeName(c.NodeID), err)
	}
	return e, nil
}

func (r *Router) nodeName(id string) string {
	if n, ok := r.reader.View().Node(id); ok {
		return n.Name
	}
	return id
}

// at passes a call on to the node of the container that ref means.
func (r *Router) at(ctx context.Context, ref string, do func(e api.Engine, c catalog.Container) error) error {
	c, err := r.find(ctx, ref)
	if err != nil {
		return err
	}
	err = r.on(ctx, c, do)
	if !errdefs.IsNotFound(err) {
		return err
	}
	if _, gone := r.reader.View().Container(c.ID); gone == nil && c.State != "" {
		// The name may mean another container by now.
		r.sync(ctx, missSync)
	}
	now, again := r.find(ctx, ref)
	if again != nil {
		return again
	}
	if now.ID == c.ID {
		if c.State != "" {
			// Its node has removed it. Who hears that finds its name and ports free, too.
			r.await(ctx, settle, func(v catalog.View) bool { _, err := v.Container(c.ID); return errdefs.IsNotFound(err) })
		}
		return err
	}
	return r.on(ctx, now, do)
}

func (r *Router) on(ctx context.Context, c catalog.Container, do func(e api.Engine, c catalog.Container) error) error {
	e, err := r.engine(ctx, c)
	if err != nil {
		return err
	}
	err = do(e, c)
	if errors.Is(err, errdefs.ErrUnavailable) && c.NodeID != r.self {
		return fmt.Errorf("node %s: %w", r.nodeName(c.NodeID), err)
	}
	return err
}

// value is at for calls that return something.
func value[T any](ctx context.Context, r *Router, ref string, do func(e api.Engine, id string) (T, error)) (T, error) {
	var out T
	err := r.at(ctx, ref, func(e api.Engine, c catalog.Container) (err error) {
		out, err = do(e, c.ID)
		return err
	})
	return out, err
}

// node is one reachable node with its engine.
type node struct {
	catalog.Node
	api.Engine
}

// alive are the reachable nodes of a view, this one first.
func (r *Router) alive(v catalog.View) []catalog.Node {
	lost := lostNodes(v)
	var first, rest []catalog.Node
	for _, n := range v.Nodes() {
		switch {
		case n.ID == r.self:
			first = append(first, n)
		case !lost(n.ID):
			rest = append(rest, n)
		}
	}
	return append(first, rest...)
}

// lostNodes says of a view which nodes can't be reached. A view with liveness
// knows; any other goes by what the leader wrote.
func lostNodes(v catalog.View) func(id string) bool {
	if l, ok := v.(interface{ Reachable(nodeID string) bool }); ok {
		return func(id string) bool { return !l.Reachable(id) }
	}
	return func(id string) bool {
		n, ok := v.Node(id)
		return !ok || n.Down
	}
}

// engines are the engines of nodes, as far as they can be had now.
func (r *Router) engines(ctx context.Context, ns []catalog.Node) []node {
	var out []node
	for _, n := range ns {
		e, err := r.peer(ctx, n.ID)
		if err != nil {
			r.log.Debug("node can't be reached", "node", n.Name, "error", err)
			continue
		}
		out = append(out, node{n, e})
	}
	return out
}

// local is this node's own engine.
func (r *Router) local(ctx context.Context) (api.Engine, error) { return r.peer(ctx, r.self) }

// cleanup is a context for undoing something after its caller may have gone.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undo)
}

// execOwner is the container of an exec: its ID starts with 24 digits of it.
func execOwner(execID string) (string, error) {
	const digits = 24
	if len(execID) < digits {
		return "", api.NotFound("No such exec instance: %s", execID)
	}
	return execID[:digits], nil
}

// noSuchExec says in Docker's words that an exec's container isn't there.
func noSuchExec(execID string, err error) error {
	if errdefs.IsNotFound(err) {
		return api.NotFound("No such exec instance: %s", execID)
	}
	return err
}

// validName strips the slash that clients may write and checks the rest.
func validName(name string) (string, error) {
	if len(name) > 0 && name[0] == '/' {
		name = name[1:]
	}
	return name, listing.ValidateName(name)
}
