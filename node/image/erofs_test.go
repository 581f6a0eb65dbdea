package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
)

func directories(c *image.Config) { c.Directories = true }

// openImages opens a store whose layers are image files; the kernel must mount those.
func openImages(t testing.TB, root string, edit ...func(*image.Config)) *image.Store {
	t.Helper()
	needsRoot(t)
	var log bytes.Buffer
	s := reopen(t, root, append(edit, logged(&log))...)
	if strings.Contains(log.String(), "EROFS image can't be mounted") {
		t.Skip(log.String())
	}
	return s
}

// disk mounts an ext4 of a size, kept in memory because syncing is another test's:
// EROFS images can't be mounted from a tmpfs itself.
func disk(t testing.TB, size string) string {
	t.Helper()
	needsRoot(t)
	file, dir := filepath.Join(tmpfs(t, "300m"), "disk"), t.TempDir()
	for _, args := range [][]string{{"truncate", "-s", size, file}, {"mkfs.ext4", "-q", "-m0", "-b", "4096", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no small file systems here: %v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", "--lazy", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return dir
}

// mountsBelow lists what is mounted below a directory.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], dir+"/") {
			found = append(found, f[2]+" "+strings.TrimPrefix(f[1], dir+"/"))
		}
	}
	return found
}

// node says all that matters of one file.
func node(t require.TestingT, path string, links map[[2]uint64]string, rel string) string {
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	at := fmt.Sprint(st.Mtim.Sec, ".", st.Mtim.Nsec)
	body := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		body = fmt.Sprintf("%d %x", len(b), sha256.Sum256(b))
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		require.NoError(t, err)
		body = to
	case unix.S_IFCHR, unix.S_IFBLK:
		body = fmt.Sprint(st.Rdev)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := links[[2]uint64{st.Dev, st.Ino}]; ok {
			body += " same as " + first
		} else {
			links[[2]uint64{st.Dev, st.Ino}] = rel
		}
		body += fmt.Sprint(" links ", st.Nlink)
	}
	var attrs []string
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		v := make([]byte, 4096)
		m, err := unix.Lgetxattr(path, name, v)
		require.NoError(t, err)
		attrs = append(attrs, fmt.Sprintf("%s=%q", name, v[:m]))
	}
	slices.Sort(attrs)
	return fmt.Sprintf("%s %o %d:%d %s %s %v", rel, st.Mode, st.Uid, st.Gid, at, body, attrs)
}

// everything describes a tree but for the mount points every container gets.
func everything(t require.TestingT, root string) []string {
	var all []string
	links := map[[2]uint64]string{}
	for _, name := range files(t, root) {
		rel := strings.TrimSuffix(name, "/")
		all = append(all, node(t, filepath.Join(root, rel), links, rel))
	}
	return append(all, node(t, root, links, "."))
}

var oddNames = []string{"a", "b", "d", "d/x", "d/y", "d/x/p", "e", "e/\xff\xfe", "e/ sp ace\n", "!", "-", "..a", "é", strings.Repeat("n", 255), "d/" + strings.Repeat("m", 254), "q/r/s/t"}

