package access

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Who says in words which nodes may hold a private image.
func Who(v catalog.View, p catalog.Private) string {
	var who []string
	for _, id := range p.Nodes {
		name := id
		if n, ok := v.Node(id); ok {
			name = n.Name
		}
		who = append(who, name)
	}
	slices.Sort(who)
	for _, t := range p.Tags {
		who = append(who, "nodes tagged "+t)
	}
	if len(who) == 0 {
		return "no node"
	}
	return strings.Join(who, ", ")
}

// Follow calls changed whenever the answers of policies may have changed: other nodes,
// other tags, other private images. It returns when ctx ends or the reader fails.
func Follow(ctx context.Context, r catalog.Reader, changed func(context.Context)) error {
	v := r.View()
	for {
		if err := r.Wait(ctx, v.Index()); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		now := r.View()
		if !same(v, now) {
			changed(ctx)
		}
		v = now
	}
}

// same says whether two views mean the same to a policy.
func same(a, b catalog.View) bool {
	return slices.EqualFunc(a.Nodes(), b.Nodes(), func(x, y catalog.Node) bool {
		return x.ID == y.ID && maps.Equal(x.Tags, y.Tags)
	}) && slices.EqualFunc(a.Private(), b.Private(), func(x, y catalog.Private) bool {
		return x.Of(y.Digest, "") && x.ID == y.ID && slices.Equal(x.Nodes, y.Nodes) && slices.Equal(x.Tags, y.Tags)
	})
}
