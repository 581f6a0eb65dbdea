package node

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLookUser(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("app:x:1000:1001::/home/app:/bin/sh\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("app:x:1001:\nmore:x:50:app\nadded:x:60:\n"), 0o644))
	for spec, want := range map[string]identity{
		"":          {home: "/", groups: []uint32{0}},
		"app":       {uid: 1000, gid: 1001, home: "/home/app", groups: []uint32{1001, 50}},
		"1000:more": {uid: 1000, gid: 50, home: "/home/app", groups: []uint32{50}},
		"77:88":     {uid: 77, gid: 88, home: "/", groups: []uint32{88}},
	} {
		got, err := lookUser(root, spec, nil)
		require.NoError(t, err, spec)
		require.Equal(t, want, got, spec)
	}
	got, err := lookUser(root, "app", []string{"added", "70"})
	require.NoError(t, err)
	require.ElementsMatch(t, []uint32{1001, 50, 60, 70}, got.groups)
	_, err = lookUser(root, "nobody", nil)
	require.ErrorContains(t, err, "unable to find user nobody")

	// A link out of the image leads nowhere.
	outside := filepath.Join(t.TempDir(), "passwd")
	require.NoError(t, os.WriteFile(outside, []byte("evil:x:0:0::/:/bin/sh\n"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(root, "etc/passwd")))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "etc/passwd")))
	_, err = lookUser(root, "evil", nil)
	require.Error(t, err)
}

func TestFillVolume(t *testing.T) {
	root, volume := t.TempDir(), t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("host"), 0o600))
	data := filepath.Join(root, "data")
	require.NoError(t, os.MkdirAll(filepath.Join(data, "sub"), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(data, "sub/f"), []byte("x"), 0o640))
	require.NoError(t, os.Symlink(secret, filepath.Join(data, "link")))
	require.NoError(t, unix.Mkfifo(filepath.Join(data, "fifo"), 0o600))
	if os.Getuid() == 0 {
		require.NoError(t, os.Chown(filepath.Join(data, "sub/f"), 12, 34))
		require.NoError(t, os.Chown(data, 56, 78))
	}
	require.NoError(t, fillVolume(root, "/data", volume))
	b, err := os.ReadFile(filepath.Join(volume, "sub/f"))
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
	target, err := os.Readlink(filepath.Join(volume, "link"))
	require.NoError(t, err)
	require.Equal(t, secret, target, "a link is copied, not what it points at")
	for _, name := range []string{".", "sub", "sub/f", "fifo"} {
		was, err := os.Lstat(filepath.Join(data, name))
		require.NoError(t, err)
		is, err := os.Lstat(filepath.Join(volume, name))
		require.NoError(t, err)
		require.Equal(t, was.Mode(), is.Mode(), name)
		require.Equal(t, was.ModTime(), is.ModTime(), name)
		a, b := was.Sys().(*syscall.Stat_t), is.Sys().(*syscall.Stat_t)
		require.Equal(t, []uint32{a.Uid, a.Gid}, []uint32{b.Uid, b.Gid}, name)
	}

	// One that is not empty stays as it is, and a missing directory is none.
	require.NoError(t, os.WriteFile(filepath.Join(data, "new"), nil, 0o600))
	require.NoError(t, fillVolume(root, "/data", volume))
	require.NoFileExists(t, filepath.Join(volume, "new"))
	require.NoError(t, fillVolume(root, "/none", t.TempDir()))
}

func TestVolumes(t *testing.T) {
	v := &volumes{root: t.TempDir()}
	made, err := v.ensure("data", "")
	require.NoError(t, err)
	require.True(t, made)
	made, err = v.ensure("data", "c1")
	require.NoError(t, err)
	require.False(t, made)
	require.NoError(t, v.removeOf("data", "c1"))
	require.DirExists(t, v.data("data"), "a named volume stays")
	_, err = v.ensure("anonymous", "c1")
	require.NoError(t, err)
	require.NoError(t, v.removeOf("anonymous", "c2"))
	require.DirExists(t, v.data("anonymous"))
	require.NoError(t, v.removeOf("anonymous", "c1"))
	require.NoDirExists(t, v.dir("anonymous"))
	require.NoError(t, v.removeOf("anonymous", "c1"))
	_, err = v.ensure("../up", "")
	require.Error(t, err)
}
