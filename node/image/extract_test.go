package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func writeTar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range entries {
		h := h
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		body := []byte(h.Name)
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		require.NoError(t, tw.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := tw.Write(body)
			require.NoError(t, err)
		}
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

// unpacker unpacks a layer to where it can be looked at.
type testUnpack func(t testing.TB, entries ...tar.Header) (string, extracted, error)

// unpackIn unpacks to a directory.
func unpackIn(t testing.TB, entries ...tar.Header) (string, extracted, error) {
	t.Helper()
	needsRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	p, err := newDirPlace(dir)
	require.NoError(t, err)
	defer p.Close()
	out, _, err := unpackTo(context.Background(), bytes.NewReader(writeTar(t, entries...)), p, Limits{}.withDefaults(), true, nil)
	return dir, out, err
}

// unpackImage unpacks to an image and mounts it.
func unpackImage(t testing.TB, entries ...tar.Header) (string, extracted, error) {
	t.Helper()
	needsRoot(t)
	path := filepath.Join(t.TempDir(), "image")
	p, err := newImagePlace(path, new(room).share(true), false)
	require.NoError(t, err)
	defer p.Close()
	out, _, err := unpackTo(context.Background(), bytes.NewReader(writeTar(t, entries...)), p, Limits{}.withDefaults(), true, nil)
	if err == nil {
		err = p.finish()
	}
	if err != nil {
		return path, out, err
	}
	dir := filepath.Join(t.TempDir(), "fs")
	require.NoError(t, os.Mkdir(dir, 0o755))
	if err := mountImage(path, "", dir); err != nil {
		t.Skipf("EROFS images can't be mounted here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir, out, nil
}

// unpackTar unpacks to an image that refers to the tar, and mounts both.
func unpackTar(t testing.TB, entries ...tar.Header) (string, extracted, error) {
	t.Helper()
	needsRoot(t)
	path := filepath.Join(t.TempDir(), "image")
	p, err := newImagePlace(path, new(room).share(true), true)
	require.NoError(t, err)
	defer p.Close()
	b := writeTar(t, entries...)
	out, diff, err := unpackTree(context.Background(), newRawTar(bytes.NewReader(b), 1<<30), p, Limits{}.withDefaults(), true, nil)
	if err == nil {
		require.Equal(t, digest.FromBytes(b), diff)
		err = p.finish()
	}
	if err != nil {
		return path, out, err
	}
	dir, blob := filepath.Join(t.TempDir(), "fs"), ""
	require.NoError(t, os.Mkdir(dir, 0o755))
	if p.needsTar {
		blob = filepath.Join(t.TempDir(), "tar")
		require.NoError(t, os.WriteFile(blob, b, 0o600))
	}
	if err := mountImage(path, blob, dir); err != nil {
		t.Skipf("EROFS images can't refer to a tar here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir, out, nil
}

// places runs a test with all kinds of layers.
func places(t *testing.T, f func(t *testing.T, unpack testUnpack)) {
	t.Run("tar", func(t *testing.T) { f(t, unpackTar) })
	t.Run("directory", func(t *testing.T) { f(t, unpackIn) })
	t.Run("image", func(t *testing.T) { f(t, unpackImage) })
}

func TestHostileLayersAreRefusedOrContained(t *testing.T) {
	long := strings.Repeat("x", 256)
	deep := strings.Repeat("x/", 2100)
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to} }
	for name, c := range map[string]struct {
		entries []tar.Header
		says    string
	}{
		"dot dot":                  {[]tar.Header{{Name: "../evil"}}, "leads out"},
		"dot dot within":           {[]tar.Header{{Name: "a/../../evil"}}, "leads out"},
		"absolute":                 {[]tar.Header{{Name: "/evil"}}, "absolute"},
		"long part":                {[]tar.Header{{Name: long}}, "longer than 255"},
		"long path":                {[]tar.Header{{Name: deep + "x"}}, "longer than 4095"},
		"root is a file":           {[]tar.Header{{Name: "./"[:1]}}, "root is not a directory"},
		"root is a link":           {[]tar.Header{link(".", "/")}, "root is not a directory"},
		"hard link out":            {[]tar.Header{hard("a", "../../etc/passwd")}, "hard link"},
		"hard link to nothing":     {[]tar.Header{hard("a", "b")}, "hard link"},
		"hard link to a directory": {[]tar.Header{{Typeflag: tar.TypeDir, Name: "d"}, hard("a", "d")}, "is no file"},
		"hard link to a whiteout":  {[]tar.Header{{Name: ".wh.w"}, hard("a", "w")}, "is no file"},
		"hard link to itself":      {[]tar.Header{{Name: "a"}, hard("a", "a")}, "hard link"},
		"hard link through a link": {[]tar.Header{link("l", "/etc"), hard("a", "l/passwd")}, "hard link"},
		"whiteout of dot dot":      {[]tar.Header{{Name: "a/.wh..."}}, "names nothing"},
		"whiteout of nothing":      {[]tar.Header{{Name: ".wh."}}, "names nothing"},
		"whiteout of dot":          {[]tar.Header{{Name: ".wh.."}}, "names nothing"},
		"below a whiteout":         {[]tar.Header{{Name: ".wh.a/b"}}, "names nothing"},
		"below a file":             {[]tar.Header{{Name: "a"}, {Name: "a/b"}}, "not a directory"},
		"empty symbolic link":      {[]tar.Header{link("a", "")}, "no possible target"},
		"unknown kind":             {[]tar.Header{{Typeflag: 'Z', Name: "a"}}, "unknown kind"},
		"owner":                    {[]tar.Header{{Name: "a", Uid: 1 << 33}}, "out of range"},
		"capability that is none":  {[]tar.Header{{Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}}, "security.capability"},
		"looping links":            {[]tar.Header{link("a", "b"), link("b", "a"), {Name: "a/x"}}, "too many levels"},
		"device":                   {[]tar.Header{{Typeflag: tar.TypeChar, Name: "a", Devmajor: 1 << 30}}, "device number"},
	} {
		places(t, func(t *testing.T, unpack testUnpack) {
			t.Run(name, func(t *testing.T) {
				dir, _, err := unpack(t, c.entries...)
				outside, e := os.ReadDir(filepath.Dir(dir))
				require.NoError(t, e)
				require.Len(t, outside, 1, "only the layer itself")
				require.ErrorContains(t, err, c.says)
			})
		})
	}
}

func TestLinksOutOfALayerStayInIt(t *testing.T) {
	places(t, func(t *testing.T, unpack testUnpack) {
		target := t.TempDir()
		dir, _, err := unpack(t,
			tar.Header{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: target},
			tar.Header{Typeflag: tar.TypeDir, Name: target[1:] + "/", Mode: 0o755},
			tar.Header{Name: "abs/one"},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "up", Linkname: strings.Repeat("../", 30) + target[1:]},
			tar.Header{Name: "up/two"},
		)
		require.NoError(t, err)
		entries, err := os.ReadDir(target)
		require.NoError(t, err)
		require.Empty(t, entries, "nothing was written outside")
		require.FileExists(t, filepath.Join(dir, target, "one"))
		require.FileExists(t, filepath.Join(dir, target, "two"))
	})
}

func TestOverlaysOwnAttributesAreNotTakenFromArchives(t *testing.T) {
	places(t, func(t *testing.T, unpack testUnpack) {
		dir, _, err := unpack(t, tar.Header{Typeflag: tar.TypeDir, Name: "d", PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.overlay.redirect": "/x", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.mine": "kept",
		}})
		require.NoError(t, err)
		buf := make([]byte, 1024)
		n, err := unix.Listxattr(filepath.Join(dir, "d"), buf)
		require.NoError(t, err)
		require.Equal(t, "user.mine\x00", string(buf[:n]))
	})
}

func TestAttributes(t *testing.T) {
	places(t, func(t *testing.T, unpack testUnpack) {
		at := time.Unix(1_500_000_000, 123_456_789)
		// A version 2 capability set: net_bind_service, effective and permitted.
		capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		dir, out, err := unpack(t,
			tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777, Uid: 7, Gid: 8, ModTime: at, Format: tar.FormatPAX},
			tar.Header{Name: "d/suid", Mode: 0o4755, Uid: 1000, Gid: 1001, ModTime: at, Format: tar.FormatPAX},
			tar.Header{Name: "d/cap", Mode: 0o755, Uid: 5, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}},
			tar.Header{Typeflag: tar.TypeLink, Name: "d/hard", Linkname: "d/suid"},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "d/sym", Linkname: "/nowhere", Uid: 9, ModTime: at, Format: tar.FormatPAX},
			tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
			tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
			tar.Header{Name: "deep/er/file", Mode: 0o600},
		)
		require.NoError(t, err)
		require.Equal(t, 8, out.entries)
		require.EqualValues(t, len("d/suid")+len("d/cap")+len("deep/er/file"), out.bytes)
		slices.Sort(out.implicit)
		require.Equal(t, []string{".", "deep", "deep/er"}, out.implicit)
		stat := func(name string) *syscall.Stat_t {
			fi, err := os.Lstat(filepath.Join(dir, name))
			require.NoError(t, err)
			return fi.Sys().(*syscall.Stat_t)
		}
		st := stat("d")
		require.Equal(t, []uint32{unix.S_IFDIR | 0o1777, 7, 8}, []uint32{st.Mode, st.Uid, st.Gid})
		require.Equal(t, at.UnixNano(), st.Mtim.Nano(), "although files were made in it later")
		st = stat("d/suid")
		require.Equal(t, []uint32{unix.S_IFREG | 0o4755, 1000, 1001}, []uint32{st.Mode, st.Uid, st.Gid})
		require.Equal(t, at.UnixNano(), st.Mtim.Nano())
		require.Equal(t, st.Ino, stat("d/hard").Ino)
		require.EqualValues(t, 9, stat("d/sym").Uid)
		require.Equal(t, at.UnixNano(), stat("d/sym").Mtim.Nano())
		require.Equal(t, unix.Mkdev(1, 3), stat("null").Rdev)
		require.EqualValues(t, unix.S_IFIFO|0o600, stat("fifo").Mode)
		buf := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(dir, "d/cap"), "security.capability", buf)
		require.NoError(t, err)
		require.Equal(t, capability, string(buf[:n]))
	})
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	places(t, func(t *testing.T, unpack testUnpack) {
		dir, _, err := unpack(t,
			tar.Header{Typeflag: tar.TypeDir, Name: "x/"}, tar.Header{Name: "x/below"}, tar.Header{Name: "x"},
			tar.Header{Name: "y"}, tar.Header{Typeflag: tar.TypeDir, Name: "y/"}, tar.Header{Name: "y/below"},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "z", Linkname: "y"}, tar.Header{Typeflag: tar.TypeDir, Name: "z/"}, tar.Header{Name: "z/own"},
		)
		require.NoError(t, err)
		for _, f := range []string{"x", "y/below", "z/own"} {
			b, err := os.ReadFile(filepath.Join(dir, f))
			require.NoError(t, err)
			require.Equal(t, f, string(b))
		}
		require.NoFileExists(t, filepath.Join(dir, "y/own"))
	})
}

