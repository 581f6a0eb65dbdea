package transfer

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// stand is what one who wants a blob from outside says of itself.
type stand byte

const (
	standAsking stand = 1 // is asking the source now
	standCannot stand = 2 // the source failed it: it won't ask (again)
	standServed stand = 4 // gets something: from the source if it asks it, else from peers
	standWhole  stand = 8 // has all of it
)

// turn opens a session about who asks a source for a blob.
type turn struct {
	digest digest.Digest
	stand  stand
}

// whose is what such a session answers.
type whose struct {
	state byte
	peers []string // who has all of the blob, or is asking the source for it
}

const (
	turnNobodys = 0 // nobody is left who could ask
	turnYours   = 1
	turnOthers  = 2
)

func (t turn) encode() []byte { return frame(kindTurn, append([]byte{byte(t.stand)}, t.digest...)...) }

func decodeTurn(b []byte) (turn, error) {
	if len(b) == 0 {
		return turn{}, api.InvalidArgument("turn frame without a body")
	}
	t := turn{stand: stand(b[0]), digest: digest.Digest(b[1:])}
	if err := t.digest.Validate(); err != nil {
		return turn{}, api.InvalidArgument("turn frame: digest: %w", err)
	}
	return t, nil
}

func encodeStand(s stand) []byte { return frame(kindStand, byte(s)) }

func decodeStand(b []byte) (stand, error) {
	if len(b) != 1 {
		return 0, api.InvalidArgument("stand frame of %d bytes", len(b))
	}
	return stand(b[0]), nil
}

func (w whose) encode() []byte {
	return frame(kindWhose, append([]byte{w.state}, encodePeers(w.peers)[headerSize:]...)...)
}

func decodeWhose(b []byte) (whose, error) {
	if len(b) == 0 || b[0] > turnOthers {
		return whose{}, api.InvalidArgument("whose frame without a known state")
	}
	ids, err := decodePeers(b[1:])
	if err != nil {
		return whose{}, fmt.Errorf("whose frame: %w", err)
	}
	return whose{state: b[0], peers: ids}, nil
}
