package image_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

func TestImagesAreFoundByNameIDAndPrefix(t *testing.T) {
	s := open(t)
	i := small("busybox:latest", "x")
	id := idOf(t, i)
	load(t, s, archiveOf(t, i))
	img := get(t, s, "busybox")
	for _, ref := range []string{
		"busybox:latest", "docker.io/library/busybox", "library/busybox:latest", "busybox@" + img.Target.Digest.String(),
		id.String(), id.Encoded(), id.Encoded()[:4], "sha256:" + id.Encoded()[:12], img.Manifest.Digest.String(),
	} {
		got, err := s.Get(context.Background(), ref)
		require.NoError(t, err, ref)
		require.Equal(t, id, got.ID, ref)
	}
	for ref, want := range map[string]string{
		"nope":                                "No such image: nope:latest",
		"nope:1":                              "No such image: nope:1",
		"busybox:2":                           "No such image: busybox:2",
		"quay.io/a/b":                         "No such image: quay.io/a/b:latest",
		strings.Repeat("0", 64):               "No such image: sha256:" + strings.Repeat("0", 64),
		"other@" + img.Target.Digest.String(): "No such image: other@" + img.Target.Digest.String(),
	} {
		_, err := s.Get(context.Background(), ref)
		require.EqualError(t, err, want)
		require.True(t, errdefs.IsNotFound(err))
	}
	_, err := s.Get(context.Background(), "Upper")
	require.True(t, errdefs.IsInvalidArgument(err))
	require.ErrorContains(t, err, "must be lowercase")
}

func TestAmbiguousPrefixIsRefused(t *testing.T) {
	s := open(t)
	byFirst := map[string]int{}
	for n := 0; ; n++ { // 17 images have two IDs with one first digit at the latest
		i := small("", fmt.Sprint(n))
		load(t, s, archiveOf(t, i))
		first := idOf(t, i).Encoded()[:1]
		if byFirst[first]++; byFirst[first] == 2 {
			_, err := s.Get(context.Background(), first)
			require.ErrorContains(t, err, "ambiguous reference")
			require.True(t, errdefs.IsInvalidArgument(err))
			return
		}
	}
}

func TestMovedTagLeavesTheOldImageNameless(t *testing.T) {
	s := open(t)
	one, two := small("app:1", "one"), small("app:1", "two")
	load(t, s, archiveOf(t, one))
	out := load(t, s, archiveOf(t, two))
	require.Equal(t, fmt.Sprintf("The image app:1 already exists, renaming the old one with ID %s to empty string\nLoaded image: app:1\n", idOf(t, one)), out)
	require.Empty(t, get(t, s, idOf(t, one).String()).Tags)
	require.Equal(t, idOf(t, two), get(t, s, "app:1").ID)
}

func TestTag(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	load(t, s, archiveOf(t, small("app:1", "one")))
	var told []string
	s.OnChange(func(action, id, name string) { told = append(told, action+" "+name) })
	require.NoError(t, s.Tag(ctx, "app:1", "quay.io/x/app"))
	require.NoError(t, s.Tag(ctx, get(t, s, "app:1").ID.Encoded()[:12], "app:2"))
	require.Equal(t, []string{"app:1", "app:2", "quay.io/x/app:latest"}, get(t, s, "app:2").Tags)
	require.Equal(t, []string{"tag quay.io/x/app:latest", "tag app:2"}, told)
	for target, want := range map[string]string{
		"a@" + digest.FromString("").String(): "refusing to create a tag with a digest reference",
		"sha256:x":                            "refusing to create an ambiguous tag using digest algorithm as name",
		"A":                                   "must be lowercase",
	} {
		require.ErrorContains(t, s.Tag(ctx, "app:1", target), want)
	}
	require.EqualError(t, s.Tag(ctx, "none", "x"), "No such image: none:latest")
}

