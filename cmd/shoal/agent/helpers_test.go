package agent

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// passes waits, in fake time, until ok holds.
func passes(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 60 {
		synctest.Wait()
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatal("it doesn't come to pass in a minute")
}
