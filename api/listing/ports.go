package listing

import (
	"errors"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// portRange is 80, 80/tcp or 8000-9000/udp.
type portRange struct {
	first, last uint16
	proto       string
}

func parsePorts(s string) (portRange, error) {
	ports, proto, ok := strings.Cut(s, "/")
	if !ok || proto == "" {
		proto = "tcp"
	}
	from, to, isRange := strings.Cut(ports, "-")
	if !isRange {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return portRange{}, errors.New("invalid port")
	}
	last, err := strconv.ParseUint(to, 10, 16)
	if err != nil || last < first {
		return portRange{}, errors.New("invalid range of ports")
	}
	return portRange{uint16(first), uint16(last), strings.ToLower(proto)}, nil
}

// hasPort says whether a container exposes, or also publishes, a port of the range.
func hasPort(c container.Summary, v string, published bool) bool {
	r, err := parsePorts(v)
	if err != nil {
		return false
	}
	for _, p := range c.Ports {
		n := p.PrivatePort
		if published {
			n = p.PublicPort
		}
		if n != 0 && p.Type == r.proto && r.first <= n && n <= r.last {
			return true
		}
	}
	return false
}
