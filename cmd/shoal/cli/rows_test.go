package cli

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
)

func TestLiveRows(t *testing.T) {
	var out bytes.Buffer
	l := liveRows{out: &out}
	l.show("a", "one")
	l.show("b", "two")
	out.Reset()
	l.show("a", "three\x1b[2J\nfour")
	require.Equal(t, "\x1b[2A\r\x1b[2Ka             three [2J four\x1b[2B\r", out.String())
	require.Equal(t, "abc", fit("abcdef", 4))
	require.Equal(t, "abcdef", fit("abcdef", 0))
}

// copied is a stream of a copy's lines.
func copied(t *testing.T, lines ...api.Progress) api.Stream[api.Progress] {
	s, send, finish := api.Pipe[api.Progress](t.Context())
	go func() {
		for _, p := range lines {
			if send(p) != nil {
				return
			}
		}
		finish(nil)
	}()
	return s
}

func TestCopyEnds(t *testing.T) {
	detail := func(s string) *json.RawMessage { raw := json.RawMessage(s); return &raw }
	final := detail(`{"final":true,"peers":{"x":5000,"y":7000}}`)
	bad := api.Progress{ID: "b", Status: "Failed", Aux: final, Error: &jsonstream.Error{Message: "no room"}}
	good := api.Progress{ID: "a", Status: "Complete", Aux: final, Progress: &jsonstream.Progress{Current: 12000, Total: 12000}}
	waiting := api.Progress{ID: "a", Status: "Waiting"}
	var out bytes.Buffer
	show := (&globals{}).copyDisplay(&out)
	require.NoError(t, showCopy(copied(t, waiting, good), show))
	require.Equal(t, "a\tWaiting\na\tComplete  12kB/12kB  from y 7kB, x 5kB\n", out.String())
	require.EqualError(t, showCopy(copied(t, good, bad), show), "1 of 2 nodes don't have the image")
	require.Contains(t, out.String(), "b\tFailed: no room")
	require.ErrorContains(t, showCopy(copied(t, waiting), show), "broke off before node a")
	require.EqualError(t, showCopy(copied(t, api.Progress{Error: &jsonstream.Error{Message: "lost"}}), show), "lost")
}

func TestRates(t *testing.T) {
	r, start := rates{}, time.Now()
	at := func(ms int, done int64, more ...string) float64 {
		p := api.Progress{ID: "a", Progress: &jsonstream.Progress{Current: done, Total: 100_000}}
		for _, aux := range more {
			raw := json.RawMessage(aux)
			p.Aux = &raw
		}
		return r.of("a", p, start.Add(time.Duration(ms)*time.Millisecond))
	}
	require.Zero(t, r.of("a", api.Progress{ID: "a", Status: "Waiting"}, start))
	require.Zero(t, at(0, 0), "nothing to compare with")
	require.InDelta(t, 1000, at(1000, 1000), 1)
	require.InDelta(t, 1000, at(2000, 2000), 1)
	require.InDelta(t, 5000, at(4000, 10_000), 2000, "what is long ago counts no more")
	require.InDelta(t, 10_000, at(6000, 30_000), 1)
	require.InDelta(t, 5000, at(20_000, 100_000, `{"final":true}`), 1, "in the end the mean of all")
	require.LessOrEqual(t, len(r["a"]), 4)
	require.Equal(t, "Copying  1kB/2kB  3.5MB/s  from x 1kB", copyText(api.Progress{
		Status: "Copying", Progress: &jsonstream.Progress{Current: 1000, Total: 2000},
		Aux: func() *json.RawMessage { raw := json.RawMessage(`{"peers":{"x":1000}}`); return &raw }(),
	}, 3.5e6))
}
