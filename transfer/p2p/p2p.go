// Package p2p carries streams between nodes that prove who they are, over libp2p.
//
// A host speaks TCP with TLS 1.3 and yamux, and nothing else: no QUIC, relay,
// discovery, address translation or identify service. A node is addressed by its peer
// ID, which is derived from its Ed25519 key; the transport proves it in the handshake,
// so the RemoteAddr of a stream can be trusted.
//
// Who may open what is asked of Config.Allow at every stream. Peers that SetPeer never
// named are strangers: they get few connections and few streams, and a connection on
// which they keep no permitted stream open is closed.
//
// For large amounts a stream can have a connection of its own, without a muxer.
//
// A node runs two hosts with the same key, one for control and one for bulk, so that
// layers queued in one TCP connection never delay a heartbeat in the other.
package p2p

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	libyamux "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/shoal-engine/shoal/api"
)

const (
	dialTimeout      = 5 * time.Second  // TCP connect, TLS and yamux together
	negotiateTimeout = 10 * time.Second // from the opening of a stream to its protocol
	strangerTimeout  = 10 * time.Second // how long a stranger may keep an idle connection
	closeTimeout     = time.Second      // for the last bytes of streams, when a host closes
)

// Config describes a host. Key and Allow are required.
type Config struct {
	Key ed25519.PrivateKey
	// Listen is where to accept connections, as "ip:port"; port 0 picks one. A host
	// without any only dials.
	Listen []string
	// Allow says whether a peer may open a stream of a protocol. It is called for every
	// incoming stream, concurrently, and must not block.
	Allow func(peerID, protocol string) bool
	// Window bounds the bytes in flight of one stream in each direction; 4 MiB if zero,
	// 256 KiB at the least. It starts at 256 KiB and grows on links that need it.
	Window uint32
	// Background is for hosts whose traffic can wait: their connections keep queues
	// short, so that other traffic on the same links isn't delayed.
	Background bool
	Logger     *slog.Logger // nil discards
}

// Host opens and accepts streams. Its methods may be called concurrently.
type Host struct {
	id      peer.ID
	key     crypto.PrivKey
	cfg     Config
	log     *slog.Logger
	allow   func(peerID, protocol string) bool
	swarm   *swarm.Swarm
	store   peerstore.Peerstore
	limits  *limits
	sending *sending
	idle    time.Duration // a stranger's connection may be; set at the start

	mu           sync.Mutex
	closed       bool
	bares        bares
	listeners    map[string]*listener
	onDisconnect []func(peerID string)
	watched      map[network.Conn]*time.Timer // strangers' connections, which are closed when they aren't used
	ending       sync.WaitGroup               // streams being closed
}

// PeerID is the peer ID of a public key, or "" if that isn't an Ed25519 key.
func PeerID(pub ed25519.PublicKey) string {
	key, err := crypto.UnmarshalEd25519PublicKey(pub)
	if err != nil {
		return ""
	}
	id, err := peer.IDFromPublicKey(key)
	if err != nil {
		return ""
	}
	return id.String()
}

// New makes a host and starts to listen. The caller ends it with Close.
func New(cfg Config) (*Host, error) {
	if cfg.Allow == nil {
		return nil, api.InvalidArgument("p2p: no Allow function")
	}
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, api.InvalidArgument("p2p: the key is %d bytes long, an Ed25519 private key has %d", len(cfg.Key), ed25519.PrivateKeySize)
	}
	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, api.InvalidArgument("p2p: key: %w", err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, api.InvalidArgument("p2p: key: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	addrs := make([]ma.Multiaddr, 0, len(cfg.Listen))
	for _, l := range cfg.Listen {
		a, err := hostPort(l)
		if err != nil {
			return nil, api.InvalidArgument("p2p: listen address %q: %w", l, err)
		}
		addrs = append(addrs, a)
	}
	h := &Host{
		id: id, key: key, cfg: cfg, log: cfg.Logger, allow: cfg.Allow,
		limits: newLimits(), idle: strangerTimeout,
		sending:   &sending{since: map[*windowed]time.Time{}},
		listeners: map[string]*listener{},
		watched:   map[network.Conn]*time.Timer{},
		bares:     bares{open: map[*bareStream]bool{}},
	}
	if err := h.start(); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.swarm.Listen(a); err != nil {
			h.Close()
			return nil, fmt.Errorf("p2p: listen on %s: %w", a, err)
		}
	}
	return h, nil
}

// start makes what all connections share, and the swarm of the usual ones.
func (h *Host) start() error {
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return fmt.Errorf("p2p: peer store: %w", err)
	}
	if err := errors.Join(store.AddPrivKey(h.id, h.key), store.AddPubKey(h.id, h.key.GetPublic())); err != nil {
		store.Close()
		return fmt.Errorf("p2p: keep key: %w", err)
	}
	h.store = store
	if h.swarm, err = h.newSwarm(); err != nil {
		store.Close()
		return err
	}
	return nil
}

// newSwarm builds a stack over TCP, TLS and yamux.
func (h *Host) newSwarm() (*swarm.Swarm, error) {
	sw, err := swarm.NewSwarm(h.id, h.store, eventbus.NewBus(),
		swarm.WithResourceManager(h.limits),
		swarm.WithDialTimeout(dialTimeout),
		swarm.WithDialTimeoutLocal(dialTimeout),
		swarm.WithDialRanker(swarm.NoDelayDialRanker),
	)
	if err != nil {
		return nil, fmt.Errorf("p2p: %w", err)
	}
	t, err := h.newTransport([]upgrader.StreamMuxer{
		{ID: libyamux.ID, Muxer: muxer(h.cfg.Window)},
		{ID: bareID, Muxer: bareMuxer{}}, // for who offers nothing else
	})
	if err == nil {
		err = sw.AddTransport(bareListening{t, h})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("p2p: %w", err), sw.Close())
	}
	sw.Notify(&network.NotifyBundle{ConnectedF: h.connected, DisconnectedF: h.disconnected})
	sw.SetStreamHandler(h.incoming)
	return sw, nil
}

