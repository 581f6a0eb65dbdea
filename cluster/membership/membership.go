// Package membership says which nodes of the cluster can be reached, by gossip.
//
// Gossip alone needs seconds to be sure of a death. A component that knows sooner, such
// as whoever holds the control connection to a peer, calls Suspect: the node counts as
// down at once, until gossip hears from it again.
package membership

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-engine/shoal/api"
)

// How soon a death is found out, for clusters of up to ten nodes: a node is probed
// within about a probe interval, has that long to answer by any way (UDP, through
// others, TCP), and then suspicionMult intervals to object to being called dead. That
// is three to five seconds. The time to object must outlast what a busy machine may
// keep an agent from running, so the interval is shortened rather than the multiplier.
// Larger clusters take longer by the logarithm of their size.
const (
	probeInterval    = 500 * time.Millisecond
	probeTimeout     = 250 * time.Millisecond
	suspicionMult    = 5
	suspicionMaxMult = 3
	gossipInterval   = 100 * time.Millisecond
	pushPullInterval = 10 * time.Second
	streamTimeout    = 3 * time.Second

	// reconnectInterval is how often one of the lost nodes is called up, as gossip
	// itself gives them up after a while and a healed partition would stay.
	reconnectInterval = 3 * time.Second
	// graceTime is for how long answers that may have been under way don't count
	// against a suspicion.
	graceTime = 200 * time.Millisecond

	keySize     = 32
	leaveTime   = 5 * time.Second
	maxNameSize = 255
)

// Config describes this node's part in the gossip.
type Config struct {
	ID   string // the node's peer ID
	Name string // what people call it
	// Bind is where to listen, UDP and TCP, as "ip:port". Port 0 picks one.
	Bind string
	// Transport, if set, is used instead of listening on Bind.
	Transport memberlist.Transport
	// Advertise is where others reach this node, as "ip:port", if that isn't Bind.
	Advertise string
	// Key is 32 secret bytes that all members share. What isn't encrypted with it is
	// dropped.
	Key []byte
	// Meta is told to all members; some 250 bytes at most.
	Meta   []byte
	Logger *slog.Logger // nil discards
}

// Member is a node as gossip knows it.
type Member struct {
	ID, Name string
	Addr     string // of its gossip, "ip:port"
	Meta     []byte
}

// Membership gossips. Its methods may be called concurrently, once Run has been called
// they need not wait for it.
type Membership struct {
	cfg   Config
	log   *slog.Logger
	view  *view
	ready chan struct{} // closed: list or failure is set

	list    *memberlist.Memberlist
	failure error

	ending sync.Mutex // held while the gossip leaves or is shut down
	ended  bool
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Membership, error) {
	if cfg.ID == "" {
		return nil, api.InvalidArgument("membership: no ID")
	}
	if len(cfg.Key) != keySize {
		return nil, api.InvalidArgument("membership: the key has %d bytes, it must have %d", len(cfg.Key), keySize)
	}
	if len(cfg.Name) > maxNameSize {
		return nil, api.InvalidArgument("membership: the name has %d bytes, at most %d are allowed", len(cfg.Name), maxNameSize)
	}
	if n := len(encodeMeta(0, cfg.Name, cfg.Meta)); n > memberlist.MetaMaxSize {
		return nil, api.InvalidArgument("membership: name and meta have %d bytes together, at most %d are allowed", n, memberlist.MetaMaxSize)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Membership{cfg: cfg, log: cfg.Logger, ready: make(chan struct{})}
	m.view = newView(cfg.ID, cfg.Name, cfg.Meta)
	if _, err := m.config(); err != nil {
		return nil, err
	}
	return m, nil
}

// config is memberlist's.
func (m *Membership) config() (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	c.Name = m.cfg.ID
	c.SecretKey = m.cfg.Key
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.GossipInterval, c.PushPullInterval = gossipInterval, pushPullInterval
	// It takes 64 KiB of fresh memory and more time than anything else about a packet, to
	// make some hundred bytes fewer.
	c.EnableCompression = false
	c.TCPTimeout = streamTimeout
	c.DeadNodeReclaimTime = time.Second // a node may come back elsewhere
	c.Delegate, c.Events, c.Ping = m.view, m.view, m.view
	c.Logger = log.New(logWriter{m.log}, "", 0)
	if m.cfg.Transport != nil {
		c.Transport = m.cfg.Transport
	} else {
		bind, err := netip.ParseAddrPort(m.cfg.Bind)
		if err != nil {
			return nil, api.InvalidArgument("membership: bind address %q: %w", m.cfg.Bind, err)
		}
		c.BindAddr, c.BindPort, c.AdvertisePort = bind.Addr().String(), int(bind.Port()), int(bind.Port())
	}
	if m.cfg.Advertise != "" {
		a, err := netip.ParseAddrPort(m.cfg.Advertise)
		if err != nil {
			return nil, api.InvalidArgument("membership: advertised address %q: %w", m.cfg.Advertise, err)
		}
		c.AdvertiseAddr, c.AdvertisePort = a.Addr().String(), int(a.Port())
	}
	return c, nil
}

// Run takes part in the gossip until ctx ends. It doesn't say good-bye; Leave does.
func (m *Membership) Run(ctx context.Context) error {
	err := m.start()
	close(m.ready)
	if err != nil {
		return err
	}
	m.reconnect(ctx)
	m.ending.Lock()
	defer m.ending.Unlock()
	m.ended = true
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("membership: shut down: %w", err)
	}
	return nil
}

