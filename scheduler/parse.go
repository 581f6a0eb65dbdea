package scheduler

import "strings"

// Labels that carry rules, several of them separated by commas or semicolons.
const (
	ConstraintLabel = "shoal.constraint"
	AffinityLabel   = "shoal.affinity"
)

// ParseEnv takes the rules out of a container's environment, where classic Swarm's
// users write them: "constraint:node==node2", "affinity:container!=db". rest is
// the environment without them, in its order. Errors are InvalidArgument.
func ParseEnv(env []string) (rules []Rule, rest []string, err error) {
	rest = make([]string, 0, len(env))
	for _, e := range env {
		kind, expr, found := strings.Cut(e, ":")
		if k := Kind(kind); !found || k != Constraint && k != Affinity {
			rest = append(rest, e)
			continue
		}
		r, err := ParseRule(Kind(kind), expr)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, r)
	}
	return rules, rest, nil
}

// ParseLabels reads the rules that a container's labels carry. Errors are
// InvalidArgument.
func ParseLabels(labels map[string]string) ([]Rule, error) {
	var rules []Rule
	for _, l := range []struct {
		kind Kind
		text string
	}{{Constraint, labels[ConstraintLabel]}, {Affinity, labels[AffinityLabel]}} {
		for _, expr := range split(l.text) {
			r, err := ParseRule(l.kind, expr)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// split cuts a list of rules at commas and semicolons, but not at those inside a
// /regular expression/. Empty parts are dropped.
func split(list string) []string {
	var parts []string
	for list != "" {
		end := ruleEnd(list)
		if p := strings.TrimSpace(list[:end]); p != "" {
			parts = append(parts, p)
		}
		list = list[min(end+1, len(list)):]
	}
	return parts
}

// ruleEnd is the length of the list's first rule.
func ruleEnd(list string) int {
	const separators = ",;"
	end := strings.IndexAny(list, separators)
	if end < 0 {
		return len(list)
	}
	op, _ := operator(list[:end])
	if op < 0 {
		return end
	}
	value := strings.TrimLeft(list[op+2:], " ~")
	if !strings.HasPrefix(value, "/") {
		return end
	}
	// The expression ends at the first slash that a separator or nothing follows.
	start := len(list) - len(value)
	for i := start + 1; i < len(list); i++ {
		if list[i] != '/' {
			continue
		}
		after := strings.TrimLeft(list[i+1:], " ")
		if after == "" || strings.ContainsRune(separators, rune(after[0])) {
			return len(list) - len(after)
		}
	}
	return end
}
