package cluster

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/identity"
)

// Figures of a membership.
const (
	// startGrace is how long nodes that gossip hasn't heard of yet count as the catalog
	// has them, after this one's start.
	startGrace = 10 * time.Second
	// enterLimit bounds how long a new member waits for its first view.
	enterLimit = time.Minute
	// meetEvery is how often nodes that gossip doesn't know are called up.
	meetEvery = 5 * time.Second
	// announceRetry is the pause after a failed try to tell the catalog of this node.
	announceRetry = time.Second
	// partLimit bounds how long a node that leaves waits for its voice to be taken over.
	partLimit = 10 * time.Second
	// lastWord is for how long streams to a node that was removed are kept, so that it
	// hears why: cut off before, it would go on as a member of a cluster that it can't
	// reach. It may open no others.
	lastWord = 500 * time.Millisecond
	// tokenPeers is how many nodes a token names, this one first.
	tokenPeers = 5
)

// errGone ends a membership: the node has left or was removed.
var errGone = errors.New("this node isn't in the cluster any more")

// session is one membership, from entering to leaving.
type session struct {
	cfg   Config
	log   *slog.Logger
	state identity.State
	first *catalog.SetSettings // of a cluster that begins
	done  chan<- error         // told once how entering went
	began time.Time
	in    atomic.Bool // entering is done

	cat     *catalog.Catalog
	members Members
	live    *catalog.Liveness
	router  *Router
	changed chan struct{} // has an element when liveness may have changed

	mu      sync.Mutex
	seen    map[string]bool // nodes that gossip has heard of
	peers   []identity.PeerAddr
	peersAt uint64 // the index of the view that peers are of
}

func newSession(cfg Config, e entrance) (*session, error) {
	members, err := cfg.Members(e.state.GossipKey)
	if err != nil {
		return nil, fmt.Errorf("make the gossip: %w", err)
	}
	s := &session{
		cfg: cfg, log: cfg.Logger, state: e.state, first: e.first, done: e.done, began: time.Now(),
		members: members, changed: make(chan struct{}, 1), seen: map[string]bool{}, peers: e.state.Peers, peersAt: e.state.PeersAt,
	}
	s.cat = catalog.New(catalog.Config{
		Dir: (&Cluster{cfg: cfg}).catalogDir(), Wire: cfg.Wire, Logger: cfg.Logger, Bootstrap: e.first != nil,
	})
	s.live = catalog.WithLiveness(s.cat, s.alive, s.changed)
	s.router = NewRouter(RouterConfig{
		Self: cfg.Self.ID, Store: s.cat, Reader: s.live, Logger: cfg.Logger,
		Peer: func(ctx context.Context, id string) (api.Engine, error) {
			if id == cfg.Self.ID {
				return cfg.Local, nil
			}
			return cfg.Peer(ctx, id)
		},
	})
	return s, nil
}

// run takes part until ctx ends, the node is out (errGone) or something fails.
//
// Start: the peers' addresses, the catalog's replica and gossip; once this node is in
// the view, everything that reads it; then the caller is told. Stop: all that writes
// to the catalog, then gossip, then the replica, which hands leadership over.
func (s *session) run(ctx context.Context, member func()) error {
	for _, p := range s.state.Peers {
		s.cfg.Wire.SetPeer(p.ID, p.Addrs)
	}
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	base, below := errgroup.WithContext(below)
	base.Go(func() error { return s.cat.Run(below) })
	top, ctx := errgroup.WithContext(ctx)
	top.Go(func() error { return s.members.Run(ctx) })
	top.Go(func() error { return s.live.Run(ctx) })
	top.Go(func() error { return s.watchMembers(ctx) })
	top.Go(func() error { return s.followNodes(ctx) })
	top.Go(func() error { return s.meetNodes(ctx) })
	top.Go(func() error {
		select {
		case <-below.Done():
			return context.Cause(below)
		case <-ctx.Done():
			return nil
		}
	})
	top.Go(func() error { return s.takePart(ctx, top, member) })
	err := top.Wait()
	stopBelow()
	if e := base.Wait(); e != nil && !errors.Is(err, errGone) {
		err = e
	}
	s.forgetPeers()
	if errors.Is(err, catalog.ErrRemoved) {
		return errGone
	}
	return err
}

// takePart enters the catalog and then does what a member does.
func (s *session) takePart(ctx context.Context, g *errgroup.Group, member func()) error {
	err := s.announce(ctx)
	if err == nil {
		err = s.untilListed(ctx)
	}
	if err == nil && s.first != nil {
		// Only now: a start after a crash before this begins anew.
		err = s.state.Save(s.cfg.Dir)
	}
	if ctx.Err() != nil {
		s.done <- context.Cause(ctx)
		return nil
	}
	if err != nil {
		s.done <- err
		return err
	}
	joins, err := s.cfg.Wire.Listen(JoinProtocol)
	if err != nil {
		err = fmt.Errorf("listen for joining nodes: %w", err)
		s.done <- err
		return err
	}
	p := NewPublisher(s.cfg.Self.ID, s.cfg.Local, s.cat, s.log)
	g.Go(func() error { return p.Run(ctx) })
	g.Go(func() error { return s.serveJoins(ctx, joins) })
	g.Go(func() error { return s.cat.Lead(ctx, s.lead) })
	s.in.Store(true)
	member()
	s.done <- nil
	return s.untilGone(ctx)
}