func (m *Membership) start() error {
	c, err := m.config()
	if err == nil {
		m.list, err = memberlist.Create(c)
	}
	if err != nil {
		m.failure = fmt.Errorf("membership: start: %w", err)
	}
	return m.failure
}

// reconnect calls up lost members, one at a time, until ctx ends.
func (m *Membership) reconnect(ctx context.Context) {
	t := time.NewTicker(reconnectInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if addr := m.view.someLost(); addr != "" {
			if _, err := m.list.Join([]string{addr}); err != nil {
				m.log.Debug("call up a lost member", "addr", addr, "err", err)
			}
		}
	}
}

// wait returns when Run has started the gossip.
func (m *Membership) wait(ctx context.Context) error {
	select {
	case <-m.ready:
		return m.failure
	case <-ctx.Done():
		return fmt.Errorf("membership: not started: %w", ctx.Err())
	}
}

// Join makes contact through any of some members, given as "ip:port". It waits for Run.
// The error is Unavailable if none answered.
func (m *Membership) Join(ctx context.Context, addrs []string) error {
	if err := m.wait(ctx); err != nil {
		return err
	}
	if len(addrs) == 0 {
		return api.InvalidArgument("membership: join: no addresses")
	}
	result := make(chan error, 1)
	go func() { // bounded by streamTimeout for each address
		_, err := m.list.Join(addrs)
		result <- err
	}()
	select {
	case err := <-result:
		if err != nil {
			return api.Unavailable("membership: join through %s: %w", strings.Join(addrs, ", "), err)
		}
		return nil
	case <-ctx.Done():
		return api.Unavailable("membership: join through %s: %w", strings.Join(addrs, ", "), ctx.Err())
	}
}

// Leave tells the others that this node goes on purpose. Run goes on until its context
// ends.
func (m *Membership) Leave(ctx context.Context) error {
	if err := m.wait(ctx); err != nil {
		return err
	}
	limit := leaveTime
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	if limit <= 0 {
		return context.DeadlineExceeded
	}
	m.ending.Lock()
	defer m.ending.Unlock()
	if m.ended { // memberlist would panic
		return api.Unavailable("membership: leave: the gossip has ended")
	}
	// Gossip tells its delegates of a death and of a good-bye alike, so we say before
	// that we mean to go.
	m.view.setLeaving()
	if err := m.list.UpdateNode(limit / 2); err != nil {
		m.log.Debug("announce the leaving", "err", err)
	}
	if err := m.list.Leave(limit / 2); err != nil {
		return api.Unavailable("membership: leave: %w", err)
	}
	return nil
}

// SetMeta changes what the others are told of this node.
func (m *Membership) SetMeta(ctx context.Context, meta []byte) error {
	if n := len(encodeMeta(0, m.cfg.Name, meta)); n > memberlist.MetaMaxSize {
		return api.InvalidArgument("membership: name and meta have %d bytes together, at most %d are allowed", n, memberlist.MetaMaxSize)
	}
	if err := m.wait(ctx); err != nil {
		return err
	}
	m.view.setMeta(meta)
	limit := leaveTime
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	if err := m.list.UpdateNode(max(limit, time.Millisecond)); err != nil {
		return api.Unavailable("membership: tell the others: %w", err)
	}
	return nil
}

// Ready is closed once Run has started the gossip, or failed to.
func (m *Membership) Ready() <-chan struct{} { return m.ready }

// Addr is where the others reach this node, "ip:port"; "" before Ready.
func (m *Membership) Addr() string {
	select {
	case <-m.ready:
	default:
		return ""
	}
	if m.failure != nil {
		return ""
	}
	return m.list.LocalNode().Address()
}

// Members are the nodes that can be reached, this one included, by ID.
func (m *Membership) Members() []Member { return m.view.members() }

// Alive says whether a node can be reached, as far as is known.
func (m *Membership) Alive(id string) bool { return m.view.alive(id) }

// Suspect says that a node was found unreachable by other means: it counts as down at
// once. It counts as up again when it answers a probe or contradicts, so that a false
// alarm lasts about a second.
func (m *Membership) Suspect(id string) { m.view.suspect(id) }

// Forget stops calling up a lost node, which was removed from the cluster.
func (m *Membership) Forget(id string) { m.view.forget(id) }

// Watch returns the members there are and a channel of every later change, without a
// gap. The channel is closed when ctx ends; a slow reader delays nobody.
func (m *Membership) Watch(ctx context.Context) ([]Member, <-chan Event) { return m.view.watch(ctx) }

// logWriter hands memberlist's lines on, at debug level.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	level, text, ok := strings.Cut(strings.TrimSpace(string(p)), "] ")
	if !ok {
		level, text = "", level
	}
	w.log.Debug(strings.TrimPrefix(text, "memberlist: "), "gossip", strings.ToLower(strings.TrimPrefix(level, "[")))
	return len(p), nil
}

var errMeta = errors.New("unreadable meta")

// Gossip's meta of a node is a byte of flags, the length of its name in a byte, the
// name, and Config.Meta.
const flagLeaving = 1

func encodeMeta(flags byte, name string, meta []byte) []byte {
	b := append([]byte{flags, byte(len(name))}, name...)
	return append(b, meta...)
}

func decodeMeta(b []byte) (flags byte, name string, meta []byte, err error) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return 0, "", nil, errMeta
	}
	end := 2 + int(b[1])
	return b[0], string(b[2:end]), b[end:], nil
}