// drawTar draws a layer in which all can happen that is allowed. Most lead nowhere
// that isn't a directory, because those that do are refused.
func drawTar(t *rapid.T) []byte {
	var entries []entry
	files, dirs := []string{}, map[string]bool{}
	careful, closed := rapid.IntRange(0, 5).Draw(t, "careful") > 0, map[string]bool{}
	for i := range rapid.IntRange(0, 14).Draw(t, "entries") {
		name := rapid.SampledFrom(oddNames).Draw(t, "name")
		if careful && slices.ContainsFunc(above(name), func(dir string) bool { return closed[dir] }) {
			continue
		}
		h := tar.Header{
			Name: name, Mode: rapid.Int64Range(0, 0o7777).Draw(t, "mode"), Uid: rapid.SampledFrom([]int{0, 1000, 70000}).Draw(t, "uid"), Gid: i,
			ModTime: time.Unix(rapid.SampledFrom([]int64{0, 1, 1_700_000_000, 5_000_000_000}).Draw(t, "sec"), rapid.Int64Range(0, 999_999_999).Draw(t, "nsec")),
			Format:  tar.FormatPAX,
		}
		if rapid.Bool().Draw(t, "attribute") {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.one": strings.Repeat("v", rapid.IntRange(0, 900).Draw(t, "length")), "SCHILY.xattr.security.two": "\x00\x01", "SCHILY.xattr.trusted.t": "3"}
		}
		kinds := []string{"file", "big", "dir", "symlink", "device", "fifo", "whiteout", "opaque", "hard"}
		body := ""
		switch kind := rapid.SampledFrom(kinds).Draw(t, "kind"); {
		case kind == "dir" && !dirs[name]: // its attributes would add up on a file system
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
			dirs[name] = true
		case kind == "symlink":
			closed[name] = true
			h.Typeflag, h.Linkname = tar.TypeSymlink, rapid.SampledFrom([]string{"d", "/e", "../../d/x", "nowhere", strings.Repeat("l", 4000)}).Draw(t, "to")
		case kind == "device":
			closed[name] = true
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, 4095, 0xfffff
		case kind == "fifo":
			closed[name] = true
			h.Typeflag = tar.TypeFifo
		case kind == "whiteout":
			h = tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name))}
			if len(filepath.Base(name)) > 250 {
				continue
			}
		case kind == "opaque" && len(name) < 250 && !(careful && closed[name]):
			h = tar.Header{Typeflag: tar.TypeReg, Name: name + "/.wh..wh..opq"}
		case kind == "hard" && len(files) > 0:
			closed[name] = true
			h = tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: rapid.SampledFrom(files).Draw(t, "same as")}
		case kind == "big":
			body = strings.Repeat(string(rune('a'+i)), rapid.IntRange(0, 20_000).Draw(t, "size")) + strings.Repeat("\x00", rapid.SampledFrom([]int{0, 4096, 300_000}).Draw(t, "hole")) + "end"
			fallthrough
		default:
			closed[name] = true
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
			files = append(files, name)
		}
		entries = append(entries, entry{h, body})
	}
	return tarOf(t, entries...)
}

// above lists the directories on the way to a path.
func above(name string) (dirs []string) {
	for name = filepath.Dir(name); name != "."; name = filepath.Dir(name) {
		dirs = append(dirs, name)
	}
	return dirs
}

// What a container sees doesn't depend on how its layers are kept, and neither does
// what is refused.
func TestImagesShowWhatDirectoriesShow(t *testing.T) {
	base := disk(t, "200M")
	images := openImages(t, filepath.Join(base, "images"))
	dirs := reopen(t, filepath.Join(base, "dirs"), directories)
	ctx := context.Background()
	n, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		layers := [][]byte{drawTar(t)}
		for range rapid.IntRange(0, 2).Draw(t, "more layers") {
			layers = append(layers, drawTar(t))
		}
		archive := layered(t, "app:1", layers...)
		// What is compressed is copied; what isn't stays in the tar.
		packed := layout(t, "app:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil, layers...)
		var seen [3][]string
		var errs [3]error
		for i, c := range []struct {
			s       *image.Store
			archive []byte
		}{{images, archive}, {dirs, archive}, {images, packed}} {
			s := c.s
			if _, errs[i] = text(s.Load(ctx, bytes.NewReader(c.archive), api.LoadOptions{Quiet: true})); errs[i] != nil {
				continue
			}
			img, err := s.Get(ctx, "app:1")
			require.NoError(t, err)
			id := fmt.Sprint("c", n)
			require.NoError(t, s.Prepare(ctx, id, img.ID))
			root, err := s.Mount(ctx, id)
			require.NoError(t, err)
			seen[i] = everything(t, root.Path)
			require.NoError(t, s.Discard(ctx, id))
			_, err = s.Remove(ctx, img.ID.String(), api.ImageRemoveOptions{Force: true}, nil)
			require.NoError(t, err)
		}
		require.Equal(t, errs[1] == nil, errs[0] == nil, "%v, but %v", errs[1], errs[0])
		require.Equal(t, errs[1] == nil, errs[2] == nil, "%v, but %v", errs[1], errs[2])
		if errs[0] != nil {
			refused++
			if len(layers) == 1 { // of several, unpacked at once, either may be refused first
				require.Equal(t, api.Status(errs[1]), api.Status(errs[0]), "%v, but %v", errs[1], errs[0])
				require.Equal(t, api.Status(errs[1]), api.Status(errs[2]), "%v, but %v", errs[1], errs[2])
			}
			return
		}
		require.Equal(t, seen[1], seen[0])
		require.Equal(t, seen[1], seen[2])
	})
	require.Less(t, refused, n*3/4, "most must be comparable")
}

