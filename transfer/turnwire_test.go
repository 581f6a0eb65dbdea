package transfer

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestTurnFrames(t *testing.T) {
	in := turn{digest: digest.FromString("x"), stand: standAsking | standServed}
	kind, body := roundTrip(t, in.encode())
	require.Equal(t, byte(kindTurn), kind)
	got, err := decodeTurn(body)
	require.NoError(t, err)
	require.Equal(t, in, got)
	_, err = decodeTurn(nil)
	require.Error(t, err)
	_, err = decodeTurn([]byte("\x00sha256:short"))
	require.Error(t, err)

	w := whose{state: turnOthers, peers: []string{"a", "bc"}}
	kind, body = roundTrip(t, w.encode())
	require.Equal(t, byte(kindWhose), kind)
	told, err := decodeWhose(body)
	require.NoError(t, err)
	require.Equal(t, w, told)
	_, err = decodeWhose([]byte{3})
	require.Error(t, err)
	_, err = decodeWhose(body[:len(body)-1])
	require.Error(t, err)

	_, err = decodeStand([]byte{1, 2})
	require.Error(t, err)
}

// FuzzTurnFrames feeds sessions about a turn to both sides' decoders, as a peer could.
func FuzzTurnFrames(f *testing.F) {
	f.Add(turn{digest: digest.FromString("x"), stand: standCannot}.encode())
	f.Add(append(encodeStand(standServed), encodeStand(standWhole)...))
	f.Add(whose{state: turnYours, peers: []string{"a", "b"}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			kind, body, err := readFrame(r)
			if err != nil {
				return
			}
			switch kind {
			case kindTurn:
				if x, err := decodeTurn(body); err == nil {
					_, again := roundTrip(t, x.encode())
					require.Equal(t, body, again)
				}
			case kindStand:
				if _, err := decodeStand(body); err == nil {
					require.Len(t, body, 1)
				}
			case kindWhose:
				if x, err := decodeWhose(body); err == nil {
					require.LessOrEqual(t, len(x.peers), maxPeers)
					_, again := roundTrip(t, x.encode())
					require.Equal(t, body, again)
				}
			}
		}
	})
}
