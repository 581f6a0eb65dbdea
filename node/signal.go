package node

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// The real-time signals that a program may use; the C library keeps 32 and 33.
const rtMin, rtMax = 34, 64

// parseSignal reads a signal by number or name, with or without SIG, and
// RTMIN+n, RTMAX-n.
func parseSignal(s string) (int, error) {
	bad := api.InvalidArgument("invalid signal: %s", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, base := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return base, nil
		}
		n, err := strconv.Atoi(rest) // with its sign
		if err != nil || rest[0] != '+' && rest[0] != '-' || base+n < rtMin || base+n > rtMax {
			return 0, bad
		}
		return base + n, nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, bad
}
