package stdcopy

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestWriterAndCopyAreInverse(t *testing.T) {
	var wire bytes.Buffer
	out, err := NewWriter(&wire, Stdout), NewWriter(&wire, Stderr)
	long := strings.Repeat("x", 3*maxWrite+1)
	for _, s := range []string{"a", "", "b\n", long} {
		n, e := io.WriteString(out, s)
		require.NoError(t, e)
		require.Equal(t, len(s), n)
		_, e = io.WriteString(err, "E"+s)
		require.NoError(t, e)
	}
	var gotOut, gotErr bytes.Buffer
	n, e := Copy(&gotOut, &gotErr, iotest.OneByteReader(&wire))
	require.NoError(t, e)
	require.Equal(t, "ab\n"+long, gotOut.String())
	require.Equal(t, "EaEEb\nE"+long, gotErr.String())
	require.EqualValues(t, gotOut.Len()+gotErr.Len(), n)
}

func TestCopyRefusesWhatIsNoStream(t *testing.T) {
	cut := Append(nil, Stdout, []byte("abc"))
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"cut header":     {cut[:5], "unexpected EOF"},
		"cut payload":    {cut[:9], "unexpected EOF"},
		"raw text":       {[]byte("hello, world"), "not a frame"},
		"unknown stream": {[]byte{9, 0, 0, 0, 0, 0, 0, 0}, "unknown stream 9"},
		"huge frame":     {[]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, "not a frame"},
		"system error":   {Append(nil, System, []byte("disk gone")), "disk gone"},
	} {
		_, err := Copy(io.Discard, io.Discard, bytes.NewReader(c.in))
		require.ErrorContains(t, err, c.want, name)
	}
}

func TestWriterReportsHowFarItCame(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	n, err := NewWriter(w, Stdout).Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.Zero(t, n)
}

func FuzzCopy(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("plain text, no frame"))
	f.Add(Append(Append(nil, Stdout, []byte("out")), Stderr, []byte("err")))
	f.Add(Append(nil, System, []byte("e")))
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var out, err bytes.Buffer
		n, e := Copy(&out, &err, bytes.NewReader(b))
		if n != int64(out.Len()+err.Len()) || n > int64(len(b)) {
			t.Fatalf("copied %d of %d bytes into %d", n, len(b), out.Len()+err.Len())
		}
		if e != nil {
			return
		}
		// What was accepted says the same once more after being framed again.
		var again bytes.Buffer
		_, _ = NewWriter(&again, Stdout).Write(out.Bytes())
		_, _ = NewWriter(&again, Stderr).Write(err.Bytes())
		var out2, err2 bytes.Buffer
		if _, e := Copy(&out2, &err2, &again); e != nil || !bytes.Equal(out.Bytes(), out2.Bytes()) || !bytes.Equal(err.Bytes(), err2.Bytes()) {
			t.Fatalf("framed again it differs: %v", e)
		}
	})
}
