package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/identity"
)

// JoinProtocol is the one that strangers may open: a token's secret in, what a member
// needs to know out. Both are a length of four bytes and JSON.
const JoinProtocol = "/shoal/join/1"

// Bounds of what a stranger may cost.
const (
	maxJoinFrame = 256 << 10
	joinLimit    = 20 * time.Second
	maxJoins     = 8 // at a time
	// Of joins with a wrong secret, joinBurst are answered at once and then one every
	// joinRefill: a secret of 32 bytes isn't guessed, but nor shall trying cost CPU.
	joinBurst  = 10
	joinRefill = time.Second
)

// joinRequest is what a stranger says.
type joinRequest struct {
	Secret []byte
	Node   catalog.Node
}

// joinAnswer is what it is told: a state, or why not.
type joinAnswer struct {
	State  identity.State
	Status int    `json:",omitempty"` // HTTP's, as a class of error
	Error  string `json:",omitempty"`
}

// errBadToken tells no more than that.
var errBadToken = api.Errorf(errdefs.ErrPermissionDenied, "the cluster doesn't take this token: `shoal token` on a member prints the present one")

// writeJoin and readJoin are the two ends of a frame.
func writeJoin(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(b) > maxJoinFrame {
		return fmt.Errorf("%d bytes, at most %d are taken", len(b), maxJoinFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readJoin(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxJoinFrame {
		return fmt.Errorf("%d bytes, at most %d are taken", n, maxJoinFrame)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(b) < int(n) {
		return io.ErrUnexpectedEOF
	}
	d := json.NewDecoder(bytes.NewReader(b))
	return d.Decode(v)
}

// askToJoin asks the token's nodes in turn and keeps what a member needs on disk.
func askToJoin(ctx context.Context, cfg Config, t identity.Token) (identity.State, error) {
	var errs []error
	for _, p := range t.Peers {
		if p.ID == cfg.Self.ID {
			return identity.State{}, api.InvalidArgument("this token is of the cluster that this node began")
		}
		cfg.Wire.SetPeer(p.ID, p.Addrs)
		state, err := askOne(ctx, cfg, p.ID, t)
		if err == nil {
			if err := state.Save(cfg.Dir); err != nil {
				return state, err
			}
			return state, nil
		}
		errs = append(errs, err)
		if !errdefs.IsUnavailable(err) {
			break // it was asked and said no
		}
	}
	for _, p := range t.Peers {
		cfg.Wire.ForgetPeer(p.ID)
	}
	return identity.State{}, fmt.Errorf("join the cluster: %w", errors.Join(errs...))
}

func askOne(ctx context.Context, cfg Config, peer string, t identity.Token) (identity.State, error) {
	var none identity.State
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	conn, err := cfg.Wire.Dial(ctx, peer, JoinProtocol)
	if err != nil {
		return none, api.Unavailable("%w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // unblocks what follows
	defer stop()
	if err := writeJoin(conn, joinRequest{t.Secret, cfg.Self}); err != nil {
		return none, api.Unavailable("ask node %s: %w", peer, err)
	}
	var a joinAnswer
	if err := readJoin(conn, &a); err != nil {
		return none, api.Unavailable("hear from node %s: %w", peer, err)
	}
	if a.Error != "" {
		return none, api.FromStatus(a.Status, a.Error)
	}
	if a.State.ClusterID != t.Cluster {
		return none, api.InvalidArgument("node %s is of another cluster than the token", peer)
	}
	a.State.NodeName = cfg.Self.Name
	return a.State, nil
}

// serveJoins lets nodes in that know the secret, and closes the listener at the end.
func (s *session) serveJoins(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept returns
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	slots := make(chan struct{}, maxJoins)
	limit := &bucket{tokens: joinBurst, last: time.Now()}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a joining node: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close() // the stranger may come again
			continue
		}
		tasks.Go(func() {
			defer func() { <-slots }()
			s.serveJoin(ctx, conn, limit)
		})
	}
}

func (s *session) serveJoin(ctx context.Context, conn net.Conn, limit *bucket) {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var req joinRequest
	if err := readJoin(conn, &req); err != nil {
		s.log.Debug("a stranger said something else than a join", "peer", conn.RemoteAddr(), "error", err)
		return
	}
	state, err := s.admit(ctx, conn.RemoteAddr().String(), req, limit)
	a := joinAnswer{State: state}
	if err != nil {
		s.log.Warn("node not let in", "peer", conn.RemoteAddr(), "error", err)
		a = joinAnswer{Status: api.Status(err), Error: err.Error()}
	}
	if err := writeJoin(conn, a); err != nil {
		s.log.Debug("a joining node went away", "peer", conn.RemoteAddr(), "error", err)
	}
}

// admit checks the secret against the cluster's present one and enters the node.
func (s *session) admit(ctx context.Context, peer string, req joinRequest, limit *bucket) (identity.State, error) {
	var none identity.State
	if !limit.take() {
		return none, api.Unavailable("too many wrong tokens; try again in a moment")
	}
	// A secret that was replaced a moment ago must not open the door any more.
	if err := s.cat.Sync(ctx); err != nil {
		return none, err
	}
	settings, _ := s.cat.Settings()
	secret, err := hex.DecodeString(settings.Secret)
	if err != nil || !identity.SameSecret(req.Secret, secret) {
		return none, errBadToken
	}
	limit.refund()
	n := req.Node
	n.ID = peer // what the connection proves counts
	res, err := s.cat.Propose(ctx, catalog.PutNode{Node: n})
	if err != nil {
		return none, err
	}
	s.log.Info("node let in", "node", n.Name, "peer", peer, "subnet", res.Node.Subnet)
	v := s.cat.View()
	state := identity.State{ClusterID: s.state.ClusterID, NodeName: n.Name, GossipKey: s.state.GossipKey, PeersAt: res.Index}
	for _, o := range v.Nodes() {
		if o.ID != peer {
			state.Peers = append(state.Peers, identity.PeerAddr{ID: o.ID, Addrs: o.Control})
		}
	}
	return state, nil
}

// bucket limits how often something may be tried.
type bucket struct {
	mu     sync.Mutex
	tokens int
	last   time.Time
}

func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := int(time.Since(b.last) / joinRefill); n > 0 {
		b.tokens = min(joinBurst, b.tokens+n)
		b.last = b.last.Add(time.Duration(n) * joinRefill)
	}
	if b.tokens == 0 {
		return false
	}
	b.tokens--
	return true
}

func (b *bucket) refund() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(joinBurst, b.tokens+1)
}