// newTransport is TCP with TLS and the first of the muxers that the listening side has,
// too.
func (h *Host) newTransport(muxers []upgrader.StreamMuxer) (*tcp.TcpTransport, error) {
	security, err := libp2ptls.New(libp2ptls.ID, h.key, muxers)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	up, err := upgrader.New([]sec.SecureTransport{gathering{security}}, muxers, nil, h.limits, nil,
		upgrader.WithAcceptTimeout(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("upgrader: %w", err)
	}
	if h.cfg.Background {
		up = backgrounder{up, h}
	}
	// Port reuse would let two agents bind one port without an error.
	return tcp.NewTCPTransport(up, h.limits, nil, tcp.DisableReuseport(), tcp.WithConnectionTimeout(dialTimeout))
}

// muxer is yamux with messages large enough for layers, and with pings frequent enough
// that a silent peer is noticed in about ten seconds even if nothing is written.
func muxer(window uint32) *libyamux.Transport {
	const smallest = 256 << 10 // yamux's own
	c := *libyamux.DefaultTransport.Config()
	if window == 0 {
		window = 4 << 20
	}
	c.MaxStreamWindowSize = max(window, smallest)
	c.MaxMessageSize = 256 << 10
	c.KeepAliveInterval = 3 * time.Second
	c.ConnectionWriteTimeout = 8 * time.Second
	return (*libyamux.Transport)(&c)
}

// ID is the host's peer ID.
func (h *Host) ID() string { return h.id.String() }

// Addrs are the multiaddresses the host listens on. An unspecified address stands for
// those of all interfaces.
func (h *Host) Addrs() []string {
	list, err := h.swarm.InterfaceListenAddresses()
	if err != nil {
		h.log.Warn("list interface addresses", "err", err)
		list = h.swarm.ListenAddresses()
	}
	out := make([]string, 0, len(list))
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// SetPeer makes a peer known at the given addresses (multiaddresses or "ip:port"),
// which replace earlier ones. Addresses that can't be read are logged and left out.
func (h *Host) SetPeer(peerID string, addrs []string) {
	id, err := peer.Decode(peerID)
	if err != nil {
		h.log.Warn("set peer: not a peer ID", "peer", peerID, "err", err)
		return
	}
	list := make([]ma.Multiaddr, 0, len(addrs))
	for _, s := range addrs {
		a, err := parseAddr(s)
		if err != nil {
			h.log.Warn("set peer: unreadable address", "peer", peerID, "addr", s, "err", err)
			continue
		}
		list = append(list, a)
	}
	h.limits.setKnown(id, true)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.store.ClearAddrs(id)
	h.store.AddAddrs(id, list, peerstore.PermanentAddrTTL)
}

// ForgetPeer makes a peer a stranger again and closes its connections.
func (h *Host) ForgetPeer(peerID string) {
	id, err := peer.Decode(peerID)
	if err != nil || id == h.id {
		return
	}
	h.limits.setKnown(id, false)
	h.mu.Lock()
	h.store.ClearAddrs(id)
	h.mu.Unlock()
	h.Disconnect(peerID)
}

// Disconnect closes the connections to a peer, which stays known. It is for peers that
// something else found dead: their streams fail at once instead of at a time-out.
func (h *Host) Disconnect(peerID string) {
	id, err := peer.Decode(peerID)
	if err != nil {
		return
	}
	if err := h.swarm.ClosePeer(id); err != nil {
		h.log.Debug("close connections", "peer", peerID, "err", err)
	}
	h.closeBares(Addr(id.String()), false)
}

// Connected says whether a connection to the peer is open that Dial would use.
func (h *Host) Connected(peerID string) bool {
	id, err := peer.Decode(peerID)
	return err == nil && h.swarm.Connectedness(id) == network.Connected
}

// OnDisconnect has f called when the last connection to a peer that Dial would use has
// ended, for whatever reason but Close. f runs in a goroutine of the host and must not block.
func (h *Host) OnDisconnect(f func(peerID string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onDisconnect = append(h.onDisconnect, f)
}

// Close ends all streams, listeners and connections, and returns when everything the
// host started has ended.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	listeners := h.listeners
	h.listeners = map[string]*listener{}
	for c, t := range h.watched {
		t.Stop()
		delete(h.watched, c)
	}
	h.mu.Unlock()
	h.closeBares("", true)
	for _, l := range listeners {
		l.shut()
	}
	ended := make(chan struct{})
	go func() { h.ending.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
	}
	err := h.swarm.Close()
	<-ended
	return errors.Join(err, h.store.Close())
}

// hostPort reads "ip:port".
func hostPort(s string) (ma.Multiaddr, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return manet.FromNetAddr(net.TCPAddrFromAddrPort(ap))
}

// parseAddr reads a multiaddress or "ip:port".
func parseAddr(s string) (ma.Multiaddr, error) {
	if len(s) > 0 && s[0] == '/' {
		return ma.NewMultiaddr(s)
	}
	return hostPort(s)
}
