// Package stdcopy writes and reads the frames in which Docker carries stdout and stderr over one connection.
//
// A frame is one byte for the stream, three zero bytes, the payload's length as
// a big-endian uint32, and the payload.
package stdcopy

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Stream is what a frame belongs to.
type Stream byte

// The streams; their numbers are on the wire.
const (
	Stdin  Stream = 0 // never sent; read as Stdout, as Docker does
	Stdout Stream = 1
	Stderr Stream = 2
	System Stream = 3 // the engine's own error, the last frame of a stream
)

const (
	headerSize = 8
	// maxWrite is the payload of the frames that are written; larger writes are
	// split. 32 KiB is what io.Copy moves at a time.
	maxWrite = 32 << 10
	// maxRead is the largest payload that is believed. A longer one is no frame
	// but a stream that was never framed.
	maxRead = 64 << 20
	// maxSystem bounds the engine's error, the only payload held in memory.
	maxSystem = 64 << 10
)

// SystemError is what the engine reported instead of going on.
type SystemError struct{ Message string }

func (e *SystemError) Error() string { return "error from the engine in the stream: " + e.Message }

// NewWriter frames what is written to it. Every frame is one Write on w, so that
// writers of several streams may share a w that is safe for concurrent use.
func NewWriter(w io.Writer, s Stream) io.Writer { return &writer{w: w, stream: s} }

type writer struct {
	w      io.Writer
	stream Stream
}

// frames are buffers for a header and a payload in one piece.
var frames = sync.Pool{New: func() any { b := make([]byte, 0, headerSize+maxWrite); return &b }}

func (w *writer) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n := min(len(p), maxWrite)
		b := frames.Get().(*[]byte)
		*b = Append((*b)[:0], w.stream, p[:n])
		_, err := w.w.Write(*b)
		frames.Put(b)
		if err != nil {
			return done, err
		}
		done += n
		p = p[n:]
	}
	return done, nil
}

// Append appends a frame to b.
func Append(b []byte, s Stream, payload []byte) []byte {
	b = append(b, byte(s), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// Copy takes a framed stream apart until it ends. It holds no more than a small
// buffer in memory, whatever a frame claims. A stream that ends inside a frame is
// io.ErrUnexpectedEOF; the engine's own error is a *SystemError.
func Copy(stdout, stderr io.Writer, src io.Reader) (written int64, err error) {
	var header [headerSize]byte
	buf := make([]byte, maxWrite)
	for {
		if _, err := io.ReadFull(src, header[:]); err != nil {
			if err == io.EOF {
				return written, nil
			}
			return written, err
		}
		size := int64(binary.BigEndian.Uint32(header[4:]))
		if header[1]|header[2]|header[3] != 0 || size > maxRead {
			return written, fmt.Errorf("not a frame: % x", header)
		}
		var dst io.Writer
		switch Stream(header[0]) {
		case Stdin, Stdout:
			dst = stdout
		case Stderr:
			dst = stderr
		case System:
			return written, readSystem(src, size)
		default:
			return written, fmt.Errorf("unknown stream %d", header[0])
		}
		// The struct hides ReadFrom and WriteTo, which would not use buf.
		n, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{io.LimitReader(src, size)}, buf)
		written += n
		if err != nil {
			return written, err
		}
		if n < size {
			return written, io.ErrUnexpectedEOF
		}
	}
}

func readSystem(src io.Reader, size int64) error {
	b, err := io.ReadAll(io.LimitReader(src, min(size, maxSystem)))
	if err != nil {
		return err
	}
	return &SystemError{Message: string(b)}
}
