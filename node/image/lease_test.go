package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

// TestNothingInUseIsTaken has many at once pull, load, save and remove images that have
// layers in common, and use them, while whatever nobody needs is swept at once. Whoever
// got hold of something has it whole until he lets go.
func TestNothingInUseIsTaken(t *testing.T) {
	needsRoot(t)
	ctx := t.Context()
	var pool []pooled
	src := open(t)
	for i := range 4 {
		own := fmt.Sprint("own ", i)
		ref := fmt.Sprintf("app:%d", i)
		archive := archiveOf(t, small(ref, "common", fmt.Sprint("half ", i/2), own))
		load(t, src, archive)
		img := get(t, src, ref)
		pool = append(pool, pooled{ref, own, archive, img.ID, img.Target.Digest})
	}
	root := t.TempDir()
	s := reopen(t, root, fetching(&from{src: src}), func(c *image.Config) { c.Keep = time.Nanosecond })
	sweeping, stop := context.WithCancel(ctx)
	swept := make(chan error, 1)
	go func() { swept <- s.Run(sweeping) }()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var g errgroup.Group
	for w := range 6 {
		rnd := rand.New(rand.NewPCG(seed, uint64(w)))
		g.Go(func() error {
			for n := range 40 {
				p := pool[rnd.IntN(len(pool))]
				act := acts[rnd.IntN(len(acts))]
				if err := act.do(ctx, s, p, fmt.Sprintf("c%d-%d", w, n)); err != nil {
					return fmt.Errorf("%s %s: %w", act.name, p.ref, err)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	// What is left is whole.
	list, err := s.List(ctx)
	require.NoError(t, err)
	for _, i := range list {
		for _, p := range pool {
			if p.id == i.ID {
				require.NoError(t, p.use(ctx, s, "last-"+p.id.Encoded()[:12]))
			}
		}
		require.NoError(t, ignoring(second(s.Remove(ctx, i.ID.String(), api.ImageRemoveOptions{Force: true}, nobody))))
	}
	// Nobody needs anything now: nothing stays.
	require.NoError(t, pool[0].load(ctx, s))
	require.NoError(t, pool[0].use(ctx, s, "wake"))
	require.NoError(t, second(s.Remove(ctx, pool[0].ref, api.ImageRemoveOptions{Force: true}, nobody)))
	require.Eventually(t, func() bool { return len(onDisk(t, root, "blobs")) == 0 }, time.Minute, time.Millisecond)
	stop()
	require.NoError(t, <-swept)
}

// pooled is an image that the test has to offer.
type pooled struct {
	ref, own string
	archive  []byte
	id       digest.Digest
	manifest digest.Digest
}

// acts are what somebody may do with an image.
var acts = []struct {
	name string
	do   func(ctx context.Context, s *image.Store, p pooled, id string) error
}{
	{"pull", func(_ context.Context, s *image.Store, p pooled, _ string) error {
		return second(pull(s, api.PullOptions{Ref: p.ref, Digest: p.manifest.String()}))
	}},
	{"load", func(ctx context.Context, s *image.Store, p pooled, _ string) error { return p.load(ctx, s) }},
	{"save", func(ctx context.Context, s *image.Store, p pooled, _ string) error {
		r, err := s.Save(ctx, []string{p.ref}, api.Platform{})
		if err != nil {
			return ignoring(err)
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	}},
	{"remove", func(ctx context.Context, s *image.Store, p pooled, _ string) error {
		return ignoring(second(s.Remove(ctx, p.ref, api.ImageRemoveOptions{Force: true}, nobody)))
	}},
	{"use", func(ctx context.Context, s *image.Store, p pooled, id string) error {
		return ignoring(p.use(ctx, s, id))
	}},
}

func nobody(digest.Digest) []string { return nil }

func second[T any](_ T, err error) error { return err }

// ignoring passes over that an image isn't there: somebody removed it before.
func ignoring(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (p pooled) load(ctx context.Context, s *image.Store) error {
	return second(text(s.Load(ctx, bytes.NewReader(p.archive), api.LoadOptions{})))
}

// use has a container over the image look at all its files. Once it is prepared, that
// nothing is found is an error too.
func (p pooled) use(ctx context.Context, s *image.Store, id string) error {
	if err := s.Prepare(ctx, id, p.id); err != nil {
		return err
	}
	err := func() error {
		root, err := s.Mount(ctx, id)
		if err != nil {
			return fmt.Errorf("mount: %v", err)
		}
		for name, want := range map[string]string{"a": "common", "c": p.own} {
			if got, err := os.ReadFile(filepath.Join(root.Path, name)); err != nil || string(got) != want {
				return fmt.Errorf("%s is %q, not %q: %v", name, got, want, err)
			}
		}
		return nil
	}()
	return errors.Join(err, s.Discard(ctx, id))
}