func TestManyEntriesInOneDirectory(t *testing.T) {
	s := openImages(t, t.TempDir())
	var entries []entry
	want := map[string]bool{}
	for i := range 20_000 {
		name := fmt.Sprintf("etc/%s-%d", strings.Repeat("n", i%50), i)
		entries = append(entries, file(name, ""))
		want[filepath.Base(name)] = true
	}
	load(t, s, layered(t, "app:1", tarOf(t, entries...)))
	root := mount(t, s, "c", get(t, s, "app:1").ID).Path
	found, err := os.ReadDir(filepath.Join(root, "etc"))
	require.NoError(t, err)
	for _, e := range found {
		delete(want, e.Name())
	}
	require.Empty(t, want)
	for i := range 100 {
		require.FileExists(t, filepath.Join(root, fmt.Sprintf("etc/%s-%d", strings.Repeat("n", i%50), i)))
	}
}

// A store that began with directories goes on with images, and back; containers have
// layers of both kinds.
func TestKindsOfLayersMix(t *testing.T) {
	root := t.TempDir()
	base := []entry{dir("d/"), file("d/gone", "1"), file("d/kept", "1"), file("low", "1")}
	top := []entry{file("d/.wh.gone", ""), file("mid", "2")}
	last := []entry{file(".wh.low", ""), file("top", "3")}
	s := reopen(t, root, directories)
	load(t, s, layered(t, "one:1", tarOf(t, base...)))
	require.NoError(t, s.Close())
	s = openImages(t, root)
	load(t, s, layered(t, "two:1", tarOf(t, base...), tarOf(t, top...)))
	require.NoError(t, s.Close())
	s = reopen(t, root, directories)
	load(t, s, layered(t, "three:1", tarOf(t, base...), tarOf(t, top...), tarOf(t, last...)))
	require.Len(t, fileNamed(t, root, "image"), 1, "one of three layers is an image")
	require.Equal(t, []string{"d/", "d/kept", "mid", "top"}, files(t, mount(t, s, "c3", get(t, s, "three:1").ID).Path))
	require.Equal(t, []string{"d/", "d/kept", "low", "mid"}, files(t, mount(t, s, "c2", get(t, s, "two:1").ID).Path))
	require.Equal(t, []string{"d/", "d/gone", "d/kept", "low"}, files(t, mount(t, s, "c1", get(t, s, "one:1").ID).Path))
}

// fileNamed finds the files of layers with a name.
func fileNamed(t testing.TB, root, name string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "layers/*", name))
	require.NoError(t, err)
	return found
}

// Each layer is mounted once, whoever uses it, found again by the next process, and
// goes with the last container.
func TestLayersAreMountedOnceAndFoundAgain(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	s := openImages(t, root)
	load(t, s, archiveOf(t, small("a:1", "base", "a"), small("b:1", "base", "b")))
	a, b := get(t, s, "a:1").ID, get(t, s, "b:1").ID
	layers := func() (n int) {
		for _, m := range mountsBelow(t, root) {
			if strings.HasPrefix(m, "erofs ") {
				n++
			}
		}
		return n
	}
	mounted := func(s *image.Store, id string, img digest.Digest) image.Root {
		require.NoError(t, s.Prepare(ctx, id, img))
		r, err := s.Mount(ctx, id)
		require.NoError(t, err)
		return r
	}
	first := mounted(s, "c1", a)
	mounted(s, "c2", b)
	mounted(s, "c3", b)
	require.Equal(t, 3, layers(), "the shared one is there once")
	// The agent is killed: nothing is closed.
	again := openImages(t, root)
	require.Equal(t, 3, layers())
	got, err := again.Mount(ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, first, got)
	require.FileExists(t, filepath.Join(got.Path, "b"))
	require.NoError(t, again.Discard(ctx, "c1"))
	require.NoError(t, again.Discard(ctx, "c2"))
	require.NoError(t, again.Close())
	require.Equal(t, 2, layers(), "what c3 needs")
	third := openImages(t, root)
	require.FileExists(t, filepath.Join(root, "containers/c3/merged/b"))
	require.NoError(t, third.Discard(ctx, "c3"))
	_, err = third.Remove(ctx, "b:1", api.ImageRemoveOptions{}, nil)
	require.NoError(t, err)
	require.NoError(t, third.Close())
	require.Empty(t, mountsBelow(t, root))
}

