package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxMessage is the most bytes of JSON in one message. A spec with a seccomp
// profile of its own is some 100 KiB.
const MaxMessage = 16 << 20

// ErrTooLong says that a message is longer than MaxMessage.
var ErrTooLong = errors.New("message too long")

// Write sends v as JSON, its length as four bytes before it, in one write.
func Write(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return ErrTooLong
	}
	message := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(message, body...)); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Read receives what Write sent, and not a byte more. io.EOF if nothing came.
func Read(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		if err == io.EOF {
			return err
		}
		return fmt.Errorf("receive message: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxMessage {
		return ErrTooLong
	}
	// Grows as bytes come, so that a length alone takes no memory.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if len(body) < int(n) {
		return fmt.Errorf("receive message: %w", io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
