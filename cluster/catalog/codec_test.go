package catalog

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func someBatch(t testing.TB) []entry {
	t.Helper()
	at := time.Unix(1700000000, 123).UTC()
	var batch []entry
	for _, c := range []Command{SetRef{Ref{"a:1", "d"}}, RemoveNode{"n"}, SetSecret{"s"}, SetPrivate{Private{Digest: "d", Nodes: []string{"n"}}}} {
		e, err := newEntry(c, at, 7)
		require.NoError(t, err)
		batch = append(batch, e)
	}
	batch[1].ignorable = true
	return batch
}

func TestBatchRoundTrip(t *testing.T) {
	want := someBatch(t)
	raw := encodeBatch(want)
	got, err := decodeBatch(raw)
	require.NoError(t, err)
	require.Equal(t, want, got)
	for i := range raw {
		_, err := decodeBatch(raw[:i])
		require.Error(t, err, "cut off after %d bytes", i)
	}
	_, err = decodeBatch(append(raw, 0))
	require.Error(t, err)
}

func FuzzBatch(f *testing.F) {
	f.Add(encodeBatch(someBatch(f)))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		batch, err := decodeBatch(b)
		if err == nil {
			require.Equal(t, b, encodeBatch(batch), "what is read is written the same")
		}
	})
}

func TestFramesAreBounded(t *testing.T) {
	_, err := readFrame(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, 1}))
	require.ErrorContains(t, err, "at most")
	_, err = readFrame(bytes.NewReader([]byte{0, 0, 0, 9, 1}))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	require.NoError(f, writeFrame(&b, request{7, opPropose, encodeBatch(someBatch(f))}.encode()))
	f.Add(b.Bytes())
	b.Reset()
	require.NoError(f, writeFrame(&b, answerOf(7, Result{Index: 9}, nil).encode()))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		if req, err := decodeRequest(payload); err == nil {
			require.Equal(t, payload, req.encode())
			_, _ = decodeBatch(req.payload) // must only not panic
		}
		if a, err := decodeAnswer(payload); err == nil {
			require.Equal(t, payload, a.encode())
			_, _ = a.open() // must only not panic
		}
	})
}

func TestAnswersKeepTheirClass(t *testing.T) {
	for _, want := range []error{
		api.Conflict("taken"), api.NotFound("No such container: x"), api.Internal("Bind failed"), ErrNoLeader,
	} {
		a, err := decodeAnswer(answerOf(3, Result{}, want).encode())
		require.NoError(t, err)
		_, got := a.open()
		require.EqualError(t, got, want.Error())
		require.Equal(t, api.Status(want), api.Status(got))
		require.False(t, retriable(got))
	}
	a := answerOf(3, Result{}, errNotLeading)
	_, err := a.open()
	require.True(t, retriable(err))
	r, err := answerOf(3, Result{Index: 5, Node: &Node{ID: "x"}}, nil).open()
	require.NoError(t, err)
	require.Equal(t, Result{Index: 5, Node: &Node{ID: "x"}}, r)
}

func TestUnknownKind(t *testing.T) {
	s := NewState()
	_, err := s.apply(1, []entry{{version: 1, kind: 9999, ignorable: true, body: []byte("{}")}})
	require.NoError(t, err, "one that may be ignored is")
	require.EqualValues(t, 1, s.View().Index())
	known, err := newEntry(SetRef{Ref{"a", "d"}}, time.Unix(1, 0), 0)
	require.NoError(t, err)
	_, err = s.apply(2, []entry{known, {version: 1, kind: 9999, body: []byte("{}")}})
	require.ErrorContains(t, err, "upgrade shoal")
	_, ok := s.View().Ref("a")
	require.False(t, ok, "an entry counts whole or not at all")
	require.EqualValues(t, 1, s.View().Index())
	_, err = s.apply(2, []entry{{version: 1, kind: KindSetRef, body: []byte("{")}})
	require.ErrorContains(t, err, "decode command")
}

