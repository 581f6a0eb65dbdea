package server

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/shoal-engine/shoal/api"
)

// version of Docker's API.
type version struct{ major, minor int }

// newest is what the wire types of github.com/moby/moby/api speak, oldest what
// Docker's own engine still answers.
var (
	newest = version{1, 56}
	oldest = version{1, 40}
)

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }
func (v version) before(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// below says whether the version is older than 1.minor.
func (v version) below(minor int) bool { return v.before(version{1, minor}) }

var versioned = regexp.MustCompile(`^/v([0-9.]+)(/.*)$`)

// splitVersion takes /v1.41 off a path; without it, the newest version is meant.
func splitVersion(path string) (version, string, error) {
	m := versioned.FindStringSubmatch(path)
	if m == nil {
		return newest, path, nil
	}
	v, err := parseVersion(m[1])
	switch {
	case err != nil:
		return version{}, "", err
	case newest.before(v):
		return version{}, "", api.InvalidArgument(
			"client version %s is too new. Maximum supported API version is %s", m[1], newest)
	case v.before(oldest):
		return version{}, "", api.InvalidArgument("client version %s is too old. Minimum supported API version is %s, "+
			"please upgrade your client to a newer version", m[1], oldest)
	}
	return v, m[2], nil
}

var majorMinor = regexp.MustCompile(`^([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:\.[0-9]{1,4})*$`)

func parseVersion(s string) (version, error) {
	m := majorMinor.FindStringSubmatch(s)
	if m == nil {
		return version{}, api.InvalidArgument("invalid API version %q", s)
	}
	major, _ := strconv.Atoi(m[1]) // digits alone, by the pattern
	minor, _ := strconv.Atoi(m[2]) // the same; none is 0
	return version{major, minor}, nil
}