func TestDirectoriesWithoutEntryInherit(t *testing.T) {
	low, _, err := unpackImage(t, tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, Uid: 3, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}, tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "tmp"})
	require.NoError(t, err)
	b := writeTar(t, tar.Header{Name: "tmp/x"}, tar.Header{Name: "lib/y"})
	below := lowers{1, func(int) (string, error) { return low, nil }}
	root := t.TempDir()
	top := filepath.Join(root, "fs")
	dir, err := newDirPlace(top)
	require.NoError(t, err)
	img, err := newImagePlace(filepath.Join(root, "image"), new(room).share(true), false)
	require.NoError(t, err)
	for _, p := range []place{dir, img} {
		out, _, err := unpackTo(context.Background(), bytes.NewReader(b), p, Limits{}.withDefaults(), true, nil)
		require.NoError(t, err)
		require.NoError(t, settle(p, below, out))
		require.NoError(t, p.finish())
		require.NoError(t, p.Close())
	}
	mounted := filepath.Join(root, "mounted")
	require.NoError(t, os.Mkdir(mounted, 0o755))
	require.NoError(t, mountImage(img.f.path, "", mounted))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mounted, 0)) })
	for _, top := range []string{top, mounted} {
		fi, err := os.Stat(filepath.Join(top, "tmp"))
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|os.ModeSticky|0o777, fi.Mode())
		require.EqualValues(t, 3, fi.Sys().(*syscall.Stat_t).Uid)
		v := make([]byte, 10)
		n, err := unix.Getxattr(filepath.Join(top, "tmp"), "user.x", v)
		require.NoError(t, err)
		require.Equal(t, "y", string(v[:n]))
		fi, err = os.Stat(filepath.Join(top, "lib"))
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o755, fi.Mode(), "a link below is none of its business")
	}
}

