package apitest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/imagetar"
)

func imageTests() map[string]func(*suite) {
	return map[string]func(*suite){
		"LoadInspectRemove": testLoad, "Tag": testTag, "SaveAndLoad": testSave, "Import": testImport,
		"NoSuchImage": testNoSuchImage, "InUse": testInUse, "List": testListImages, "Garbage": testGarbage,
		"Prune": testPruneImages,
	}
}

// small loads a small image of its own, which is removed after the test.
func (s *suite) small() (ref string, id string) {
	s.Helper()
	ref = s.label + ":v1"
	b := Archive(s, ref, ocispec.ImageConfig{
		Cmd: []string{"/hello"}, Env: []string{"A=b"}, Labels: map[string]string{s.label: "image"},
	}, []imagetar.File{{Name: "hello", Body: []byte(s.label), Mode: 0o755}}, []imagetar.File{{Name: "etc/"}, {Name: "etc/x"}})
	said := s.load(b)
	require.Contains(s, said, "Loaded image: "+ref)
	i := s.image(ref)
	s.Cleanup(func() {
		_, err := s.Engine.RemoveImage(cleanup(s), i.ID, api.ImageRemoveOptions{Force: true})
		if err != nil && !errdefs.IsNotFound(err) {
			s.Errorf("remove image: %v", err)
		}
	})
	return ref, i.ID
}

func (s *suite) image(ref string) image.InspectResponse {
	s.Helper()
	i, err := s.Engine.InspectImage(s.ctx, ref, api.ImageInspectOptions{})
	require.NoError(s, err)
	return i
}