func TestConcurrentContainersOfSharedLayers(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	s := openImages(t, root)
	load(t, s, archiveOf(t, small("a:1", "base", "a"), small("b:1", "base", "b")))
	ids := []digest.Digest{get(t, s, "a:1").ID, get(t, s, "b:1").ID}
	var g errgroup.Group
	for w := range 8 {
		g.Go(func() error {
			for i := range 10 {
				id := fmt.Sprintf("c%d-%d", w, i)
				if err := s.Prepare(ctx, id, ids[(w+i)%2]); err != nil {
					return err
				}
				r, err := s.Mount(ctx, id)
				if err != nil {
					return err
				}
				if b, err := os.ReadFile(filepath.Join(r.Path, "a")); err != nil || string(b) != "base" {
					return fmt.Errorf("%q: %w", b, err)
				}
				if err := s.Discard(ctx, id); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	require.NoError(t, s.Close())
	require.Empty(t, mountsBelow(t, root))
}

// A damaged image is made again of its blob, whatever is damaged.
func TestDamagedImagesAreMadeAgain(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"gone":          func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"empty":         func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"no superblock": func(t *testing.T, path string) { write(t, path, 1024, make([]byte, 128)) },
		"one bit":       func(t *testing.T, path string) { write(t, path, 1024+48, []byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := openImages(t, root)
			load(t, s, archiveOf(t, small("app:1", "one", "two")))
			require.NoError(t, s.Close())
			for _, path := range fileNamed(t, root, "image") {
				damage(t, path)
			}
			s = openImages(t, root)
			r := mount(t, s, "c", get(t, s, "app:1").ID)
			b, err := os.ReadFile(filepath.Join(r.Path, "b"))
			require.NoError(t, err)
			require.Equal(t, "two", string(b))
		})
	}
}

func write(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
}

// A load that is cut off, or finds the disk full, leaves no file behind.
func TestHalfAnImageIsRemoved(t *testing.T) {
	ctx := context.Background()
	root := disk(t, "24M")
	s := openImages(t, filepath.Join(root, "store"))
	left := func() []string {
		return slices.Concat(onDisk(t, filepath.Join(root, "store"), "staging"), onDisk(t, filepath.Join(root, "store"), "ingest"))
	}
	big := make([]byte, 5<<20)
	for i := range big {
		big[i] = byte(i>>8 ^ i)
	}
	archive := layered(t, "app:1", tarOf(t, file("big", string(big))))
	_, err := text(s.Load(ctx, io.MultiReader(bytes.NewReader(archive[:4<<20]), brokenPipe{}), api.LoadOptions{}))
	require.ErrorIs(t, err, syscall.EPIPE)
	require.Empty(t, left())
	load(t, s, archive)
	full := layered(t, "full:1", tarOf(t, file("x", string(bytes.Repeat(big, 4)))))
	_, err = text(s.Load(ctx, bytes.NewReader(full), api.LoadOptions{}))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Empty(t, left())
	require.Len(t, fileNamed(t, filepath.Join(root, "store"), "image"), 1)
	require.FileExists(t, filepath.Join(mount(t, s, "c", get(t, s, "app:1").ID).Path, "big"))
}

type brokenPipe struct{}

func (brokenPipe) Read([]byte) (int, error) { return 0, syscall.EPIPE }

// An image file that was being written when the process died goes at the next start.
func TestHalfAnImageOfADeadProcessIsRemoved(t *testing.T) {
	root := t.TempDir()
	s := openImages(t, root)
	require.NoError(t, s.Close())
	half := filepath.Join(root, "staging/layer-1")
	require.NoError(t, os.MkdirAll(filepath.Join(half, "fs"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "image"), make([]byte, 1<<20), 0o600))
	openImages(t, root)
	require.NoDirExists(t, half)
}

func TestDeviceAndSetUserIDWorkAboveAnImage(t *testing.T) {
	s := openImages(t, t.TempDir())
	load(t, s, layered(t, "app:1", tarOf(t,
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		entry{tar.Header{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755, Size: 1}, "x"})))
	root := mount(t, s, "c", get(t, s, "app:1").ID).Path
	require.NoError(t, os.WriteFile(filepath.Join(root, "null"), []byte("gone"), 0), "devices are open to those above")
	fi, err := os.Stat(filepath.Join(root, "suid"))
	require.NoError(t, err)
	require.Equal(t, fs.ModeSetuid|0o755, fi.Mode())
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(root, &st))
	require.Zero(t, st.Flags&unix.ST_NOSUID)
	require.True(t, errors.Is(os.WriteFile(filepath.Join(root, "suid"), []byte("y"), 0), nil), "and files are copied up")
}
