package transfer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeers(PeersConfig{})
		w := want{digest: digest.FromString("x"), size: 1000, fetching: true}
		var b *served
		for i := range wholeCrowd {
			var room bool
			b, room = p.enter(w, fmt.Sprint(i), 1)
			require.True(t, room)
		}
		_, room := p.enter(w, "late", 1)
		require.False(t, room)
		_, room = p.enter(want{digest: w.digest, size: w.size}, "alone", 1)
		require.True(t, room, "whoever passes nothing on and asks nobody else is let in")
		p.leave(want{digest: w.digest}, "alone", b)

		known := map[string]bool{}
		var told []string
		for {
			ids := p.others(b, someTold, "0", known)
			require.LessOrEqual(t, len(ids), someTold)
			if len(ids) == 0 {
				break
			}
			told = append(told, ids...)
		}
		require.Len(t, told, wholeCrowd, "all but itself, and the one sent away, once each")
		require.Contains(t, told, "late")
		require.NotContains(t, told, "0")

		time.Sleep(roomTime / 2) // fake time: idle, but not for long enough
		p.atWork(b)
		time.Sleep(roomTime / 2) // fake time: long enough only had nothing been sent between
		_, room = p.enter(w, "late", 1)
		require.False(t, room, "those that are in keep this node busy")
		time.Sleep(roomTime) // fake time: idle for just long enough
		_, room = p.enter(w, "late", 1)
		require.True(t, room, "they don't")
		_, room = p.enter(w, "later", 1)
		require.False(t, room, "one at a time")

		p.leave(w, "1", b)
		p.leave(w, "late", b)
		_, room = p.enter(w, "later", 1)
		require.True(t, room)
		require.Contains(t, p.others(b, maxTold, "0", map[string]bool{}), "1", "most that go have got everything")
		time.Sleep(lingerTime + 1) // fake time: a moment after those that went are forgotten
		require.NotContains(t, p.others(b, maxTold, "0", map[string]bool{}), "1")
	})
}