func testLoad(s *suite) {
	ref, id := s.small()
	i := s.image(ref)
	assert.Regexp(s, `^sha256:[0-9a-f]{64}$`, i.ID)
	assert.Equal(s, []string{ref}, i.RepoTags)
	assert.Equal(s, "linux", i.Os)
	assert.Positive(s, i.Size)
	assert.Len(s, i.RootFS.Layers, 2)
	require.NotNil(s, i.Config)
	assert.Equal(s, []string{"/hello"}, i.Config.Cmd)
	assert.Equal(s, []string{"A=b"}, i.Config.Env)
	bare := strings.TrimPrefix(id, "sha256:")
	for _, r := range []string{id, bare, bare[:12], "docker.io/library/" + ref} {
		assert.Equal(s, id, s.image(r).ID, r)
	}
	history, err := s.Engine.ImageHistory(s.ctx, ref, api.Platform{})
	require.NoError(s, err)
	require.Len(s, history, 2)
	assert.Contains(s, history[0].Tags, ref)

	done, err := s.Engine.RemoveImage(s.ctx, ref, api.ImageRemoveOptions{})
	require.NoError(s, err)
	assert.Contains(s, done, image.DeleteResponse{Untagged: ref})
	assert.True(s, slices.ContainsFunc(done, func(d image.DeleteResponse) bool { return d.Deleted == id }), "%v", done)
	_, err = s.Engine.InspectImage(s.ctx, id, api.ImageInspectOptions{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
}

func testTag(s *suite) {
	ref, id := s.small()
	second := "registry.example:5000/deep/" + s.label + ":v2"
	require.NoError(s, s.Engine.TagImage(s.ctx, ref, second))
	assert.ElementsMatch(s, []string{ref, second}, s.image(id).RepoTags)
	_, err := s.Engine.RemoveImage(s.ctx, id, api.ImageRemoveOptions{})
	assert.True(s, errdefs.IsConflict(err), "two repositories: %v", err)
	done, err := s.Engine.RemoveImage(s.ctx, second, api.ImageRemoveOptions{})
	require.NoError(s, err)
	assert.Equal(s, []image.DeleteResponse{{Untagged: second}}, done)
	assert.Equal(s, []string{ref}, s.image(id).RepoTags)
	require.NoError(s, s.Engine.TagImage(s.ctx, id, s.label), "by ID, to latest")
	assert.Equal(s, id, s.image(s.label+":latest").ID)
	assert.True(s, errdefs.IsInvalidArgument(s.Engine.TagImage(s.ctx, ref, "Not A Reference")))
}

func testSave(s *suite) {
	ref, id := s.small()
	r, err := s.Engine.SaveImages(s.ctx, []string{ref}, api.Platform{})
	require.NoError(s, err)
	archive, err := io.ReadAll(r)
	require.NoError(s, err)
	require.NoError(s, r.Close())

	var manifest []struct{ RepoTags, Layers []string }
	for t := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(s, err)
		if h.Name == "manifest.json" {
			require.NoError(s, json.NewDecoder(t).Decode(&manifest))
		}
	}
	require.Len(s, manifest, 1)
	assert.Equal(s, []string{ref}, manifest[0].RepoTags)
	assert.Len(s, manifest[0].Layers, 2)

	_, err = s.Engine.RemoveImage(s.ctx, ref, api.ImageRemoveOptions{})
	require.NoError(s, err)
	s.load(archive)
	assert.Equal(s, id, s.image(ref).ID, "what was saved is what is loaded")
	_, err = s.Engine.SaveImages(s.ctx, []string{"no-such-" + s.label}, api.Platform{})
	assert.True(s, errdefs.IsNotFound(err), "%v", err)
}

func testImport(s *suite) {
	root, err := imagetar.Layer(time.Unix(0, 0), imagetar.File{Name: "hello", Body: []byte(s.label)})
	require.NoError(s, err)
	ref := s.label + ":imported"
	progress, err := s.Engine.ImportImage(s.ctx, bytes.NewReader(root), api.ImportOptions{
		Ref: ref, Message: "by hand", Changes: []string{`CMD ["/hello"]`, "ENV A=b"},
	})
	require.NoError(s, err)
	said := s.drain(progress)
	i := s.image(ref)
	s.Cleanup(func() { _, _ = s.Engine.RemoveImage(cleanup(s), ref, api.ImageRemoveOptions{Force: true}) })
	assert.Contains(s, said, i.ID)
	require.NotNil(s, i.Config)
	assert.Equal(s, []string{"/hello"}, i.Config.Cmd)
	assert.Equal(s, []string{"A=b"}, i.Config.Env)
	assert.Len(s, i.RootFS.Layers, 1)
}

func testNoSuchImage(s *suite) {
	ref := "no-such-" + s.label
	for name, err := range map[string]error{
		"inspect": second(s.Engine.InspectImage(s.ctx, ref, api.ImageInspectOptions{})),
		"history": second(s.Engine.ImageHistory(s.ctx, ref, api.Platform{})),
		"tag":     s.Engine.TagImage(s.ctx, ref, s.label+":x"),
		"push":    second(s.Engine.PushImage(s.ctx, api.PushOptions{Ref: ref + ":latest"})),
		"remove":  second(s.Engine.RemoveImage(s.ctx, ref, api.ImageRemoveOptions{})),
	} {
		assert.True(s, errdefs.IsNotFound(err), "%s: %v", name, err)
		if name == "push" {
			assert.ErrorContains(s, err, "An image does not exist locally with the tag: "+ref, name)
			continue
		}
		assert.ErrorContains(s, err, "No such image: "+ref+":latest", name)
	}
}

func testInUse(s *suite) {
	ref, id := s.small()
	o := s.options()
	o.Config.Image = ref
	made := s.create(o)
	_, err := s.Engine.RemoveImage(s.ctx, id, api.ImageRemoveOptions{})
	assert.True(s, errdefs.IsConflict(err), "%v", err)
	require.NoError(s, s.Engine.RemoveContainer(s.ctx, made, api.RemoveOptions{}))
	_, err = s.Engine.RemoveImage(s.ctx, id, api.ImageRemoveOptions{})
	require.NoError(s, err)
}

func testListImages(s *suite) {
	ref, id := s.small()
	for name, f := range map[string]api.Filters{
		"label": {"label": {s.label + "=image"}}, "reference": {"reference": {s.label}},
		"glob": {"reference": {"shoal-test-*:v1"}, "label": {s.label}},
	} {
		all, err := s.Engine.ListImages(s.ctx, api.ImageListOptions{Filters: f})
		require.NoError(s, err, name)
		require.Len(s, all, 1, name)
		assert.Equal(s, id, all[0].ID)
		assert.Equal(s, []string{ref}, all[0].RepoTags)
		assert.Positive(s, all[0].Size)
	}
	all, err := s.Engine.ListImages(s.ctx, api.ImageListOptions{Filters: api.Filters{"dangling": {"true"}, "label": {s.label}}})
	require.NoError(s, err)
	assert.Empty(s, all)
	_, err = s.Engine.ListImages(s.ctx, api.ImageListOptions{Filters: api.Filters{"bogus": {"x"}}})
	assert.True(s, errdefs.IsInvalidArgument(err), "%v", err)
}

func testGarbage(s *suite) {
	for _, garbage := range []string{"", "this is no archive", strings.Repeat("\x00", 1024)} {
		progress, err := s.Engine.LoadImages(s.ctx, strings.NewReader(garbage), api.LoadOptions{})
		for err == nil {
			_, err = progress.Recv()
		}
		assert.NotEqual(s, io.EOF, err, "%q was loaded", garbage)
	}
}

func testPruneImages(s *suite) {
	ref, id := s.small()
	report, err := s.Engine.PruneImages(s.ctx, api.Filters{"label": {s.label}})
	require.NoError(s, err)
	assert.Empty(s, report.Deleted, "only what has no name")
	assert.Equal(s, id, s.image(ref).ID)
	report, err = s.Engine.PruneImages(s.ctx, api.Filters{"label": {s.label}, "dangling": {"false"}})
	require.NoError(s, err)
	assert.Contains(s, report.Deleted, api.ImageDeletion{Untagged: ref})
	assert.Contains(s, report.Deleted, api.ImageDeletion{Deleted: id})
}
