package scheduler

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestParseEnv(t *testing.T) {
	rules, rest, err := ParseEnv([]string{
		"PATH=/bin", "constraint:node==node2", "A=constraint:x==y", "affinity:container!=~db*", "constraint=1", "URL=http://a==b",
	})
	require.NoError(t, err)
	require.Equal(t, []string{"PATH=/bin", "A=constraint:x==y", "constraint=1", "URL=http://a==b"}, rest)
	require.Len(t, rules, 2)
	require.Equal(t, "constraint:node==node2", rules[0].String())
	require.False(t, rules[0].Soft)
	require.Equal(t, Affinity, rules[1].Kind)
	require.Equal(t, "container", rules[1].Key)
	require.True(t, rules[1].Soft)
	require.True(t, rules[1].Not)

	for _, bad := range []string{
		"constraint:", "constraint:node", "constraint:node=node2", "constraint:==x", "constraint:node==",
		"constraint:node==~", "constraint:a b==c", "constraint:node==/(/", "constraint:node==a\nb", "affinity:image!=\x00",
		"constraint:node==" + strings.Repeat("x", 2000),
	} {
		_, _, err := ParseEnv([]string{bad})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", bad)
	}
}

func TestParseLabels(t *testing.T) {
	for in, want := range map[string][]string{
		"":                                nil,
		"zone==b":                         {"zone==b"},
		" zone==b , disk!=ssd;rack==~r* ": {"zone==b", "disk!=ssd", "rack==~r*"},
		"node==/n{1,2}/,zone==b":          {"node==/n{1,2}/", "zone==b"},
		"node==/a,b;c/ ; zone==b":         {"node==/a,b;c/", "zone==b"},
		"image==library/redis,zone==b":    {"image==library/redis", "zone==b"},
		"a==/x,b==y":                      {"a==/x", "b==y"},
		",;,":                             nil,
	} {
		got, err := ParseLabels(map[string]string{ConstraintLabel: in, "other": "x"})
		require.NoError(t, err, in)
		var exprs []string
		for _, r := range got {
			exprs = append(exprs, r.Expr)
		}
		require.Equal(t, want, exprs, in)
	}
	got, err := ParseLabels(map[string]string{AffinityLabel: "container==db"})
	require.NoError(t, err)
	require.Equal(t, Affinity, got[0].Kind)
	_, err = ParseLabels(map[string]string{ConstraintLabel: "zone==b,oops"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestRuleHolds(t *testing.T) {
	n := &NodeInfo{
		ID: "12D3KooW", Name: "node2", OS: "linux", Arch: "arm64",
		Tags:   map[string]string{"zone": "eu-west", "com.example.tier": "Gold"},
		Images: map[string]bool{"sha256:abc": true, "localhost:5000/redis:7": true, "busybox:latest": true},
		Containers: []ContainerInfo{
			{ID: "0123456789abcdef0123", Name: "web-1", Tags: map[string]string{"app": "web"}},
		},
	}
	for expr, want := range map[string]bool{
		"constraint:node==node2": true, "constraint:node==12D3KooW": true, "constraint:node==node": false,
		"constraint:node==node?": true, "constraint:node==n*": true, "constraint:node==*3": false,
		"constraint:node!=node2": false, "constraint:node.hostname==node2": true, "constraint:node.id==12D3KooW": true,
		"constraint:node.platform.os==linux": true, "constraint:node.platform.arch!=arm64": false,
		"constraint:node.labels.zone==eu-west": true, "constraint:zone==/^eu/": true, "constraint:zone==/west/": true,
		"constraint:zone==/^west/": false, "constraint:zone!=/(?i)EU/": false, "constraint:zone==eu.west": false,
		"constraint:com.example.tier==Gold": true, "constraint:com.example.tier==gold": false,
		"constraint:missing==x": false, "constraint:missing!=x": true, "constraint: zone == eu-west": true,
		"affinity:container==web-1": true, "affinity:container==0123456789ab": true, "affinity:container==0123": false,
		"affinity:container==/^web/": true, "affinity:container!=web-1": false, "affinity:container!=db": true,
		"affinity:image==busybox": true, "affinity:image==busybox:latest": true, "affinity:image==localhost:5000/redis": true,
		"affinity:image==localhost": false, "affinity:image==sha256:abc": true, "affinity:image!=nginx": true,
		"affinity:image==*redis*": true, "affinity:app==web": true, "affinity:app!=web": false, "affinity:app==db": false,
	} {
		rules, _, err := ParseEnv([]string{expr})
		require.NoError(t, err, expr)
		require.Equal(t, want, rules[0].holds(n), expr)
	}
}

// Whatever is accepted reads back as itself and can be asked about any node.
func FuzzParseRules(f *testing.F) {
	for _, s := range []string{
		"constraint:node==node2", "constraint:zone!=~b", "affinity:container==/^db[0-9]{1,3}$/",
		"zone==b,disk==ssd", "node==/a,b/;x!=y", "a==/", "==", "a!=b==c", "constraint:x==*?*",
	} {
		f.Add(s)
	}
	n := &NodeInfo{Name: "node2", Tags: map[string]string{"zone": "b"}, Containers: []ContainerInfo{{Name: "db"}}}
	f.Fuzz(func(t *testing.T, s string) {
		rules, rest, err := ParseEnv([]string{s})
		if err == nil && len(rules)+len(rest) != 1 {
			t.Fatalf("%q is neither rule nor rest", s)
		}
		more, err := ParseLabels(map[string]string{ConstraintLabel: s, AffinityLabel: s})
		if err != nil && !strings.Contains(err.Error(), "invalid ") {
			t.Fatalf("%q: unexpected error %v", s, err)
		}
		for _, r := range append(rules, more...) {
			again, err := ParseRule(r.Kind, r.Expr)
			if err != nil || again.Key != r.Key || again.Not != r.Not || again.Soft != r.Soft {
				t.Fatalf("%q does not read back: %v", r.Expr, err)
			}
			if again.holds(n) != r.holds(n) {
				t.Fatalf("%q holds differently when read back", r.Expr)
			}
			if r.why(n) == "" {
				t.Fatalf("%q gives no reason", r.Expr)
			}
		}
	})
}