func TestRemove(t *testing.T) {
	ctx := context.Background()
	app := small("app:1", "base", "top")
	id := idOf(t, app)
	short := id.Encoded()[:12]
	chains := func(s *image.Store) []imagetypes.DeleteResponse {
		d := get(t, s, id.String()).DiffIDs
		return []imagetypes.DeleteResponse{
			{Deleted: digest.FromString(d[0].String() + " " + d[1].String()).String()}, {Deleted: d[0].String()},
		}
	}
	used := func(digest.Digest) []string { return []string{"0123456789ab"} }
	for name, c := range map[string]struct {
		tags     []string
		ref      string
		force    bool
		inUse    func(digest.Digest) []string
		untagged []string
		deleted  bool
		err      string
	}{
		"last tag":                   {ref: "app:1", untagged: []string{"app:1"}, deleted: true},
		"one of two tags":            {tags: []string{"app:2"}, ref: "app:1", untagged: []string{"app:1"}},
		"by ID":                      {ref: id.Encoded(), untagged: []string{"app:1"}, deleted: true},
		"by ID, two repositories":    {tags: []string{"b:1"}, ref: short, err: "conflict: unable to delete " + short + " (must be forced) - image is referenced in multiple repositories"},
		"by ID, two tags":            {tags: []string{"app:2"}, ref: short, err: "conflict: unable to delete " + short + " (must be forced) - image is referenced in multiple repositories"},
		"by ID, two tags, forced":    {tags: []string{"app:2"}, ref: short, force: true, untagged: []string{"app:1", "app:2"}, deleted: true},
		"in use":                     {ref: "app:1", inUse: used, err: `conflict: unable to remove repository reference "app:1" (must force) - container 0123456789ab is using its referenced image ` + short},
		"in use, with a further tag": {tags: []string{"b:1"}, ref: "app:1", inUse: used, untagged: []string{"app:1"}},
		"in use, forced":             {ref: "app:1", force: true, inUse: used, untagged: []string{"app:1"}, deleted: true},
		"in use, by ID":              {ref: short, inUse: used, err: "conflict: unable to delete " + short + " (must be forced) - image is being used by stopped container 0123456789ab"},
		"not there":                  {ref: "app:9", err: "No such image: app:9"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			load(t, s, archiveOf(t, app))
			for _, tag := range c.tags {
				require.NoError(t, s.Tag(ctx, "app:1", tag))
			}
			layers := chains(s)
			before := get(t, s, id.String())
			got, err := s.Remove(ctx, c.ref, api.ImageRemoveOptions{Force: c.force}, c.inUse)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				require.Equal(t, before, get(t, s, id.String()))
				return
			}
			require.NoError(t, err)
			want := []imagetypes.DeleteResponse{}
			for _, u := range c.untagged {
				want = append(want, imagetypes.DeleteResponse{Untagged: u})
			}
			if c.deleted {
				want = append(append(want, imagetypes.DeleteResponse{Deleted: id.String()}), layers...)
			}
			require.Equal(t, want, got)
			_, err = s.Get(ctx, id.String())
			require.Equal(t, c.deleted, errdefs.IsNotFound(err))
		})
	}
}

func TestRunningContainersImageIsKeptEvenFromForce(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	app := small("app:1", "x")
	load(t, s, archiveOf(t, app))
	mount(t, s, "0123456789abcdef", idOf(t, app))
	_, err := s.Remove(ctx, idOf(t, app).String(), api.ImageRemoveOptions{Force: true}, func(digest.Digest) []string { return []string{"0123456789ab"} })
	require.EqualError(t, err, "conflict: unable to delete "+idOf(t, app).Encoded()[:12]+" (cannot be forced) - image is being used by running container 0123456789ab")
	require.True(t, errdefs.IsConflict(err))
}

func TestRemovalFreesWhatNoOtherImageNeeds(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	needsRoot(t)
	s := reopen(t, root)
	empty := [3]int{len(onDisk(t, root, "blobs")), len(onDisk(t, root, "layers")), len(onDisk(t, root, "records"))}
	load(t, s, archiveOf(t, small("a:1", "shared", "a")))
	one := [3]int{len(onDisk(t, root, "blobs")), len(onDisk(t, root, "layers")), len(onDisk(t, root, "records"))}
	load(t, s, archiveOf(t, small("b:1", "shared", "b")))
	got, err := s.Remove(ctx, "b:1", api.ImageRemoveOptions{}, nil)
	require.NoError(t, err)
	require.Len(t, got, 3, "the shared layer is not deleted: %v", got)
	require.Equal(t, one, [3]int{len(onDisk(t, root, "blobs")), len(onDisk(t, root, "layers")), len(onDisk(t, root, "records"))})
	mount(t, s, "c", get(t, s, "a:1").ID)
	_, err = s.Remove(ctx, "a:1", api.ImageRemoveOptions{Force: true}, nil)
	require.NoError(t, err)
	require.NotEqual(t, empty[1], len(onDisk(t, root, "layers")), "the container still needs them")
	require.NoError(t, s.Discard(ctx, "c"))
	require.Equal(t, empty, [3]int{len(onDisk(t, root, "blobs")), len(onDisk(t, root, "layers")), len(onDisk(t, root, "records"))})
	require.Empty(t, onDisk(t, root, "ingest"))
}

func TestHistory(t *testing.T) {
	s := open(t)
	app := small("app:1", "four", "sixsix")
	load(t, s, archiveOf(t, app))
	h, err := s.History(context.Background(), "app:1")
	require.NoError(t, err)
	require.NotEmpty(t, h)
	require.Equal(t, idOf(t, app).String(), h[0].ID)
	require.Equal(t, []string{"app:1"}, h[0].Tags)
	var sizes []int64
	for _, i := range h {
		if i.Size > 0 {
			sizes = append(sizes, i.Size)
		}
	}
	require.Equal(t, []int64{6, 4}, sizes)
	require.EqualValues(t, 10, get(t, s, "app:1").Size)
	list, err := s.List(context.Background())
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(list, func(i image.Image) bool { return i.ID == idOf(t, app) }))
}