func TestSnapshotDamage(t *testing.T) {
	s := NewState()
	for _, c := range []Command{
		SetSettings{Name: "c", Subnet: DefaultSubnet}, PutNode{Node{ID: "n", Name: "n"}},
		SetPrivate{Private{Digest: "d", ID: "i", Names: []string{"a:1"}, Nodes: []string{"n"}, Tags: []string{"zone=eu"}}},
		ClaimContainer{ID: "c1", Name: "x1", NodeID: "n", Ports: []Port{{HostPort: 80, ContainerPort: 80}}},
	} {
		_, err := s.Propose(t.Context(), c)
		require.NoError(t, err)
	}
	var b bytes.Buffer
	require.NoError(t, writeSnapshot(&b, s.view()))
	_, index, err := readSnapshot(bytes.NewReader(b.Bytes()))
	require.NoError(t, err)
	require.Equal(t, s.View().Index(), index)
	for i := range b.Len() {
		broken := bytes.Clone(b.Bytes())
		broken[i] ^= 0x40
		_, _, err := readSnapshot(bytes.NewReader(broken))
		require.Error(t, err, "byte %d", i)
		_, _, err = readSnapshot(bytes.NewReader(b.Bytes()[:i]))
		require.ErrorIs(t, err, errCorrupt, "cut off after %d bytes", i)
	}
}

func FuzzSnapshot(f *testing.F) {
	s := NewState()
	for _, c := range []Command{SetRef{Ref{"a", "d"}}, SetPrivate{Private{Digest: "d", Names: []string{"a"}, Tags: []string{"zone=eu"}}}} {
		_, err := s.Propose(f.Context(), c)
		require.NoError(f, err)
	}
	var b bytes.Buffer
	require.NoError(f, writeSnapshot(&b, s.view()))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		db, index, err := readSnapshot(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		require.NoError(t, writeSnapshot(&out, &view{db: db, index: index}))
		_, _, err = readSnapshot(&out)
		require.NoError(t, err)
	})
}

func TestDamagedFilesAreNamed(t *testing.T) {
	err := damaged("/data/catalog/log", errors.New("broken"))
	require.ErrorContains(t, err, "/data/catalog/log")
	require.ErrorContains(t, err, "move /data/catalog away")
}

func TestDesiredVoters(t *testing.T) {
	// A member is written as its ID, + for alive, v for voter, l for leader.
	for in, want := range map[string]string{
		"a+vl":                    "a",
		"a+vl b+":                 "a",
		"a+vl b+ c+":              "a b c",
		"a+vl b+v c+v d+":         "a b c",
		"a+vl bv c+v d+":          "a c d",
		"a+vl bv c+v":             "a b c",
		"a+vl b+v c+v d+ e+":      "a b c d e",
		"a+vl bv cv d+v e+v f+":   "a b d e f",
		"a+v b+vl c+v d+v":        "a b c",
		"a+v b+v c+v d+vl":        "a b d",
		"a+vl b+v c+v d+v e+v f+": "a b c d e",
	} {
		var ms []member
		for i, w := range strings.Fields(in) {
			ms = append(ms, member{
				id: w[:1], joined: time.Unix(int64(i), 0), alive: strings.Contains(w, "+"),
				voter: strings.Contains(w, "v"), leads: strings.Contains(w, "l"),
			})
		}
		got := desiredVoters(ms)
		require.Len(t, got, len(strings.Fields(want)), in)
		for _, id := range strings.Fields(want) {
			require.True(t, got[id], "%s: %s shall vote, got %v", in, id, got)
		}
	}
}

func TestClassesOfErrors(t *testing.T) {
	require.ErrorIs(t, ErrNoLeader, errdefs.ErrUnavailable)
	require.ErrorIs(t, ErrRemoved, errdefs.ErrUnavailable)
}