// entered says whether the node knows itself to be a member.
func (s *session) entered() bool { return s.in.Load() }

// announce tells the catalog what this node is now. A node that was a member before
// needs no answer to go on: without a leader it still serves what it knows.
func (s *session) announce(ctx context.Context) error {
	if s.first != nil {
		if _, err := s.cat.Propose(ctx, *s.first); err != nil {
			return fmt.Errorf("begin a cluster: %w", err)
		}
	}
	self := s.cfg.Self
	for ctx.Err() == nil {
		_, err := s.cat.Propose(ctx, catalog.PutNode{Node: self})
		if err == nil {
			return nil
		}
		if _, listed := s.cat.View().Node(self.ID); listed && errors.Is(err, catalog.ErrNoLeader) {
			return nil // the leader clears Down when it hears of us
		}
		s.log.Warn("the cluster doesn't know yet that this node is up; trying again", "error", err)
		pause(ctx, announceRetry)
	}
	return nil
}

func (s *session) untilListed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enterLimit)
	defer cancel()
	for {
		v := s.cat.View()
		if _, ok := v.Node(s.cfg.Self.ID); ok {
			return nil
		}
		if err := s.cat.Wait(ctx, v.Index()); err != nil {
			return api.Unavailable("the catalog didn't reach this node within %s", enterLimit)
		}
	}
}

// untilGone returns errGone once the node is out of the catalog and its voice is taken
// over, so that its end costs the others no majority.
func (s *session) untilGone(ctx context.Context) error {
	for {
		v := s.cat.View()
		if _, ok := v.Node(s.cfg.Self.ID); !ok && !s.isOld(v) {
			break
		}
		if s.cat.Wait(ctx, v.Index()) != nil {
			return nil
		}
	}
	part, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	s.cat.AwaitRemoval(part)
	if err := s.members.Leave(part); err != nil {
		s.log.Debug("the others will have to notice by themselves", "error", err)
	}
	return errGone
}

// remove has the catalog forget another node, which may not want to go, and makes what
// it knows of the way in worthless.
func (s *session) remove(ctx context.Context, n catalog.Node) error {
	if _, err := s.cat.Propose(ctx, catalog.RemoveNode{ID: n.ID}); err != nil {
		return err
	}
	// It must not hear the new secret: it is told of no more changes once it is no part
	// of the catalog's replicas.
	out, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	err := s.cat.AwaitOut(out, n.ID)
	if err == nil {
		err = s.newSecret(ctx)
	}
	if err != nil {
		return api.Unavailable("node %s is removed, but the token that it knows still holds: run `shoal token --rotate`: %w", n.Name, err)
	}
	return nil
}

// newSecret makes tokens given out so far worthless.
func (s *session) newSecret(ctx context.Context) error {
	secret, err := newSecret()
	if err != nil {
		return err
	}
	_, err = s.cat.Propose(ctx, catalog.SetSecret{Secret: secret})
	return err
}

// leave has the catalog forget this node.
func (s *session) leave(ctx context.Context) error {
	_, err := s.cat.Propose(ctx, catalog.RemoveNode{ID: s.cfg.Self.ID})
	return err
}

// alive says whether a node can be reached, as far as this one knows.
func (s *session) alive(id string) bool {
	if id == s.cfg.Self.ID || s.members.Alive(id) {
		return true
	}
	s.mu.Lock()
	seen := s.seen[id]
	s.mu.Unlock()
	if seen || time.Since(s.began) > startGrace {
		return false
	}
	n, ok := s.cat.View().Node(id)
	return ok && !n.Down
}

func (s *session) suspect(id string) {
	s.members.Suspect(id)
	s.poke()
}

// poke says that alive may answer differently now.
func (s *session) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// watchMembers follows gossip.
func (s *session) watchMembers(ctx context.Context) error {
	there, events := s.members.Watch(ctx)
	grace := time.NewTimer(startGrace)
	defer grace.Stop()
	s.mu.Lock()
	for _, m := range there {
		s.seen[m.ID] = true
	}
	s.mu.Unlock()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return nil
			}
			s.log.Info("gossip", "node", e.Member.Name, "is", string(e.Kind))
			s.mu.Lock()
			s.seen[e.Member.ID] = true
			s.mu.Unlock()
		case <-grace.C:
		case <-ctx.Done():
			return nil
		}
		s.poke()
	}
}

