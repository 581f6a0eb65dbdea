package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/integration/lab"
	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/p2p"
)

// nowhere is a transfer.Store that holds one blob made up of the same noise all over, if
// it has any, and throws away what it is given: with it, an exchange of blobs is nothing
// but the wire.
type nowhere struct {
	size  int64
	noise []byte // wireBlock; nil: it holds nothing
}

// exchanged names the blob; nobody checks.
func exchanged(size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromString("exchanged"), Size: size}
}

func (s nowhere) Stat(context.Context, digest.Digest) (ocispec.Descriptor, error) {
	if s.noise == nil {
		return ocispec.Descriptor{}, api.NotFound("it holds nothing")
	}
	return exchanged(s.size), nil
}

func (s nowhere) Open(_ context.Context, d digest.Digest) (transfer.Blob, error) {
	if s.noise == nil || d != exchanged(s.size).Digest {
		return nil, api.NotFound("no blob %s", d)
	}
	return struct {
		*io.SectionReader
		io.Closer
	}{io.NewSectionReader(s, 0, s.size), io.NopCloser(nil)}, nil
}

// ReadAt reads noise at any offset.
func (s nowhere) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		n += copy(b[n:], s.noise[(off+int64(n))%wireBlock:])
	}
	return n, nil
}

func (s nowhere) Ingest(context.Context, ocispec.Descriptor) (transfer.Writer, error) {
	return discard{}, nil
}

// discard is a transfer.Writer to nowhere.
type discard struct{}

func (discard) Write(b []byte) (int, error)            { return len(b), nil }
func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (discard) Offset() int64                          { return 0 }
func (discard) Commit(context.Context) error           { return nil }
func (discard) Close() error                           { return nil }
func (discard) Abort() error                           { return nil }
func (discard) ReadAt([]byte, int64) (int, error) {
	return 0, api.Errorf(errdefs.ErrUnavailable, "it was thrown away")
}

// keyOf is the key of the giver (1) or the taker (2).
func keyOf(who byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), who))
}

func idOf(who byte) string { return p2p.PeerID(keyOf(who).Public().(ed25519.PublicKey)) }

// exchangeHost is a host of nodes' own kind.
func exchangeHost(who byte, listen ...string) (*p2p.Host, error) {
	return p2p.New(p2p.Config{Key: keyOf(who), Listen: listen, Allow: func(string, string) bool { return true }, Background: true})
}

// give serves a blob of a size at an address as nodes do, until it is told to end.
func give(ctx context.Context, args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	h, err := exchangeHost(1, args[0])
	if err != nil {
		return err
	}
	defer h.Close()
	h.SetPeer(idOf(2), nil)
	l, err := h.Listen(transfer.Protocol)
	if err != nil {
		return err
	}
	noise := make([]byte, wireBlock)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	fmt.Println("ready")
	m := newMeter()
	peers := transfer.NewPeers(transfer.PeersConfig{Self: h.ID(), Dial: nobody, Locator: giver{}})
	if err := peers.Serve(ctx, l, nowhere{size, noise}); err != nil {
		return err
	}
	return m.print()
}

func nobody(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody to dial") }

// giver is the one who has it.
type giver struct{}

func (giver) Find(context.Context, digest.Digest) iter.Seq2[transfer.Peer, error] {
	return func(yield func(transfer.Peer, error) bool) { yield(transfer.Peer{ID: idOf(1)}, nil) }
}

// take fetches the blob from who gives it at an address.
func take(ctx context.Context, args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	h, err := exchangeHost(2)
	if err != nil {
		return err
	}
	defer h.Close()
	h.SetPeer(idOf(1), []string{args[0]})
	peers := transfer.NewPeers(transfer.PeersConfig{
		Self: h.ID(), Locator: giver{},
		Dial: func(ctx context.Context, id string) (net.Conn, error) { return h.Dial(ctx, id, transfer.Protocol) },
		DialBeside: func(ctx context.Context, id string) (net.Conn, error) {
			return h.DialBeside(ctx, id, transfer.Protocol)
		},
	})
	m := newMeter()
	if err := peers.Fetch(ctx, nowhere{size: size}, exchanged(size), nil); err != nil {
		return err
	}
	return m.print()
}

// exchangeOnce has node 2 fetch from node 1 as agents do, from memory to nowhere.
func (b *bench) exchangeOnce(ctx context.Context, l *lab.Lab, out *journeys) error {
	syscall.Sync()
	address, n := fmt.Sprintf("%s:7002", lab.Address(1)), fmt.Sprint(tlsSize)
	source := b.self(ctx, l, 1, "give", address, n)
	said, err := startReady(source)
	if err != nil {
		return err
	}
	raw, failed := b.self(ctx, l, 2, "take", address, n).Output()
	_ = source.Process.Signal(syscall.SIGTERM)
	var given, taken moved
	if failed == nil {
		failed = errors.Join(json.Unmarshal(raw, &taken), json.NewDecoder(said).Decode(&given))
	}
	if err := errors.Join(failed, source.Wait()); err != nil {
		return fmt.Errorf("exchange: %w", err)
	}
	out.add(taken.Seconds, taken.CPU+given.CPU)
	return nil
}
