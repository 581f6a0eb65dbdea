package cluster

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/cluster/identity"
)

func TestJoinFrames(t *testing.T) {
	var b bytes.Buffer
	want := joinRequest{Secret: []byte("s"), Node: catalog.Node{Name: "n", Tags: map[string]string{"k": "v"}}}
	require.NoError(t, writeJoin(&b, want))
	raw := bytes.Clone(b.Bytes())
	var got joinRequest
	require.NoError(t, readJoin(&b, &got))
	require.Equal(t, want, got)
	for i := range raw {
		require.Error(t, readJoin(bytes.NewReader(raw[:i]), &got), "cut off after %d bytes", i)
	}
	require.ErrorContains(t, readJoin(bytes.NewReader([]byte{0xff, 0, 0, 0}), &got), "at most")
	require.Error(t, writeJoin(io.Discard, joinRequest{Secret: make([]byte, maxJoinFrame)}))
}

func FuzzJoinFrame(f *testing.F) {
	var b bytes.Buffer
	require.NoError(f, writeJoin(&b, joinRequest{Secret: []byte("s"), Node: catalog.Node{ID: "x", Name: "n"}}))
	f.Add(b.Bytes())
	b.Reset()
	require.NoError(f, writeJoin(&b, joinAnswer{State: identity.State{ClusterID: "c", Peers: []identity.PeerAddr{{ID: "p"}}}}))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req joinRequest
		var a joinAnswer
		if readJoin(bytes.NewReader(raw), &req) == nil {
			require.NoError(t, writeJoin(io.Discard, req))
		}
		if readJoin(bytes.NewReader(raw), &a) == nil {
			require.NoError(t, writeJoin(io.Discard, a))
		}
	})
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{tokens: joinBurst, last: time.Now()}
		for range joinBurst {
			require.True(t, b.take())
		}
		require.False(t, b.take())
		b.refund()
		require.True(t, b.take(), "a right secret costs nothing")
		<-time.After(3 * joinRefill)
		for range 3 {
			require.True(t, b.take())
		}
		require.False(t, b.take())
		<-time.After(time.Hour)
		for range joinBurst {
			require.True(t, b.take())
		}
		require.False(t, b.take(), "it fills no higher")
	})
}
