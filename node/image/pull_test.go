package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"

	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/transfer"
)

func fetching(fs ...transfer.Fetcher) func(*image.Config) {
	return func(c *image.Config) { c.Fetchers = fs }
}

func pull(s *image.Store, o api.PullOptions) (string, error) {
	return text(s.Pull(context.Background(), o))
}

// twoLayers is a store that has app:1, an image of two compressed layers.
func twoLayers(t *testing.T) (*image.Store, image.Image) {
	t.Helper()
	s := open(t)
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	load(t, s, layout(t, "docker.io/library/app:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil,
		tarOf(t, file("a", string(noise))), tarOf(t, file("b", "hello"))))
	return s, get(t, s, "app:1")
}

func TestPull(t *testing.T) {
	src, img := twoLayers(t)
	f := &from{src: src}
	var told []string
	s := open(t, fetching(f), func(c *image.Config) {
		c.Resolve = func(_ context.Context, ref string) (string, error) {
			if ref != "docker.io/library/app:1" {
				return "", api.NotFound("no such name")
			}
			return img.Target.Digest.String(), nil
		}
	})
	s.OnChange(func(action, id, name string) { told = append(told, action+" "+id+" "+name) })
	out, err := pull(s, api.PullOptions{Ref: "app:1"})
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	a, b := img.Layers[0].Digest.Encoded()[:12], img.Layers[1].Digest.Encoded()[:12]
	require.Equal(t, "1: Pulling from library/app", lines[0])
	require.Equal(t, []string{": Digest: " + img.Target.Digest.String(), ": Status: Downloaded newer image for app:1"}, lines[len(lines)-2:])
	for _, id := range []string{a, b} {
		require.Contains(t, lines, id+": Pulling fs layer")
		require.Contains(t, lines, id+": Download complete")
		require.Contains(t, lines, id+": Pull complete")
	}
	require.Equal(t, []string{"pull " + img.ID.String() + " app:1"}, told)
	got := get(t, s, "app:1")
	require.Equal(t, img.ID, got.ID)
	require.Equal(t, img.Target, got.Target)
	require.Equal(t, []string{"app@" + img.Target.Digest.String()}, got.Digests)
	body, err := os.ReadFile(filepath.Join(mount(t, s, "c", got.ID).Path, "b"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(body))

	calls := f.calls.Load()
	out, err = pull(s, api.PullOptions{Ref: "app:1"})
	require.NoError(t, err)
	require.Contains(t, out, a+": Already exists")
	require.Contains(t, out, "Status: Image is up to date for app:1")
	out, err = pull(s, api.PullOptions{Ref: "quay.io/x/other:2", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	require.Contains(t, out, "Status: Downloaded newer image for quay.io/x/other:2")
	require.Equal(t, img.ID, get(t, s, "quay.io/x/other:2").ID)
	require.Equal(t, calls, f.calls.Load(), "what is here is not fetched again")
	out, err = pull(s, api.PullOptions{Ref: "app@" + img.Target.Digest.String()})
	require.NoError(t, err)
	require.Contains(t, out, "Image is up to date")

	removed, err := s.Remove(context.Background(), "app:1", api.ImageRemoveOptions{}, nil)
	require.NoError(t, err)
	require.Len(t, removed, 2, "the tag, and with it the digest: %v", removed)
}

func TestPullOfWhatNobodyHas(t *testing.T) {
	empty := open(t)
	none := digest.FromString("none").String()
	for name, s := range map[string]*image.Store{"no fetchers": open(t), "one that has nothing": open(t, fetching(&from{src: empty}))} {
		for _, o := range []api.PullOptions{{Ref: "app"}, {Ref: "app:1", Digest: none}, {Ref: "docker.io/library/app@" + none}} {
			_, err := s.Pull(context.Background(), o)
			require.EqualError(t, err, "pull access denied for app, repository does not exist or may require 'docker login'", name)
			require.True(t, errdefs.IsNotFound(err))
		}
	}
	_, err := empty.Pull(context.Background(), api.PullOptions{Ref: "UPPER"})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = empty.Pull(context.Background(), api.PullOptions{Ref: "a@" + none, Digest: digest.FromString("x").String()})
	require.True(t, errdefs.IsInvalidArgument(err))
}

func TestPullAsksTheNextFetcher(t *testing.T) {
	src, img := twoLayers(t)
	liar, honest := &from{src: src, spoil: true}, &from{src: src}
	s := open(t, fetching(&from{src: open(t)}, liar, honest))
	_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	require.Equal(t, img.ID, get(t, s, "app:1").ID)
	require.Positive(t, liar.calls.Load())
	root := mount(t, s, "c", img.ID).Path
	body, err := os.ReadFile(filepath.Join(root, "b"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(body))
}

func TestPullFromLiarsOnlyLeavesNothing(t *testing.T) {
	src, img := twoLayers(t)
	needsRoot(t)
	root := t.TempDir()
	s := reopen(t, root, fetching(&from{src: src, spoil: true}))
	_, err := s.Pull(context.Background(), api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.True(t, errdefs.IsDataLoss(err))
	require.ErrorContains(t, err, img.Target.Digest.String())
	for _, d := range []string{"blobs", "ingest", "records", "staging"} {
		require.Empty(t, onDisk(t, root, d))
	}
}

func TestTwoPullsShareTheWork(t *testing.T) {
	src, img := twoLayers(t)
	f := &from{src: src, gate: make(chan struct{})}
	s := open(t, fetching(f))
	o := api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()}
	var g errgroup.Group
	began := make(chan struct{}, 2)
	for range 2 {
		g.Go(func() error {
			st, err := s.Pull(context.Background(), o)
			if err != nil {
				return err
			}
			began <- struct{}{}
			_, err = text(st, nil)
			return err
		})
	}
	// The config and then the layers wait at the gate.
	go func() {
		close(f.gate)
	}()
	<-began
	<-began
	require.NoError(t, g.Wait())
	require.EqualValues(t, 4, f.calls.Load(), "manifest, config and two layers, each once")
}

// A layer is unpacked while it arrives: its first half is on disk before the second
// half was sent.
func TestLayersAreUnpackedWhileTheyArrive(t *testing.T) {
	src := open(t)
	first, second := noise(1, 2<<20), noise(2, 3<<20)
	// Compressed, because of a tar that is not only the tree is written.
	load(t, src, layout(t, "app:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil,
		tarOf(t, file("first", string(first)), file("second", string(second)))))
	img := get(t, src, "app:1")
	needsRoot(t)
	root := t.TempDir()
	f := &gated{from: from{src: src, gate: make(chan struct{})}, layer: img.Layers[0].Digest}
	s := reopen(t, root, fetching(f))
	st, err := s.Pull(context.Background(), api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := text(st, nil)
		ended <- err
	}()
	require.Eventually(t, func() bool {
		found, _ := filepath.Glob(filepath.Join(root, "staging/layer-*/*"))
		return slices.ContainsFunc(found, func(name string) bool { // an image, or a directory with the file
			image, err := os.Stat(name)
			file, e := os.Stat(filepath.Join(name, "first"))
			return err == nil && image.Size() >= 2<<20 || e == nil && file.Size() == 2<<20
		})
	}, time.Minute, time.Millisecond)
	close(f.gate)
	require.NoError(t, <-ended)
	body, err := os.ReadFile(filepath.Join(mount(t, s, "c", img.ID).Path, "second"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(second, body))
}

// noise is what doesn't compress.
func noise(seed uint64, n int) []byte {
	rnd, b := rand.New(rand.NewPCG(seed, 0)), make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// gated holds back the second half of one layer only.
type gated struct {
	from
	layer digest.Digest
}

func (g *gated) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	if want.Digest == g.layer {
		return g.from.Fetch(ctx, dst, want, progress)
	}
	return (&from{src: g.src}).Fetch(ctx, dst, want, progress)
}

func TestCancelledPullCanBeResumed(t *testing.T) {
	src, img := twoLayers(t)
	needsRoot(t)
	root := t.TempDir()
	f := &gated{from: from{src: src, gate: make(chan struct{})}, layer: img.Layers[0].Digest}
	s := reopen(t, root, fetching(f))
	ctx, cancel := context.WithCancel(context.Background())
	st, err := s.Pull(ctx, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	for {
		p, err := st.Recv()
		require.NoError(t, err)
		if p.Status == "Downloading" && p.ID == img.Layers[0].Digest.Encoded()[:12] {
			break
		}
	}
	cancel()
	for err == nil {
		_, err = st.Recv()
	}
	require.NotErrorIs(t, err, io.EOF)
	require.NoError(t, s.Close())
	_, err = s.Get(context.Background(), "app:1")
	require.True(t, errdefs.IsNotFound(err))

	close(f.gate)
	s = reopen(t, root, fetching(f))
	w, err := s.Ingest(context.Background(), img.Layers[0])
	require.NoError(t, err)
	require.Equal(t, img.Layers[0].Size/2, w.Offset(), "the first half is kept")
	require.NoError(t, w.Close())
	_, err = pull(s, api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()})
	require.NoError(t, err)
	require.Empty(t, onDisk(t, root, "staging"))
}

func TestPullChoosesThePlatform(t *testing.T) {
	src := open(t)
	var manifests []ocispec.Descriptor
	for _, arch := range []string{"arm64", "amd64"} {
		load(t, src, layout(t, "docker.io/library/"+arch+":1", func(b []byte) []byte { return b }, ocispec.MediaTypeImageLayer, nil, tarOf(t, file(arch, arch))))
		d := get(t, src, arch+":1").Manifest
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		manifests = append(manifests, d)
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	require.NoError(t, err)
	w, err := src.Ingest(context.Background(), descriptor(b))
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Commit(context.Background()))
	for arch, p := range map[string]api.Platform{"amd64": {}, "arm64": {OS: "linux", Architecture: "arm64"}} {
		root := t.TempDir()
		s := reopen(t, root, fetching(&from{src: src}), func(c *image.Config) { c.Platform = api.Platform{OS: "linux", Architecture: "amd64"} })
		_, err := pull(s, api.PullOptions{Ref: "app:1", Digest: digest.FromBytes(b).String(), Platform: p})
		require.NoError(t, err)
		img := get(t, s, "app:1")
		require.Equal(t, digest.FromBytes(b), img.Target.Digest)
		require.Equal(t, get(t, src, arch+":1").ID, img.ID)
		load(t, open(t), save(t, s, "app:1"))
		require.Equal(t, img.ID, get(t, reopen(t, root), "app:1").ID)
	}
	// One index, two platforms, one after the other.
	s := open(t, fetching(&from{src: src}))
	for _, arch := range []string{"amd64", "arm64", "amd64"} {
		_, err := pull(s, api.PullOptions{Ref: "app:" + arch, Digest: digest.FromBytes(b).String(), Platform: api.Platform{OS: "linux", Architecture: arch}})
		require.NoError(t, err)
		require.Equal(t, get(t, src, arch+":1").ID, get(t, s, "app:"+arch).ID)
	}
	_, err = s.Pull(context.Background(), api.PullOptions{Ref: "app:1", Digest: digest.FromBytes(b).String(), Platform: api.Platform{OS: "linux", Architecture: "riscv64"}})
	require.ErrorContains(t, err, "no matching manifest for linux/riscv64")
}

func TestConcurrentPullsAndRemovals(t *testing.T) {
	src, img := twoLayers(t)
	s := open(t, fetching(&from{src: src}))
	o := api.PullOptions{Ref: "app:1", Digest: img.Target.Digest.String()}
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for range 5 {
				if _, err := pull(s, o); err != nil {
					return err
				}
			}
			return nil
		})
		g.Go(func() error {
			for range 5 {
				if _, err := s.Remove(context.Background(), "app:1", api.ImageRemoveOptions{Force: true}, nil); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	_, err := pull(s, o)
	require.NoError(t, err)
	mount(t, s, "c", img.ID)
}
