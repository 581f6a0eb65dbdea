package access_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// store is what a node holds: images with their blobs, the target first.
type store struct {
	images []held
	docs   map[digest.Digest][]digest.Digest // documents that no image here has
	needed []digest.Digest                   // by a fetch under way
}

type held struct {
	target, id digest.Digest
	blobs      []digest.Digest
}

func (s *store) EachImage(yield func(target, id digest.Digest, blobs []digest.Digest) bool) {
	for _, i := range s.images {
		if !yield(i.target, i.id, i.blobs) {
			return
		}
	}
}

func (s *store) Parts(d digest.Digest) ([]digest.Digest, bool) {
	for _, i := range s.images {
		if i.target == d {
			return i.blobs, true
		}
	}
	parts, ok := s.docs[d]
	return parts, ok
}

func (s *store) Needed(d digest.Digest) bool { return slices.Contains(s.needed, d) }

func image(target, id digest.Digest, layers ...digest.Digest) held {
	return held{target, id, append([]digest.Digest{target, id}, layers...)}
}

func cluster(t require.TestingT, nodes ...catalog.Node) *catalog.State {
	s := catalog.NewState()
	propose(t, s, catalog.SetSettings{Name: "c", Subnet: catalog.DefaultSubnet})
	for _, n := range nodes {
		propose(t, s, catalog.PutNode{Node: n})
	}
	return s
}

func propose(t require.TestingT, s *catalog.State, c catalog.Command) {
	_, err := s.Propose(context.Background(), c)
	require.NoError(t, err)
}

func node(name string, tags ...string) catalog.Node {
	n := catalog.Node{ID: "id-" + name, Name: name}
	for i := 0; i < len(tags); i += 2 {
		n.Tags = map[string]string{tags[i]: tags[i+1]}
	}
	return n
}

func TestBlob(t *testing.T) {
	s := cluster(t, node("n1"), node("n2", "zone", "eu"), node("n3"))
	blobs := &store{
		images: []held{image("app", "app-config", "base", "secret"), image("base-image", "base-config", "base"), image("app-zstd", "app-config", "zstd")},
		needed: []digest.Digest{"fetched"},
		docs:   map[digest.Digest][]digest.Digest{"coming": {"coming", "arriving", "base"}},
	}
	p := access.New(s.View, blobs)
	may := func(blob digest.Digest) (who []string) {
		for _, n := range []string{"n1", "n2", "n3", "stranger"} {
			err := p.Serve("id-"+n, blob)
			if err == nil {
				who = append(who, n)
				continue
			}
			require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
		}
		return who
	}
	members, eu := []string{"n1", "n2", "n3"}, []string{"n1", "n2"}
	require.Equal(t, members, may("secret"))
	require.Equal(t, members, may("of no image"))
	require.Error(t, p.Blob("n1", "secret"), "a name is no ID")

	propose(t, s, catalog.SetPrivate{Private: catalog.Private{Digest: "app", ID: "app-config", Names: []string{"app:1"}, Nodes: []string{"id-n1"}, Tags: []string{"zone=eu"}}})
	for _, blob := range []digest.Digest{"app", "app-config", "secret", "app-zstd", "zstd"} {
		require.Equal(t, eu, may(blob), blob)
		require.Error(t, p.Blob(access.Outside, blob), blob)
	}
	for _, blob := range []digest.Digest{"base", "base-image", "base-config", "fetched"} {
		require.Equal(t, members, may(blob), blob)
		require.NoError(t, p.Blob(access.Outside, blob), blob)
	}
	require.Empty(t, may("of no image"), "it might have been part of a private one")
	require.NoError(t, p.Blob("id-n3", "of no image"))
	require.ErrorContains(t, p.Blob("id-n3", "secret"), "image app:1, which is private to n1, nodes tagged zone=eu: n3 may not have it")
	require.EqualError(t, p.Image("id-n3", "app", ""), "image app:1 is private to n1, nodes tagged zone=eu: n3 may not have it")
	require.NoError(t, p.Image("id-n2", "app", ""))
	require.NoError(t, p.Image("id-n3", "base-image", ""))
	require.Error(t, p.Image("id-n3", "app-zstd", "app-config"))
	require.Error(t, p.Image(access.Outside, "app", ""))
	require.Error(t, p.Image("id-stranger", "base-image", ""))

	// An image that isn't here yet: its manifest has come, its layers are coming.
	propose(t, s, catalog.SetPrivate{Private: catalog.Private{Digest: "coming", Nodes: []string{"id-n2"}}})
	require.Equal(t, []string{"n2"}, may("arriving"))
	require.Equal(t, members, may("base"))
	// The base image turns private, too: whoever may have either may have the layer.
	propose(t, s, catalog.SetPrivate{Private: catalog.Private{Digest: "base-image", Nodes: []string{"id-n3"}}})
	require.Equal(t, members, may("base"))
	require.Equal(t, []string{"n3"}, may("base-config"))
	propose(t, s, catalog.RemoveNode{ID: "id-n3"})
	require.Equal(t, eu, may("base"))
	require.Empty(t, may("base-config"))
	propose(t, s, catalog.DropPrivate{Digest: "base-image"})
	require.Equal(t, eu, may("base-config"))
}

