package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/identity"
	"github.com/shoal-engine/shoal/cluster/membership"
)

// Wire opens and accepts streams between nodes that have proven their IDs. It should
// ask Cluster.Allow who may open what. If it has OnDisconnect, a broken connection
// counts as a first sign of a node's death.
type Wire interface {
	ID() string
	SetPeer(peerID string, addrs []string)
	ForgetPeer(peerID string)
	Listen(protocol string) (net.Listener, error)
	Dial(ctx context.Context, peerID, protocol string) (net.Conn, error)
}

// Members is gossip; see package membership.
type Members interface {
	Run(ctx context.Context) error
	Join(ctx context.Context, addrs []string) error
	Leave(ctx context.Context) error
	Alive(nodeID string) bool
	Suspect(nodeID string)
	Forget(nodeID string)
	Watch(ctx context.Context) ([]membership.Member, <-chan membership.Event)
}

// Config describes a node's part in a cluster. All but Subnet, OnChange and Logger is
// required.
type Config struct {
	// Dir keeps cluster.json and catalog/.
	Dir string
	// Self is what the node says about itself; its ID is the wire's.
	Self catalog.Node
	Wire Wire
	// Members makes the gossip of a cluster with that key.
	Members func(key []byte) (Members, error)
	// Local is this node's engine, Peer that of any other single node.
	Local api.Engine
	Peer  func(ctx context.Context, nodeID string) (api.Engine, error)
	// Subnet of the containers of a cluster that Init begins; catalog.DefaultSubnet if
	// invalid.
	Subnet netip.Prefix
	// OnChange is called, one call at a time, when the node has become a member and
	// when it is none any more. Engine and Reader answer accordingly from then on.
	OnChange func(member bool)
	Logger   *slog.Logger // nil discards
}

// Cluster is this node's membership in a cluster, or the lack of one. Run must run for
// everything else to work; all methods may be called concurrently.
type Cluster struct {
	cfg   Config
	log   *slog.Logger
	empty *catalog.State
	enter chan arrival

	mu      sync.Mutex
	session *session // nil while the node is in no cluster
	joining bool
}

// entrance is how the node comes into a cluster.
type entrance struct {
	state identity.State
	first *catalog.SetSettings // of a new cluster
	done  chan error           // has room for one
}

// arrival is a wish to come into a cluster. Run grants it, and no earlier than it knows
// that the node is in none: what how leaves on disk would be taken for a membership of
// before.
type arrival struct {
	how  func() (entrance, error)
	done chan error // has room for one
}

// ErrNoCluster is what asks for a cluster end with while the node is in none.
var ErrNoCluster = api.Unavailable("this node is in no cluster: run `shoal init` to begin one or `shoal join TOKEN` to enter one")

var errMember = api.Conflict("this node is in a cluster already; `shoal leave` takes it out")

// New makes a node's part in a cluster; it starts nothing.
func New(cfg Config) *Cluster {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(bool) {}
	}
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = catalog.DefaultSubnet
	}
	cfg.Self.ID = cfg.Wire.ID()
	c := &Cluster{cfg: cfg, log: cfg.Logger, empty: catalog.NewState(), enter: make(chan arrival)}
	if w, ok := cfg.Wire.(interface{ OnDisconnect(func(peerID string)) }); ok {
		w.OnDisconnect(c.suspect)
	}
	return c
}

