package catalog_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// held has a node report images: digest, ID and names of each.
func held(t *testing.T, s *catalog.State, seq uint64, node string, images ...catalog.Image) {
	t.Helper()
	propose(t, s, catalog.PutImages{NodeID: "id-" + node, Seq: seq, Images: images})
}

func img(digest, id string, names ...string) catalog.Image {
	return catalog.Image{Digest: digest, Summary: image.Summary{ID: id, RepoTags: names}}
}

// may are the names of the nodes that may hold an image.
func may(s *catalog.State, digest, id string) (names []string) {
	v := s.View()
	for _, n := range v.Nodes() {
		if _, ok := catalog.MayHold(v, n, digest, id); ok {
			names = append(names, n.Name)
		}
	}
	return names
}

func private(digest string, nodes ...string) catalog.SetPrivate {
	p := catalog.Private{Digest: digest}
	for _, n := range nodes {
		p.Nodes = append(p.Nodes, "id-"+n)
	}
	return catalog.SetPrivate{Private: p}
}

func TestPrivateImages(t *testing.T) {
	s := withNodes(t, "a", "b", "c")
	require.Equal(t, []string{"a", "b", "c"}, may(s, "d1", "i1"))
	mark := private("d1", "a")
	mark.Private.ID, mark.Private.Tags = "i1", []string{"zone=eu", "zone=eu"}
	propose(t, s, mark)
	require.Equal(t, []string{"a"}, may(s, "d1", ""))
	require.Equal(t, []string{"a"}, may(s, "d2", "i1"), "the same image under another manifest")
	require.Equal(t, []string{"a", "b", "c"}, may(s, "d2", "i2"))
	require.Equal(t, []string{"zone=eu"}, s.View().Private()[0].Tags)

	propose(t, s, catalog.NodeTags{ID: "id-c", Set: map[string]string{"zone": "eu"}})
	require.Equal(t, []string{"a", "c"}, may(s, "d1", "i1"))
	propose(t, s, catalog.NodeTags{ID: "id-c", Set: map[string]string{"zone": "eu2"}})
	require.Equal(t, []string{"a"}, may(s, "d1", "i1"))
	propose(t, s, private("d1", "b"))
	require.Equal(t, []string{"b"}, may(s, "d1", "i1"), "the last word counts")
	propose(t, s, private("d1"))
	require.Empty(t, may(s, "d1", "i1"), "nobody is named, so nobody may")
	propose(t, s, catalog.DropPrivate{Digest: "d1"})
	require.Equal(t, []string{"a", "b", "c"}, may(s, "d1", "i1"))

	for bad, class := range map[*catalog.SetPrivate]error{
		{}: errdefs.ErrInvalidArgument,
		{Private: catalog.Private{Digest: "d", Nodes: []string{"id-x"}}}: errdefs.ErrNotFound,
		{Private: catalog.Private{Digest: "d", Tags: []string{"zone"}}}:  errdefs.ErrInvalidArgument,
		{Private: catalog.Private{Digest: "d", Tags: []string{"=eu"}}}:   errdefs.ErrInvalidArgument,
	} {
		_, err := s.Propose(t.Context(), *bad)
		require.ErrorIs(t, err, class)
	}
	require.Empty(t, s.View().Private())
}

// TestRemovedNodeLosesItsRights: also when it comes back.
func TestRemovedNodeLosesItsRights(t *testing.T) {
	s := withNodes(t, "a", "b")
	propose(t, s, private("d1", "a", "b"))
	propose(t, s, catalog.RemoveNode{ID: "id-b"})
	propose(t, s, catalog.PutNode{Node: catalog.Node{ID: "id-b", Name: "b"}})
	require.Equal(t, []string{"a"}, may(s, "d1", ""))
}

// TestPrivacyGoesWithTheName: the next version of a private image is private before
// anybody can ask for it.
func TestPrivacyGoesWithTheName(t *testing.T) {
	start := func(t *testing.T) *catalog.State {
		s := withNodes(t, "a", "b")
		held(t, s, 1, "a", img("d1", "i1", "app:1"), img("pub", "ip", "alpine:3"))
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d1"}})
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "alpine:3", Digest: "pub"}})
		mark := private("d1", "a")
		mark.Private.Names = []string{"app:1"}
		propose(t, s, mark)
		return s
	}
	everybody := []string{"a", "b"}
	t.Run("a new version", func(t *testing.T) {
		s := start(t)
		held(t, s, 2, "a", img("d2", "i2", "app:1"))
		require.Equal(t, []string{"a"}, may(s, "d2", "i2"), "as soon as a node reports it")
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d2"}})
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d3"}})
		require.Equal(t, []string{"a"}, may(s, "d3", ""), "and the one after it")
		require.Equal(t, []string{"a"}, may(s, "d1", "i1"), "the old one stays so")
		propose(t, s, catalog.DropPrivate{Digest: "d3"})
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d4"}})
		require.Equal(t, everybody, may(s, "d4", ""), "made public, the name passes nothing on")
	})
	t.Run("removed and loaded anew", func(t *testing.T) {
		s := start(t)
		propose(t, s, catalog.DropRef{Name: "app:1"})
		propose(t, s, catalog.PutImages{NodeID: "id-a", Seq: 2, Gone: []string{"d1"}})
		held(t, s, 3, "b", img("d2", "i2", "app:1"))
		require.Equal(t, []string{"a"}, may(s, "d2", "i2"))
	})
	t.Run("another name of the image", func(t *testing.T) {
		s := start(t)
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "copy:1", Digest: "d1"}})
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "copy:1", Digest: "d2"}})
		require.Equal(t, []string{"a"}, may(s, "d2", ""))
	})
	t.Run("a public image gets the name", func(t *testing.T) {
		s := start(t)
		held(t, s, 2, "a", img("pub", "ip", "alpine:3", "app:1"))
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "pub"}})
		require.Equal(t, everybody, may(s, "pub", "ip"))
		require.Equal(t, []string{"a"}, may(s, "d1", "i1"))
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d2"}})
		require.Equal(t, []string{"a"}, may(s, "d2", ""), "the name stays a private one")
	})
	t.Run("records nobody needs go", func(t *testing.T) {
		s := start(t)
		propose(t, s, catalog.SetRef{Ref: catalog.Ref{Name: "app:1", Digest: "d2"}})
		propose(t, s, catalog.PutImages{NodeID: "id-a", Seq: 2, Gone: []string{"d1"}})
		require.Len(t, s.View().Private(), 2)
		propose(t, s, private("pub", "a"))
		var left []string
		for _, p := range s.View().Private() {
			left = append(left, p.Digest)
		}
		require.Equal(t, []string{"d2", "pub"}, left)
	})
}
