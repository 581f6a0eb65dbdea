package catalog

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// Limits of what is read from a log or a peer.
const (
	maxFrame   = 8 << 20 // bytes of one forwarded request or answer
	maxEntries = 4096    // commands of one log entry
)

// batchVersion is the first byte of every log entry.
const batchVersion = 1

// entryFixed is the length of an entry's fields before its body: version 1, kind 2,
// flags 1, time 8, seed 8, length of the body 4.
const entryFixed = 24

const flagIgnorable = 1

// encodeBatch writes the commands of one log entry: version, count, entries.
func encodeBatch(batch []entry) []byte {
	size := 5
	for _, e := range batch {
		size += entryFixed + len(e.body)
	}
	b := make([]byte, 0, size)
	b = append(b, batchVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(batch)))
	for _, e := range batch {
		var flags byte
		if e.ignorable {
			flags |= flagIgnorable
		}
		b = append(b, e.version)
		b = binary.BigEndian.AppendUint16(b, uint16(e.kind))
		b = append(b, flags)
		b = binary.BigEndian.AppendUint64(b, uint64(e.at.UnixNano()))
		b = binary.BigEndian.AppendUint64(b, e.seed)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.body)))
		b = append(b, e.body...)
	}
	return b
}

// decodeBatch is the inverse of encodeBatch. Bodies alias b.
func decodeBatch(b []byte) ([]entry, error) {
	if len(b) < 5 || b[0] != batchVersion {
		return nil, fmt.Errorf("log entry: not of version %d", batchVersion)
	}
	n := binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	if n > maxEntries || int(n)*entryFixed > len(b) {
		return nil, fmt.Errorf("log entry: %d commands in %d bytes", n, len(b))
	}
	batch := make([]entry, n)
	for i := range batch {
		if len(b) < entryFixed {
			return nil, fmt.Errorf("log entry: command %d is cut off", i)
		}
		e := entry{
			version:   b[0],
			kind:      Kind(binary.BigEndian.Uint16(b[1:])),
			ignorable: b[3]&flagIgnorable != 0,
			at:        time.Unix(0, int64(binary.BigEndian.Uint64(b[4:]))).UTC(),
			seed:      binary.BigEndian.Uint64(b[12:]),
		}
		if b[3]&^flagIgnorable != 0 {
			return nil, fmt.Errorf("log entry: command %d has flags %#x of a newer version: upgrade shoal on this node", i, b[3])
		}
		size := binary.BigEndian.Uint32(b[20:])
		b = b[entryFixed:]
		if uint64(size) > uint64(len(b)) {
			return nil, fmt.Errorf("log entry: body of command %d is cut off", i)
		}
		e.body, b = b[:size:size], b[size:]
		batch[i] = e
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("log entry: %d bytes too many", len(b))
	}
	return batch, nil
}

// writeFrame writes a length and that many bytes.
func writeFrame(w io.Writer, payload []byte) error {
	b := make([]byte, 4, 4+len(payload))
	binary.BigEndian.PutUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// readFrame is the inverse of writeFrame; it allocates no more than arrives.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes; at most %d are taken", n, maxFrame)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// op is what a follower asks of the leader.
type op byte

const (
	opPropose op = 1 // payload: a batch of one command
	opSync    op = 2 // payload: empty
)

// request travels from a follower to the leader.
type request struct {
	id      uint64
	op      op
	payload []byte
}

func (r request) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 9+len(r.payload)), r.id)
	return append(append(b, byte(r.op)), r.payload...)
}

func decodeRequest(b []byte) (request, error) {
	if len(b) < 9 {
		return request{}, fmt.Errorf("request of %d bytes", len(b))
	}
	return request{binary.BigEndian.Uint64(b), op(b[8]), b[9:]}, nil
}

// answer travels back. retry says that the asked node could not decide, so that
// the follower asks again, here or elsewhere; refused carries an error of a class.
type answer struct {
	id     uint64
	status answerStatus
	body   []byte
}

type answerStatus byte

const (
	answerResult  answerStatus = 0 // body: a Result
	answerRefused answerStatus = 1 // body: a refusal
	answerRetry   answerStatus = 2 // body: a refusal
)

type refusal struct {
	Status  int // HTTP's, as a class
	Message string
}

func (a answer) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 9+len(a.body)), a.id)
	return append(append(b, byte(a.status)), a.body...)
}

func decodeAnswer(b []byte) (answer, error) {
	if len(b) < 9 {
		return answer{}, fmt.Errorf("answer of %d bytes", len(b))
	}
	return answer{binary.BigEndian.Uint64(b), answerStatus(b[8]), b[9:]}, nil
}

// answerOf encodes a result or an error.
func answerOf(id uint64, r Result, err error) answer {
	if err == nil {
		body, encErr := json.Marshal(r)
		if encErr == nil {
			return answer{id, answerResult, body}
		}
		err = api.Internal("encode result: %w", encErr)
	}
	status := answerRefused
	if retriable(err) {
		status = answerRetry
	}
	// Two plain fields always encode.
	body, _ := json.Marshal(refusal{api.Status(err), err.Error()})
	return answer{id, status, body}
}

// open is the inverse of answerOf.
func (a answer) open() (Result, error) {
	if a.status == answerResult {
		var r Result
		if err := json.Unmarshal(a.body, &r); err != nil {
			return Result{}, fmt.Errorf("decode the leader's answer: %w", err)
		}
		return r, nil
	}
	var f refusal
	if err := json.Unmarshal(a.body, &f); err != nil {
		return Result{}, fmt.Errorf("decode the leader's refusal: %w", err)
	}
	err := api.FromStatus(f.Status, f.Message)
	if a.status == answerRetry {
		return Result{}, &retryError{err}
	}
	return Result{}, err
}

// retryError says that a proposal may be made again: it didn't happen, or doing it
// twice does no harm.
type retryError struct{ error }

func (e *retryError) Unwrap() error { return e.error }