// followNodes keeps the addresses of the catalog's nodes where they are needed: in the
// wire and on disk for the next start. Nothing here waits for other nodes: who was removed
// is let in no more from then on, and cut off a moment later.
func (s *session) followNodes(ctx context.Context) error {
	for {
		v := s.cat.View()
		gone, err := s.notePeers(v)
		if len(gone) > 0 {
			pause(ctx, lastWord)
			s.hangUp(gone)
		}
		if err != nil {
			return err
		}
		if s.cat.Wait(ctx, v.Index()) != nil {
			return nil
		}
	}
}

// meetNodes keeps gossip in touch with the catalog's nodes.
func (s *session) meetNodes(ctx context.Context) error {
	for {
		v := s.cat.View()
		s.meet(ctx, v.Nodes())
		wait, cancel := context.WithTimeout(ctx, meetEvery)
		_ = s.cat.Wait(wait, v.Index()) // either way it is time to look again
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// isOld says whether a view is of before what this node knew at its start. A replica
// learns from the leader which entries of its log count, in steps: were it to take a
// step for the present, it might forget the very node that leads it.
func (s *session) isOld(v catalog.View) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return v.Index() < s.peersAt
}

// notePeers tells the wire who is a member and remembers it, if it changed. Who is one no
// more is still to be hung up on.
func (s *session) notePeers(v catalog.View) (gone []string, err error) {
	var now []identity.PeerAddr
	listed := false
	for _, n := range v.Nodes() {
		if n.ID == s.cfg.Self.ID {
			listed = true
			continue
		}
		now = append(now, identity.PeerAddr{ID: n.ID, Addrs: n.Control})
	}
	s.mu.Lock()
	before := s.peers
	if !listed || v.Index() < s.peersAt || slices.EqualFunc(before, now, samePeer) {
		s.mu.Unlock()
		return nil, nil // nothing new, or the replica hasn't caught up yet
	}
	s.peers, s.peersAt = now, v.Index()
	s.mu.Unlock()
	for _, p := range now {
		s.cfg.Wire.SetPeer(p.ID, p.Addrs)
	}
	for _, p := range before {
		if !slices.ContainsFunc(now, func(n identity.PeerAddr) bool { return n.ID == p.ID }) {
			gone = append(gone, p.ID)
		}
	}
	state := s.state
	state.Peers, state.PeersAt = now, v.Index()
	return gone, state.Save(s.cfg.Dir)
}

// hangUp ends what is open with nodes that were removed, unless they are back.
func (s *session) hangUp(gone []string) {
	for _, id := range gone {
		if !s.knows(id) {
			s.cfg.Wire.ForgetPeer(id)
			s.members.Forget(id)
		}
	}
}

func samePeer(a, b identity.PeerAddr) bool { return a.ID == b.ID && slices.Equal(a.Addrs, b.Addrs) }

func (s *session) forgetPeers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		s.cfg.Wire.ForgetPeer(p.ID)
	}
}

// meet calls up the nodes that gossip doesn't know as alive.
func (s *session) meet(ctx context.Context, nodes []catalog.Node) {
	var addrs []string
	for _, n := range nodes {
		if n.ID != s.cfg.Self.ID && n.Gossip != "" && !s.members.Alive(n.ID) {
			addrs = append(addrs, n.Gossip)
		}
	}
	if len(addrs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, meetEvery)
	defer cancel()
	if err := s.members.Join(ctx, addrs); err != nil {
		s.log.Debug("nodes that gossip doesn't know don't answer", "error", err)
	}
}

// knows says whether a peer is a member, as far as this node knows.
func (s *session) knows(peerID string) bool {
	v := s.cat.View()
	if !s.isOld(v) {
		if n, ok := v.Node(peerID); ok && n.ID == peerID {
			return true
		}
		if _, listed := v.Node(s.cfg.Self.ID); listed {
			return false // whatever the wire hasn't been told yet
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.peers, func(p identity.PeerAddr) bool { return p.ID == peerID })
}

// newSecret is what a join token proves knowledge of, as text.
func newSecret() (string, error) {
	b, err := identity.NewSecret()
	return hex.EncodeToString(b), err
}

// token is made of the present secret and the addresses of some nodes.
func (s *session) token(ctx context.Context) (string, error) {
	if err := s.cat.Sync(ctx); err != nil {
		return "", err
	}
	settings, ok := s.cat.Settings()
	secret, err := hex.DecodeString(settings.Secret)
	if !ok || err != nil {
		return "", api.Internal("the catalog has no join secret")
	}
	t := identity.Token{Cluster: s.state.ClusterID, Secret: secret}
	v := s.live.View()
	if self, ok := v.Node(s.cfg.Self.ID); ok {
		t.Peers = append(t.Peers, identity.PeerAddr{ID: self.ID, Addrs: self.Control})
	}
	for _, n := range v.Nodes() {
		if n.ID != s.cfg.Self.ID && s.alive(n.ID) && len(t.Peers) < tokenPeers {
			t.Peers = append(t.Peers, identity.PeerAddr{ID: n.ID, Addrs: n.Control})
		}
	}
	if err := t.Validate(); err != nil {
		return "", err
	}
	return t.String(), nil
}
