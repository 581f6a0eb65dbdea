package pace

import (
	"strconv"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// minRate is the lowest limit; below it peers would take each other for lost.
const minRate = 64_000 / 8

// Parse reads a rate in bits or bytes a second, such as 100mbit, 1gbit, 500kB or
// 12.5MB, and returns bytes a second. Empty is 0, no limit. Case doesn't matter; k, m
// and g are powers of 1000.
func Parse(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	if t == "" {
		return 0, nil
	}
	for _, u := range []struct {
		suffix string
		bytes  float64
	}{
		{"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8},
		{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9},
	} {
		number, ok := strings.CutSuffix(t, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(v*u.bytes >= minRate && v*u.bytes <= 1e12) {
			break
		}
		return int64(v * u.bytes), nil
	}
	return 0, api.InvalidArgument("rate %q: want a number of bits or bytes a second with its unit, such as 100mbit or 12.5MB, at least 64kbit", s)
}
