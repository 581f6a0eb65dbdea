package apiv1

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Filters narrow a listing: within a key any value may match, between keys all
// must.
type Filters map[string][]string

// maxFilters bounds the values one request may name.
const maxFilters = 4096

// ParseFilters reads the filters= query parameter in both of Docker's encodings,
// {"k":{"v":true}} and {"k":["v"]}. Empty is no filter.
func ParseFilters(s string) (Filters, error) {
	if s == "" {
		return nil, nil
	}
	f := Filters{}
	var lists map[string][]string
	if json.Unmarshal([]byte(s), &lists) == nil {
		f = lists
	} else {
		var sets map[string]map[string]bool
		if json.Unmarshal([]byte(s), &sets) != nil {
			return nil, InvalidArgument("invalid filter")
		}
		for k, set := range sets {
			f[k] = slices.Sorted(maps.Keys(set))
		}
	}
	n := 0
	for _, vs := range f {
		n += len(vs)
	}
	if n > maxFilters {
		return nil, InvalidArgument("invalid filter: more than %d values", maxFilters)
	}
	return f, nil
}

// MarshalJSON writes the encoding that every Docker since 1.22 reads.
func (f Filters) MarshalJSON() ([]byte, error) {
	sets := make(map[string]map[string]bool, len(f))
	for k, vs := range f {
		sets[k] = make(map[string]bool, len(vs))
		for _, v := range vs {
			sets[k][v] = true
		}
	}
	return json.Marshal(sets)
}

// Only fails with Docker's text for a key that is not among those allowed.
func (f Filters) Only(allowed ...string) error {
	for _, k := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(allowed, k) {
			return InvalidArgument("invalid filter '%s'", k)
		}
	}
	return nil
}

// Has says whether the key narrows at all.
func (f Filters) Has(key string) bool { return len(f[key]) > 0 }

// Match says whether the key is absent or one of its values equals v.
func (f Filters) Match(key, v string) bool {
	return !f.Has(key) || slices.Contains(f[key], v)
}

// MatchFunc says whether the key is absent or ok holds for one of its values.
func (f Filters) MatchFunc(key string, ok func(string) bool) bool {
	return !f.Has(key) || slices.ContainsFunc(f[key], ok)
}

// MatchLabels says whether every k or k=v under the key is among the labels;
// labels, alone among filters, must all hold.
func (f Filters) MatchLabels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		k, v, exact := strings.Cut(want, "=")
		got, ok := labels[k]
		if !ok || exact && got != v {
			return false
		}
	}
	return true
}
