package wire

import "encoding/binary"

// The streams of Docker's frames.
const (
	Stdout byte = 1
	Stderr byte = 2
)

// AppendFrame adds output to b in one of Docker's frames.
func AppendFrame(b []byte, stream byte, output []byte) []byte {
	b = append(b, stream, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(output)))
	return append(b, output...)
}
