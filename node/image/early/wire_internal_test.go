package early

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzMessage(f *testing.F) {
	f.Add(message{kindHave, Span{1, 2}}.encode())
	f.Add(message{kindFail, Span{}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		require.LessOrEqual(t, m.span.Start, m.span.End)
		require.GreaterOrEqual(t, m.span.Start, int64(0))
		require.Equal(t, b, m.encode())
	})
}

func requestOf(op uint32, body []byte) []byte {
	b := native.AppendUint32(nil, uint32(headerIn+len(body)))
	b = native.AppendUint32(b, op)
	b = native.AppendUint64(b, 7)
	return append(append(b, make([]byte, headerIn-len(b))...), body...)
}

func FuzzRequest(f *testing.F) {
	read := native.AppendUint64(nil, 0)
	read = native.AppendUint64(read, 4096)
	read = native.AppendUint32(read, 8192)
	f.Add(requestOf(opRead, read))
	f.Add(requestOf(opInit, make([]byte, 16)))
	f.Add(requestOf(opInterrupt, make([]byte, 8)))
	f.Add(requestOf(99, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		require.GreaterOrEqual(t, r.offset, int64(0))
		require.LessOrEqual(t, r.size, maxRead)
	})
}

func TestRequests(t *testing.T) {
	body := native.AppendUint64(nil, 0)
	body = native.AppendUint64(body, 4096)
	body = native.AppendUint32(body, 8192)
	r, err := decodeRequest(requestOf(opRead, body))
	require.NoError(t, err)
	require.Equal(t, request{op: opRead, unique: 7, offset: 4096, size: 8192}, r)
	for name, b := range map[string][]byte{
		"short":                requestOf(opRead, body)[:30],
		"longer than it says":  append(requestOf(opRead, body), 0),
		"read without a range": requestOf(opRead, nil),
		"init without version": requestOf(opInit, nil),
		"interrupt of nothing": requestOf(opInterrupt, nil),
	} {
		_, err := decodeRequest(b)
		require.ErrorIs(t, err, errRequest, name)
	}
}

// TestSpans compares spans with a set of bytes.
func TestSpans(t *testing.T) {
	const size = 64
	rnd := rand.New(rand.NewPCG(1, 2))
	var s Spans
	set := make([]byte, size)
	for range 5000 {
		x := Span{rnd.Int64N(size), rnd.Int64N(size + 1)}
		if x.Start > x.End {
			x.Start, x.End = x.End, x.Start
		}
		before := bytes.Clone(set)
		all := !bytes.Contains(before[x.Start:x.End], []byte{0})
		require.Equal(t, all, s.Has(x), "%v has %v", s, x)
		missing := make([]byte, size)
		for _, m := range s.Without(x) {
			require.Less(t, m.Start, m.End)
			copy(missing[m.Start:m.End], bytes.Repeat([]byte{1}, size))
		}
		for i := range size {
			want := int64(i) >= x.Start && int64(i) < x.End && set[i] == 0
			require.Equal(t, want, missing[i] == 1, "%v without %v at %d", s, x, i)
		}
		if rnd.IntN(3) > 0 {
			s.Add(x)
			copy(set[x.Start:x.End], bytes.Repeat([]byte{1}, size))
		} else {
			s.Remove(x)
			copy(set[x.Start:x.End], make([]byte, size))
		}
		for i := 1; i < len(s); i++ {
			require.Less(t, s[i-1].End, s[i].Start, "%v touches", s)
		}
	}
	require.Equal(t, Span{3, 9}, Spans{{0, 1}, {3, 9}}.Around(Span{4, 5}))
}
