package listing

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// Status is the text of the STATUS column. started and finished zero mean never;
// health is "" or NoHealthcheck for a container without health check.
func Status(
	state container.ContainerState, started, finished time.Time,
	exitCode int, health container.HealthStatus, now time.Time,
) string {
	up := units.HumanDuration(now.Sub(started))
	switch state {
	case container.StateRunning:
		switch health {
		case "", container.NoHealthcheck:
			return "Up " + up
		case container.Starting:
			return "Up " + up + " (health: starting)"
		}
		return fmt.Sprintf("Up %s (%s)", up, health)
	case container.StatePaused:
		return "Up " + up + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", exitCode, units.HumanDuration(now.Sub(finished)))
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	}
	switch {
	case state == container.StateCreated || started.IsZero():
		return "Created"
	case finished.IsZero():
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", exitCode, units.HumanDuration(now.Sub(finished)))
}

// Time reads a moment as clients of Docker write it: Unix seconds with or
// without a fraction, RFC 3339 with or without time and zone, or a duration
// before now. Empty and 0 are the zero time.
func Time(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, ok := unixTime(s); ok {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00",
		"2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, api.InvalidArgument("failed to parse value as time or duration: %q", s)
}

func unixTime(s string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || sec > math.MaxInt32*100 || sec < -math.MaxInt32*100 {
		return time.Time{}, false
	}
	if fraction == "" {
		return time.Unix(sec, 0), true
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	nsec, err := strconv.ParseUint(fraction+strings.Repeat("0", 9-len(fraction)), 10, 32)
	if err != nil {
		return time.Time{}, false
	}
	if strings.HasPrefix(whole, "-") {
		return time.Unix(sec, -int64(nsec)), true
	}
	return time.Unix(sec, int64(nsec)), true
}

// boolFilter reads a filter of one truth value; nil means that it isn't there.
func boolFilter(f api.Filters, key string) (*bool, error) {
	var got *bool
	for _, v := range f[key] {
		var b bool
		switch strings.ToLower(v) {
		case "1", "true":
			b = true
		case "0", "false":
		default:
			return nil, api.InvalidArgument("invalid filter '%s=%v'", key, f[key])
		}
		if got != nil && *got != b {
			return nil, api.InvalidArgument("invalid filter '%s=%v'", key, f[key])
		}
		got = &b
	}
	return got, nil
}
