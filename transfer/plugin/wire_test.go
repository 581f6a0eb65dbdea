package plugin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// recorded is a conn that reads what is given; nobody reads what it writes.
func recorded(b []byte) *conn {
	return newConn(bytes.NewReader(b), io.Discard, func(time.Time) error { return nil }, time.Second, time.Second)
}

func answerWith(chunks ...string) []byte {
	b := []byte(`{"id":1,"ok":true}` + "\n")
	for _, c := range chunks {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(c))), c...)
	}
	return append(b, 0, 0, 0, 0)
}

// FuzzGet reads whatever a plugin may answer to a get. However it ends, no more than
// the blob's size is passed on, and every failure has a name.
func FuzzGet(f *testing.F) {
	end := []byte(`{"id":1,"ok":true}` + "\n")
	f.Add(append(answerWith("hello", "world"), end...), int64(10))
	f.Add(append(answerWith("hello", "world"), end...), int64(7))
	f.Add(append(answerWith("hello"), `{"id":1,"error":"broke"}`+"\n"...), int64(5))
	f.Add([]byte(`{"id":1,"wait":true}`+"\n"+`{"id":1,"ok":false}`+"\n"), int64(5))
	f.Add([]byte(`{"id":2,"ok":true}`+"\n"), int64(5))
	f.Add([]byte(`{"id":1,"ok":true,"size":-9223372036854775808,"offset":1e99}`+"\n"), int64(0))
	f.Add(append([]byte(`{"id":1,"ok":true}`+"\n"), 0xff, 0xff, 0xff, 0xff), int64(1<<40))
	f.Add([]byte(strings.Repeat("x", 2*maxHeader)), int64(1))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 {
			return
		}
		c := recorded(b)
		a, err := c.ask(request{Op: "get"})
		if err == nil && a.OK {
			require.GreaterOrEqual(t, a.Offset, int64(0))
			var got int64
			err = c.receive(size, func(b []byte) error {
				got += int64(len(b))
				return nil
			})
			require.LessOrEqual(t, got, size)
		}
		if err != nil {
			var bad *fault
			var r refusal
			require.True(t, errors.As(err, &bad) || errors.As(err, &r), "%v", err)
		}
	})
}

func TestFailuresOfOurOwn(t *testing.T) {
	full := errors.New("disk full")
	c := recorded(answerWith("hello"))
	_, err := c.ask(request{Op: "get"})
	require.NoError(t, err)
	err = c.receive(5, func([]byte) error { return full })
	require.ErrorIs(t, err, full)
	var own errSink
	require.ErrorAs(t, err, &own)
	var bad *fault
	require.False(t, errors.As(err, &bad), "the plugin isn't to blame")

	_, err = recorded(nil).ask(request{Op: "hello", Settings: map[string]string{"x": strings.Repeat("x", maxHeader)}})
	require.ErrorContains(t, err, "too long")
}
