package scheduler

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-engine/shoal/api"
)

// Kind says what a rule looks at.
type Kind string

// The kinds of rules, as they are spelled before the colon.
const (
	// Constraint looks at the node. Its key is "node" (ID or name), "node.id",
	// "node.hostname", "node.platform.os", "node.platform.arch", or a tag of the
	// node, with or without "node.labels." in front.
	Constraint Kind = "constraint"
	// Affinity looks at what is on the node. Its key is "container" (ID, the first
	// 12 digits of it, or name), "image" (anything of NodeInfo.Images, or a name
	// without its tag), or a tag of a container there.
	Affinity Kind = "affinity"
)

// Rule is one constraint or affinity. Make it with ParseRule.
type Rule struct {
	Kind Kind
	Expr string // as written, without the kind: "zone!=b"
	Key  string
	Not  bool
	// Soft rules are preferred and never refuse.
	Soft bool

	exact   string         // what a value must equal, if pattern is nil
	pattern *regexp.Regexp // what it must match otherwise
}

// maxExpr bounds one rule in bytes.
const maxExpr = 1024

var ruleKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*$`)

// ParseRule reads KEY==VALUE or KEY!=VALUE, in which VALUE may begin with ~ (the
// rule is soft), and be a word, a glob in which * and ? stand for any characters
// and for any one, or a /regular expression/ of Go's syntax that may match
// anywhere unless it says otherwise. Matching minds case. Errors are
// InvalidArgument and quote the rule.
//
// == holds if one of the values that the key names matches, != if none does. A
// tag that is absent is the empty string.
func ParseRule(kind Kind, expr string) (Rule, error) {
	bad := func(what any) (Rule, error) {
		return Rule{}, api.InvalidArgument("invalid %s %q: %v", kind, expr, what)
	}
	if kind != Constraint && kind != Affinity {
		return bad("is neither constraint nor affinity")
	}
	if len(expr) > maxExpr {
		return Rule{}, api.InvalidArgument("invalid %s %q…: longer than %d bytes", kind, expr[:32], maxExpr)
	}
	at, not := operator(expr)
	if at < 0 {
		return bad("needs == or !=")
	}
	r := Rule{Kind: kind, Expr: expr, Key: strings.TrimSpace(expr[:at]), Not: not}
	value, soft := strings.CutPrefix(strings.TrimSpace(expr[at+2:]), "~")
	r.Soft = soft
	if !ruleKey.MatchString(r.Key) {
		return bad("the key is not a name")
	}
	if value == "" || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return bad("the value is empty or not plain text")
	}
	var err error
	if r.exact, r.pattern, err = matcher(value); err != nil {
		return bad(err)
	}
	return r, nil
}

// operator is where the first == or != begins, or -1.
func operator(expr string) (at int, not bool) {
	eq, ne := strings.Index(expr, "=="), strings.Index(expr, "!=")
	if ne >= 0 && (eq < 0 || ne < eq) {
		return ne, true
	}
	return eq, false
}

// matcher compiles a value; exactly one of the first two results is set.
func matcher(value string) (exact string, pattern *regexp.Regexp, err error) {
	if len(value) >= 2 && value[0] == '/' && value[len(value)-1] == '/' {
		pattern, err = regexp.Compile(value[1 : len(value)-1])
		return "", pattern, err
	}
	if !strings.ContainsAny(value, "*?") {
		return value, nil, nil
	}
	glob := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(value))
	pattern, err = regexp.Compile(`^` + glob + `$`)
	return "", pattern, err
}

// String is the rule as it is written in an environment.
func (r *Rule) String() string { return string(r.Kind) + ":" + r.Expr }

func (r *Rule) match(value string) bool {
	if r.pattern != nil {
		return r.pattern.MatchString(value)
	}
	return value == r.exact
}

// holds says whether the node meets the rule.
func (r *Rule) holds(n *NodeInfo) bool {
	if r.Kind == Constraint {
		return r.onNode(n) != r.Not
	}
	return r.onContents(n) != r.Not
}

func (r *Rule) onNode(n *NodeInfo) bool {
	switch r.Key {
	case "node":
		return r.match(n.Name) || r.match(n.ID)
	case "node.id":
		return r.match(n.ID)
	case "node.hostname":
		return r.match(n.Name)
	case "node.platform.os":
		return r.match(n.OS)
	case "node.platform.arch":
		return r.match(n.Arch)
	}
	return r.match(n.Tags[r.tag()])
}

func (r *Rule) tag() string { return strings.TrimPrefix(r.Key, "node.labels.") }

func (r *Rule) onContents(n *NodeInfo) bool {
	switch r.Key {
	case "container":
		return slices.ContainsFunc(n.Containers, func(c ContainerInfo) bool {
			return r.match(c.Name) || r.match(c.ID) || len(c.ID) > 12 && r.match(c.ID[:12])
		})
	case "image":
		return r.onImages(n.Images)
	}
	return slices.ContainsFunc(n.Containers, func(c ContainerInfo) bool {
		v, ok := c.Tags[r.Key]
		return ok && r.match(v)
	})
}

func (r *Rule) onImages(images map[string]bool) bool {
	if r.pattern == nil && (images[r.exact] || images[r.exact+":latest"]) {
		return true
	}
	for name, held := range images {
		if held && (r.match(name) || r.match(untagged(name))) {
			return true
		}
	}
	return false
}

// untagged is an image's name without its tag; the colon of a registry's port stays.
func untagged(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// why says how the node breaks the rule.
func (r *Rule) why(n *NodeInfo) string {
	text := string(r.Kind) + " " + r.Expr
	switch {
	case r.Kind == Affinity && r.Not:
		return text + " (is there)"
	case r.Kind == Affinity:
		return text + " (isn't there)"
	case strings.HasPrefix(r.Key, "node.platform."):
		return text + " (is " + join(n.OS, n.Arch) + ")"
	case r.Key == "node" || r.Key == "node.id" || r.Key == "node.hostname":
		return text
	}
	if v, ok := n.Tags[r.tag()]; ok {
		return fmt.Sprintf("%s (has %s=%s)", text, r.tag(), v)
	}
	return text + " (has no " + r.tag() + ")"
}
