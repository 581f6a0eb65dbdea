package listing

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

// predefined are the networks every engine has.
var predefined = []string{"bridge", "host", "none"}

// Networks is what "docker network ls" shows of all, ordered as given. all itself
// is left untouched.
func Networks(all []network.Inspect, f api.Filters) ([]network.Inspect, error) {
	if err := f.Only("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := boolFilter(f, "dangling")
	if err != nil {
		return nil, err
	}
	for _, v := range f["type"] {
		if v != "builtin" && v != "custom" {
			return nil, api.InvalidArgument("invalid filter: 'type'='%s'", v)
		}
	}
	found := []network.Inspect{}
	for _, n := range all {
		builtin := slices.Contains(predefined, n.Name)
		kind := "custom"
		if builtin {
			kind = "builtin"
		}
		used := len(n.Containers) > 0 || len(n.Services) > 0
		if f.MatchFunc("name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
			f.MatchFunc("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
			f.Match("driver", n.Driver) && f.Match("scope", n.Scope) && f.Match("type", kind) &&
			f.MatchLabels("label", n.Labels) &&
			(dangling == nil || *dangling == (!builtin && !used)) {
			found = append(found, n)
		}
	}
	return found, nil
}
