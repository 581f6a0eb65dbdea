package discovery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Query chooses endpoints. Everything set must hold.
type Query struct {
	// Name is a container's name, its full ID or the first 12 or more digits of
	// it. Shorter prefixes don't count: a name that doesn't exist yet must not
	// find a container that happens to begin alike.
	Name string
	// Tags are KEY=VALUE, or KEY for any value.
	Tags []string
	// Port 0 means every port a container declares. A port that is set is answered
	// also where the container doesn't declare it.
	Port  uint16
	Proto string // empty means tcp if Port is set, else every one
}

// ParsePort reads "80", "80/tcp" or, for every port, "".
func ParsePort(s string) (port uint16, proto string, err error) {
	if s == "" {
		return 0, "", nil
	}
	number, proto, slash := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return 0, "", api.InvalidArgument("invalid port %q: want a number from 1 to 65535", s)
	}
	switch proto {
	case "tcp", "udp", "sctp":
	default:
		if slash {
			return 0, "", api.InvalidArgument("invalid port %q: want tcp, udp or sctp after the slash", s)
		}
	}
	return uint16(n), proto, nil
}

// String says what is looked for: "80/tcp of db with tier=gold".
func (q Query) String() string {
	var b strings.Builder
	switch {
	case q.Port != 0:
		fmt.Fprintf(&b, "%d/%s", q.Port, proto(q.Proto))
	case q.Proto != "":
		b.WriteString("any " + q.Proto + " port")
	default:
		b.WriteString("any port")
	}
	if q.Name != "" {
		b.WriteString(" of " + q.Name)
	}
	if len(q.Tags) > 0 {
		b.WriteString(" with " + strings.Join(q.Tags, ", "))
	}
	return b.String()
}

// Find lists the endpoints there are now, by container name, port and protocol.
func Find(v catalog.View, q Query) []Endpoint {
	var es []Endpoint
	for c := range q.candidates(v) {
		if Ready(c) {
			es = append(es, endpoints(v, c, &q)...)
		}
	}
	sortEndpoints(es)
	return es
}

func sortEndpoints(es []Endpoint) {
	slices.SortFunc(es, func(a, b Endpoint) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID),
			cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto))
	})
}

// candidates yields the containers that the query's name and tags mean, in any state.
func (q *Query) candidates(v catalog.View) func(func(*catalog.Container) bool) {
	return func(yield func(*catalog.Container) bool) {
		if q.Name == "" {
			cs := v.Containers()
			for i := range cs {
				if q.tagged(&cs[i]) && !yield(&cs[i]) {
					return
				}
			}
			return
		}
		c, err := v.Container(q.Name)
		if err == nil && q.named(&c) && q.tagged(&c) {
			yield(&c)
		}
	}
}

func (q *Query) named(c *catalog.Container) bool {
	return c.Name == q.Name || len(q.Name) >= 12 && strings.HasPrefix(c.ID, q.Name)
}

func (q *Query) tagged(c *catalog.Container) bool {
	for _, want := range q.Tags {
		k, v, exact := strings.Cut(want, "=")
		got, ok := c.Tags[k]
		if !ok || exact && got != v {
			return false
		}
	}
	return true
}

// Resolve answers the endpoints that the query means and blocks until there is
// at least one. When ctx ends first, the error wraps ctx's and says what keeps
// the query from being answered.
func Resolve(ctx context.Context, r catalog.Reader, q Query) ([]Endpoint, error) {
	for {
		v := r.View()
		if es := Find(v, q); len(es) > 0 {
			return es, nil
		}
		if err := r.Wait(ctx, v.Index()); err != nil {
			return nil, fmt.Errorf("%s: %w", missing(r.View(), q), err)
		}
	}
}

// missing says why Find finds nothing.
func missing(v catalog.View, q Query) string {
	text := "nothing serves " + q.String()
	var first *catalog.Container
	n := 0
	for c := range q.candidates(v) {
		if first == nil {
			first = c
		}
		n++
	}
	switch {
	case n == 0 && q.Name != "":
		return text + ": no such container"
	case n == 0:
		return text + ": no container matches"
	case n > 1:
		return fmt.Sprintf("%s: none of %d containers is ready", text, n)
	}
	return text + ": container " + first.Name + " " + unready(first)
}

func unready(c *catalog.Container) string {
	switch {
	case c.Lost:
		return "is on a node that can't be reached"
	case c.State == "":
		return "is being created"
	case c.State != container.StateRunning:
		return "is " + string(c.State)
	case !c.Healthy:
		return "isn't healthy"
	case len(c.Addresses) == 0:
		return "has no address"
	}
	return "declares no such port"
}
