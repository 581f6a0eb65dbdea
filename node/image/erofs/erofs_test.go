package erofs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// mounted mounts an image without a loop device, as the store does.
func mounted(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("no EROFS here: %v", err)
	}
	defer unix.Close(fd)
	require.NoError(t, unix.FsconfigSetString(fd, "source", image))
	if err := unix.FsconfigCreate(fd); err != nil {
		msg := make([]byte, 4096)
		n, _ := unix.Read(fd, msg)
		require.NoError(t, err, "%s", msg[:max(0, n)])
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	require.NoError(t, err)
	defer unix.Close(mfd)
	require.NoError(t, unix.MoveMount(mfd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestKernelReadsWhatWasWritten(t *testing.T) {
	needsRoot(t)
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	require.NoError(t, err)
	w := New(f, Options{})
	at := time.Unix(1_500_000_000, 123_456_789)
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	copy(big[1<<20:], make([]byte, 1<<20))
	must := func(id ID, err error) ID {
		t.Helper()
		require.NoError(t, err)
		return id
	}
	require.NoError(t, w.SetAttr(Root, Attr{Perm: 0o755, Mtime: at}))
	d := must(w.Mkdir(Root, "d"))
	require.NoError(t, w.SetAttr(d, Attr{Perm: 0o1777, UID: 70000, GID: 8, Mtime: time.Unix(-5, 7), Xattrs: []Xattr{{"trusted.overlay.opaque", "y"}, {"user.a", strings.Repeat("v", 5000)}}}))
	file, n, err := w.Create(d, "big", int64(len(big)), bytes.NewReader(big))
	require.NoError(t, err)
	require.EqualValues(t, len(big), n)
	require.NoError(t, w.SetAttr(file, Attr{Perm: 0o4755, UID: 1, GID: 2, Mtime: at}))
	require.NoError(t, w.Link(Root, "!hard", file))
	must(w.Symlink(Root, "short", "d/big"))
	must(w.Symlink(Root, "long", strings.Repeat("x/", 2047)))
	must(w.Mknod(Root, "null", unix.S_IFCHR, 1, 3))
	must(w.Mknod(Root, "white", unix.S_IFCHR, 0, 0))
	must(w.Mknod(Root, "fifo", unix.S_IFIFO, 0, 0))
	many := must(w.Mkdir(Root, "many"))
	want := map[string]bool{}
	for i := range 3000 {
		name := strings.Repeat("n", i%200) + string(rune('0'+i%10)) + strings.Repeat("é", i/200)
		if want[name] {
			continue
		}
		want[name] = true
		_, _, err := w.Create(many, name, 0, nil)
		require.NoError(t, err)
	}
	size, err := w.Finish()
	require.NoError(t, err)
	fi, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, size, fi.Size())
	require.NoError(t, f.Close())

	root := mounted(t, path)
	got, err := os.ReadFile(filepath.Join(root, "!hard"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(root, "d/big"), &st))
	require.EqualValues(t, unix.S_IFREG|0o4755, st.Mode)
	require.EqualValues(t, 2, st.Nlink)
	require.Equal(t, at.UnixNano(), st.Mtim.Nano())
	require.NoError(t, unix.Lstat(filepath.Join(root, "d"), &st))
	require.EqualValues(t, 70000, st.Uid)
	require.EqualValues(t, -5, st.Mtim.Sec)
	v := make([]byte, 6000)
	vn, err := unix.Getxattr(filepath.Join(root, "d"), "user.a", v)
	require.NoError(t, err)
	require.Equal(t, 5000, vn)
	vn, err = unix.Getxattr(filepath.Join(root, "d"), "trusted.overlay.opaque", v)
	require.NoError(t, err)
	require.Equal(t, "y", string(v[:vn]))
	for name, target := range map[string]string{"short": "d/big", "long": strings.Repeat("x/", 2047)} {
		to, err := os.Readlink(filepath.Join(root, name))
		require.NoError(t, err)
		require.Equal(t, target, to)
	}
	require.NoError(t, unix.Lstat(filepath.Join(root, "null"), &st))
	require.Equal(t, unix.Mkdev(1, 3), st.Rdev)
	entries, err := os.ReadDir(filepath.Join(root, "many"))
	require.NoError(t, err)
	require.Len(t, entries, len(want))
	for _, e := range entries {
		require.True(t, want[e.Name()])
		require.NoError(t, unix.Lstat(filepath.Join(root, "many", e.Name()), &st), "found by name, too")
	}
}
