package node

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api/listing"
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
	v := &volumes{root: t.TempDir(), held: map[string][]string{}}
	none := func() []string { return nil }
	made, err := v.ensure(volumeInfo{Name: "data", Labels: map[string]string{"a": "b"}})
	require.NoError(t, err)
	require.True(t, made)
	made, err = v.ensure(volumeInfo{Name: "data", Container: "c1"})
	require.NoError(t, err)
	require.False(t, made)
	require.False(t, v.madeBy("data", "c1"), "it has a name of its own")
	d, err := v.get("data")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b"}, d.Labels)

	_, err = v.hold(volumeInfo{Name: "data"}, "c3")
	require.NoError(t, err)
	_, err = v.take("data", func() []string { return []string{"c2"} })
	require.ErrorContains(t, err, "remove data: volume is in use - [c2, c3]")
	v.letGo("c3")
	done, err := v.take("data", none)
	require.NoError(t, err)
	_, err = v.get("data")
	require.ErrorContains(t, err, "get data: no such volume", "it is gone before its files are")
	made, err = v.ensure(volumeInfo{Name: "data"})
	require.NoError(t, err)
	require.True(t, made)
	// What was interrupted ends when the store is opened again.
	left, err := filepath.Glob(v.dir(trashPrefix + "*"))
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.NoError(t, v.open())
	require.NoDirExists(t, left[0])
	require.DirExists(t, v.data("data"))
	require.NoError(t, done())

	_, err = v.ensure(volumeInfo{Name: "anonymous", Container: "c1"})
	require.NoError(t, err)
	require.False(t, v.madeBy("anonymous", "c2"))
	require.True(t, v.madeBy("anonymous", "c1"))
	d, err = v.get("anonymous")
	require.NoError(t, err)
	require.Contains(t, d.Labels, listing.AnonymousLabel)
	_, err = v.ensure(volumeInfo{Name: "../up"})
	require.Error(t, err)
	_, err = v.get("..")
	require.ErrorContains(t, err, "no such volume")

	require.NoError(t, os.WriteFile(filepath.Join(v.dir("anonymous"), "volume.json"), []byte("{"), 0o600))
	all, unread, err := v.list()
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Len(t, unread, 1)
}
