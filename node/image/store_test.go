package image_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/node/image"
)

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// open opens a store in a directory of its own and closes it at the end.
func open(t testing.TB, edit ...func(*image.Config)) *image.Store {
	t.Helper()
	needsRoot(t)
	return reopen(t, t.TempDir(), edit...)
}

func reopen(t testing.TB, root string, edit ...func(*image.Config)) *image.Store {
	t.Helper()
	c := image.Config{Root: root}
	for _, e := range edit {
		e(&c)
	}
	s, err := image.Open(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// text is everything a progress stream says, or the error that ends it.
func text(s api.Stream[api.Progress], err error) (string, error) {
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	for p, err := range api.All(s) {
		if err != nil {
			return b.String(), err
		}
		b.WriteString(p.Stream)
		if p.Progress == nil && p.Status != "" {
			b.WriteString(p.ID + ": " + p.Status + "\n")
		}
	}
	return b.String(), nil
}

func load(t testing.TB, s *image.Store, archive []byte) string {
	t.Helper()
	out, err := text(s.Load(context.Background(), bytes.NewReader(archive), api.LoadOptions{}))
	require.NoError(t, err)
	return out
}

func TestLoadedImageRunsAndGoes(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	require.Equal(t, "Loaded image: busybox:latest\n", load(t, s, apitest.Busybox(t)))
	img, err := s.Get(ctx, "busybox")
	require.NoError(t, err)
	require.Equal(t, []string{"busybox:latest"}, img.Tags)
	require.Positive(t, img.Size)

	require.NoError(t, s.Prepare(ctx, "c1", img.ID))
	require.NoError(t, s.Prepare(ctx, "c1", img.ID))
	root, err := s.Mount(ctx, "c1")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Unmount(ctx, "c1") })
	again, err := s.Mount(ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, root, again)
	out, err := exec.Command("chroot", root.Path, "/bin/sh", "-c", "echo hello > /x && cat /x && test -d /proc -a -f /etc/hosts -a -d /sys").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "hello\n", string(out))
	require.FileExists(t, filepath.Join(root.Upper, "x"))
	n, err := s.Usage(ctx, "c1")
	require.NoError(t, err)
	require.EqualValues(t, 6, n)

	require.NoError(t, s.Unmount(ctx, "c1"))
	require.NoError(t, s.Unmount(ctx, "c1"))
	require.NoError(t, s.Discard(ctx, "c1"))
	require.NoError(t, s.Discard(ctx, "c1"))

	_, err = s.Remove(ctx, "busybox", api.ImageRemoveOptions{}, nil)
	require.NoError(t, err)
	_, err = s.Get(ctx, "busybox")
	require.EqualError(t, err, "No such image: busybox:latest")
}