func TestDamagedRecordIsTold(t *testing.T) {
	b, err := encodeRecord(nameRecord{Name: "x"})
	require.NoError(t, err)
	var r nameRecord
	require.NoError(t, decodeRecord(b, &r))
	require.ErrorContains(t, decodeRecord(bytes.Replace(b, []byte(`"x"`), []byte(`"y"`), 1), &r), "checksum")
	require.ErrorContains(t, decodeRecord(bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1), &r), "version 2")
}

func TestUnpackErrorsKeepTheirClass(t *testing.T) {
	_, _, err := unpackIn(t, tar.Header{Name: "../x"})
	require.True(t, errdefs.IsInvalidArgument(err))
}

func TestOldMountCallTakesManyLayers(t *testing.T) {
	needsRoot(t)
	root := t.TempDir()
	d := overlayDirs{upper: filepath.Join(root, "upper"), work: filepath.Join(root, "work"), target: filepath.Join(root, "merged")}
	for i := range 120 {
		l := filepath.Join(root, strings.Repeat("long", 20), fmt.Sprint(i))
		require.NoError(t, os.MkdirAll(l, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(l, fmt.Sprint(i)), nil, 0o600))
		d.lower = append(d.lower, l)
	}
	for _, dir := range []string{d.upper, d.work, d.target} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	require.NoError(t, mountOld(d))
	entries, err := os.ReadDir(d.target)
	require.NoError(t, unix.Unmount(d.target, 0))
	require.NoError(t, err)
	require.Len(t, entries, 120)
	d.lower = slices.Repeat(d.lower, 3)
	require.ErrorContains(t, mountOld(d), "more than this kernel takes")
}