// TestDocumentsThatComeLater: what a private index leads to is found out when it is here.
func TestDocumentsThatComeLater(t *testing.T) {
	s := cluster(t, node("n1"), node("n2"))
	blobs := &store{docs: map[digest.Digest][]digest.Digest{}}
	p := access.New(s.View, blobs)
	propose(t, s, catalog.SetPrivate{Private: catalog.Private{Digest: "d", Nodes: []string{"id-n1"}}})
	require.NoError(t, p.Blob("id-n2", "layer"))
	blobs.docs["d"] = []digest.Digest{"d", "layer"}
	require.Error(t, p.Blob("id-n2", "layer"))
	blobs.docs = nil // a node may drop them; what they said stays true
	require.Error(t, p.Blob("id-n2", "layer"))
}

// TestRule: a blob is served if and only if the peer is a member, and it is in no private
// image, or in one that isn't private, or in one that the peer may hold.
func TestRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		few := func(prefix string) *rapid.Generator[string] {
			return rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(prefix, rapid.IntRange(0, 3).Draw(t, prefix)) })
		}
		members := rapid.SliceOfNDistinct(few("n"), 1, 4, rapid.ID).Draw(t, "members")
		var nodes []catalog.Node
		for _, m := range members {
			nodes = append(nodes, node(m, "zone", few("z").Draw(t, "zone")))
		}
		s := cluster(t, nodes...)
		blobs := &store{}
		for i := range rapid.IntRange(0, 4).Draw(t, "images") {
			layers := rapid.SliceOfN(few("l"), 0, 3).Draw(t, "layers")
			h := image(digest.Digest(fmt.Sprint("t", i)), digest.Digest(few("i").Draw(t, "id")))
			for _, l := range layers {
				h.blobs = append(h.blobs, digest.Digest(l))
			}
			blobs.images = append(blobs.images, h)
		}
		type record struct {
			target, id digest.Digest
			may        []string
		}
		var records []record
		for _, h := range blobs.images {
			if !rapid.Bool().Draw(t, "private") {
				continue
			}
			zone := few("z").Draw(t, "to zone")
			one := rapid.SampledFrom(members).Draw(t, "to node")
			propose(t, s, catalog.SetPrivate{Private: catalog.Private{Digest: h.target.String(), ID: h.id.String(), Names: []string{h.target.String()}, Nodes: []string{"id-" + one}, Tags: []string{"zone=" + zone}}})
			r := record{target: h.target, id: h.id, may: []string{one}}
			for j, m := range members {
				if nodes[j].Tags["zone"] == zone {
					r.may = append(r.may, m)
				}
			}
			records = append(records, r)
		}
		p := access.New(s.View, blobs)
		peer := few("n").Draw(t, "peer")
		blob := digest.Digest(rapid.OneOf(few("l"), few("t"), few("i")).Draw(t, "blob"))
		inPrivate, inPublic, entitled := false, false, false
		for _, h := range blobs.images {
			if !slices.Contains(h.blobs, blob) {
				continue
			}
			public := true
			for _, r := range records {
				if r.target == h.target || r.id == h.id {
					public = false
					entitled = entitled || slices.Contains(r.may, peer)
				}
			}
			inPublic, inPrivate = inPublic || public, inPrivate || !public
		}
		want := slices.Contains(members, peer) && (!inPrivate || inPublic || entitled)
		got := p.Blob("id-"+peer, blob)
		if want != (got == nil) {
			t.Fatalf("peer %s, blob %s: served should be %v, answer %v", peer, blob, want, got)
		}
	})
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := cluster(t, node("n1"))
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		done := make(chan error, 1)
		go func() { done <- access.Follow(ctx, s, func(context.Context) { calls++ }) }()
		for _, c := range []struct {
			command catalog.Command
			calls   int
		}{
			{catalog.SetRef{Ref: catalog.Ref{Name: "a:1", Digest: "d"}}, 0},
			{catalog.PutNode{Node: node("n2")}, 1},
			{catalog.NodeTags{ID: "id-n2", Set: map[string]string{"zone": "eu"}}, 2},
			{catalog.SetPrivate{Private: catalog.Private{Digest: "d", Names: []string{"a:1"}, Nodes: []string{"id-n1"}}}, 3},
			{catalog.SetPrivate{Private: catalog.Private{Digest: "d", Nodes: []string{"id-n1"}}}, 3},
			{catalog.SetPrivate{Private: catalog.Private{Digest: "d", Nodes: []string{"id-n2"}}}, 4},
			{catalog.RemoveNode{ID: "id-n2"}, 5},
			{catalog.DropPrivate{Digest: "d"}, 6},
		} {
			propose(t, s, c.command)
			synctest.Wait()
			require.Equal(t, c.calls, calls, "%T", c.command)
		}
		cancel()
		require.NoError(t, <-done)
	})
}
