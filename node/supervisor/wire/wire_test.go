package wire

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestMessagesLeaveTheStreamsAlone(t *testing.T) {
	var b bytes.Buffer
	want := Request{Version: Version, Op: OpExec, ID: "a", ExecID: "b", Process: &specs.Process{Args: []string{"x"}}, Streams: Streams{Stdout: true}}
	require.NoError(t, Write(&b, want))
	b.WriteString("stdin")
	var got Request
	require.NoError(t, Read(&b, &got))
	require.Equal(t, want, got)
	require.Equal(t, "stdin", b.String())
}

func TestMessagesAreLimited(t *testing.T) {
	require.ErrorIs(t, Write(io.Discard, make([]byte, MaxMessage)), ErrTooLong)
	var r Reply
	require.ErrorIs(t, Read(bytes.NewReader(binary.BigEndian.AppendUint32(nil, MaxMessage+1)), &r), ErrTooLong)
	require.ErrorIs(t, Read(bytes.NewReader(nil), &r), io.EOF)
	require.ErrorIs(t, Read(bytes.NewReader([]byte{0, 0, 0, 9, '{'}), &r), io.ErrUnexpectedEOF)
}

func TestFieldsOfNewerVersionsAreIgnored(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Write(&b, map[string]any{"v": 99, "op": "list", "whatever": 1}))
	var r Request
	require.NoError(t, Read(&b, &r))
	require.Equal(t, OpList, r.Op)
}

func TestFrame(t *testing.T) {
	require.Equal(t, []byte("x\x02\x00\x00\x00\x00\x00\x00\x02hi"), AppendFrame([]byte("x"), Stderr, []byte("hi")))
}

func FuzzRead(f *testing.F) {
	for _, v := range []any{
		Request{Op: OpCreate, Bundle: &Bundle{Spec: &specs.Spec{Linux: &specs.Linux{}}}},
		Request{Op: OpExec, Process: &specs.Process{Args: []string{"a"}}},
		Reply{Error: Errorf(Conflict, "no")},
	} {
		var b bytes.Buffer
		require.NoError(f, Write(&b, v))
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, message []byte) {
		var r Request
		if Read(bytes.NewReader(message), &r) != nil {
			return
		}
		var b bytes.Buffer
		require.NoError(t, Write(&b, r))
	})
}
