package erofs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
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
func mounted(t testing.TB, image string, devices ...string) string {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("no EROFS here: %v", err)
	}
	defer unix.Close(fd)
	require.NoError(t, unix.FsconfigSetString(fd, "source", image))
	for _, d := range devices {
		require.NoError(t, unix.FsconfigSetString(fd, "device", d))
	}
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
	t.Run("pages", func(t *testing.T) { testWritten(t, Options{}) })
	t.Run("blocks of a tar", func(t *testing.T) { testWritten(t, Options{Tar: true}) })
}

// testWritten writes an image of all there can be but contents in a tar.
func testWritten(t *testing.T, o Options) {
	needsRoot(t)
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	require.NoError(t, err)
	w := New(f, o)
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

// Contents that lie in a tar are those of the tar, wherever they begin and end.
func TestKernelReadsContentsOfATar(t *testing.T) {
	needsRoot(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	var tarred []byte
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	require.NoError(t, err)
	w := New(f, Options{Tar: true})
	want := map[string][]byte{}
	for i, size := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 70_000, 1 << 20, 3<<20 + 17, 1} {
		tarred = append(tarred, bytes.Repeat([]byte{0xee}, 512*(1+i%3))...) // headers
		body := make([]byte, size)
		for j := range body {
			body[j] = byte(rnd.Uint32())
		}
		name := fmt.Sprint(size, "-", i)
		id, err := w.CreateAt(Root, name, int64(size), int64(len(tarred)))
		require.NoError(t, err)
		attr := Attr{Perm: 0o644}
		if i%2 == 0 { // the list of chunks is after them
			attr.Xattrs = []Xattr{{"user.a", strings.Repeat("v", 1+i)}}
		}
		require.NoError(t, w.SetAttr(id, attr))
		want[name] = body
		tarred = append(tarred, body...)
		tarred = append(tarred, make([]byte, -len(tarred)&511)...)
	}
	id, _, err := w.Create(Root, "own", 5, strings.NewReader("12345"))
	require.NoError(t, err)
	require.NoError(t, w.Link(Root, "own too", id))
	want["own"] = []byte("12345")
	require.True(t, w.NeedsTar())
	_, err = w.Finish()
	require.NoError(t, err)
	tarPath := filepath.Join(t.TempDir(), "tar")
	require.NoError(t, os.WriteFile(tarPath, tarred, 0o600))
	root := mounted(t, f.Name(), tarPath)
	for name, body := range want {
		file, err := os.Open(filepath.Join(root, name))
		require.NoError(t, err)
		defer file.Close()
		got, err := io.ReadAll(file)
		require.NoError(t, err)
		require.True(t, bytes.Equal(body, got), name)
		if len(body) == 0 {
			continue
		}
		// What is mapped beyond the end is zeros.
		pages := (len(body) + 4095) &^ 4095
		m, err := unix.Mmap(int(file.Fd()), 0, pages, unix.PROT_READ, unix.MAP_SHARED)
		require.NoError(t, err)
		require.True(t, bytes.Equal(body, m[:len(body)]), name)
		require.Equal(t, make([]byte, pages-len(body)), m[len(body):], name)
		require.NoError(t, unix.Munmap(m))
		b := make([]byte, 100)
		n, err := file.ReadAt(b, int64(len(body)/2))
		require.True(t, err == nil || err == io.EOF)
		require.Equal(t, body[len(body)/2:len(body)/2+n], b[:n])
	}
}

func TestCreateAtRefusesWhatItCannotSay(t *testing.T) {
	w := New(nil, Options{Tar: true})
	for _, c := range []struct {
		size, off int64
		want      error
	}{
		{1, 511, unix.EINVAL}, {-1, 0, unix.EINVAL}, {1, -512, unix.EINVAL}, {1, 1 << 41, ErrTooLarge}, {1 << 41, 0, ErrTooLarge}, {1<<40 + 1, 0, ErrTooLarge},
	} {
		_, err := w.CreateAt(Root, "a", c.size, c.off)
		require.ErrorIs(t, err, c.want, "%d at %d", c.size, c.off)
	}
	_, err := w.CreateAt(Root, "a", 1<<40, 0)
	require.NoError(t, err)
	_, err = w.CreateAt(Root, "a", 1, 0)
	require.ErrorIs(t, err, unix.EEXIST)
	_, err = New(nil, Options{}).CreateAt(Root, "a", 1, 512)
	require.ErrorIs(t, err, unix.EINVAL)
}
