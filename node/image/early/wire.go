package early

import (
	"encoding/binary"
	"errors"
	"io"
)

// Between agent and keeper messages are of one size: kind (1 byte) and a range (8 bytes
// each, big endian).
const (
	// kindHave, of the agent: these bytes are there and proven. Of the keeper, first:
	// these were; the last of them is empty and has the file's size.
	kindHave = 1
	// kindFail, of the agent: what isn't there never will be.
	kindFail = 2
	// kindNeed, of the keeper: somebody waits for these.
	kindNeed = 3
	// kindGaveUp, of the keeper: a read of these has failed, as they didn't come.
	kindGaveUp = 4

	messageSize = 17
)

type message struct {
	kind byte
	span Span
}

func (m message) encode() []byte {
	b := make([]byte, 0, messageSize)
	b = append(b, m.kind)
	b = binary.BigEndian.AppendUint64(b, uint64(m.span.Start))
	return binary.BigEndian.AppendUint64(b, uint64(m.span.End))
}

var errMessage = errors.New("malformed message")

func decodeMessage(b []byte) (message, error) {
	if len(b) != messageSize || b[0] < kindHave || b[0] > kindGaveUp {
		return message{}, errMessage
	}
	m := message{b[0], Span{int64(binary.BigEndian.Uint64(b[1:])), int64(binary.BigEndian.Uint64(b[9:]))}}
	if m.span.Start < 0 || m.span.End < m.span.Start {
		return message{}, errMessage
	}
	return m, nil
}

func readMessage(r io.Reader) (message, error) {
	var b [messageSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return message{}, err
	}
	return decodeMessage(b[:])
}