// Run takes part in the cluster that Dir tells of, or in the one that Init or Join
// enter, until ctx ends (nil) or something fails for good. After Leave, and when the
// node was removed, it waits for the next.
func (c *Cluster) Run(ctx context.Context) error {
	for {
		e, err := c.next(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		err = c.take(ctx, e)
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// next is how the node comes into its next cluster.
func (c *Cluster) next(ctx context.Context) (entrance, error) {
	state, err := identity.LoadState(c.cfg.Dir)
	if err == nil {
		return entrance{state: state, done: make(chan error, 1)}, nil
	}
	if !errdefs.IsNotFound(err) {
		return entrance{}, err
	}
	// What a cluster left behind that the node never quite entered, or just left.
	if err := os.RemoveAll(c.catalogDir()); err != nil {
		return entrance{}, err
	}
	for {
		select {
		case a := <-c.enter:
			e, err := a.how()
			if err == nil {
				e.done = a.done
				return e, nil
			}
			a.done <- err
		case <-ctx.Done():
			return entrance{}, nil
		}
	}
}

func (c *Cluster) catalogDir() string { return filepath.Join(c.cfg.Dir, "catalog") }

// take lives through one membership. nil means that it ended in order.
func (c *Cluster) take(ctx context.Context, e entrance) error {
	s, err := newSession(c.cfg, e)
	if err != nil {
		e.done <- err
		return err
	}
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
	err = s.run(ctx, func() { c.cfg.OnChange(true) })
	was := s.entered()
	c.mu.Lock()
	c.session = nil
	c.mu.Unlock()
	if errors.Is(err, errGone) {
		err = identity.RemoveState(c.cfg.Dir)
	}
	if ctx.Err() == nil && was {
		c.cfg.OnChange(false)
	}
	return err
}

// Init begins a cluster with this node. It returns when the node is a member.
func (c *Cluster) Init(ctx context.Context) error {
	return c.come(ctx, func() (entrance, error) {
		state, err := identity.NewCluster(c.cfg.Self.Name)
		if err != nil {
			return entrance{}, err
		}
		secret, err := newSecret()
		if err != nil {
			return entrance{}, err
		}
		return entrance{state: state, first: &catalog.SetSettings{Name: state.ClusterID, Subnet: c.cfg.Subnet, Secret: secret}}, nil
	})
}

// Join enters the cluster that a token is of. It returns when the node is a member.
func (c *Cluster) Join(ctx context.Context, token string) error {
	t, err := identity.ParseToken(token)
	if err != nil {
		return err
	}
	return c.come(ctx, func() (entrance, error) {
		state, err := askToJoin(ctx, c.cfg, t)
		return entrance{state: state}, err
	})
}

// come makes the node a member, unless it is one.
func (c *Cluster) come(ctx context.Context, how func() (entrance, error)) error {
	c.mu.Lock()
	if c.session != nil || c.joining {
		c.mu.Unlock()
		return errMember
	}
	c.joining = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.joining = false
		c.mu.Unlock()
	}()
	a := arrival{how, make(chan error, 1)}
	select {
	case c.enter <- a:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// current is the membership there is.
func (c *Cluster) current() (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return nil, ErrNoCluster
	}
	return c.session, nil
}

// Member says whether the node is in a cluster, and knows it.
func (c *Cluster) Member() bool {
	s, err := c.current()
	return err == nil && s.entered()
}

// Engine is the cluster as one engine; this node alone while it is in no cluster.
func (c *Cluster) Engine() api.Engine {
	if s, err := c.current(); err == nil && s.entered() {
		return s.router
	}
	return c.cfg.Local
}

// Reader is the catalog with liveness; an empty one while the node is in no cluster.
func (c *Cluster) Reader() catalog.Reader {
	if s, err := c.current(); err == nil && s.entered() {
		return s.live
	}
	return c.empty
}

// Store takes changes of the catalog; one that refuses while the node is in no cluster.
func (c *Cluster) Store() Store {
	if s, err := c.current(); err == nil {
		return s.cat
	}
	return noStore{c.empty}
}

// noStore is the catalog of a node in no cluster.
type noStore struct{ *catalog.State }

func (noStore) Propose(context.Context, catalog.Command) (catalog.Result, error) {
	return catalog.Result{}, ErrNoCluster
}

// Allow says whether a peer may open a stream of a protocol: members everything, others
// only ask to join.
func (c *Cluster) Allow(peerID, protocol string) bool {
	s, err := c.current()
	if err != nil {
		return false
	}
	return protocol == JoinProtocol || s.knows(peerID)
}

// suspect passes on that a connection broke.
func (c *Cluster) suspect(peerID string) {
	if s, err := c.current(); err == nil {
		s.suspect(peerID)
	}
}

// Leave takes this node out of its cluster. Its containers stay, as this node's alone.
func (c *Cluster) Leave(ctx context.Context) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	return s.leave(ctx)
}

// RemoveNode takes a node, by ID or name, out of the cluster with its names and ports.
// One that is up is a Conflict, unless force is set. The token of the cluster changes: the
// node that goes knows the present one.
func (c *Cluster) RemoveNode(ctx context.Context, ref string, force bool) error {
	s, err := c.current()
	if err != nil {
		return err
	}
	n, ok := s.live.View().Node(ref)
	if !ok {
		return noSuchNode(ref)
	}
	if n.ID == c.cfg.Self.ID {
		return s.leave(ctx)
	}
	if s.alive(n.ID) && !force {
		return api.Conflict("node %s is up: run `shoal leave` on it, or `shoal node rm --force %s`", n.Name, n.Name)
	}
	return s.remove(ctx, n)
}

// SetNodeTags edits a node's tags and returns all of them.
func (c *Cluster) SetNodeTags(ctx context.Context, ref string, set map[string]string, remove []string) (map[string]string, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	return s.router.SetNodeTags(ctx, ref, set, remove)
}

// SetContainerTags edits a container's tags and returns all of them.
func (c *Cluster) SetContainerTags(ctx context.Context, ref string, set map[string]string, remove []string) (map[string]string, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	return s.router.SetContainerTags(ctx, ref, set, remove)
}

// Token is what other nodes join with.
func (c *Cluster) Token(ctx context.Context) (string, error) {
	s, err := c.current()
	if err != nil {
		return "", err
	}
	return s.token(ctx)
}

// RotateToken makes a new token; the one before is worth nothing from then on.
func (c *Cluster) RotateToken(ctx context.Context) (string, error) {
	s, err := c.current()
	if err != nil {
		return "", err
	}
	if err := s.newSecret(ctx); err != nil {
		return "", err
	}
	return s.token(ctx)
}
