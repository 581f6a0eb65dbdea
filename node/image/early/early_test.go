package early_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/image/early"
	"github.com/shoal-engine/shoal/node/image/erofs"
)

func TestMain(m *testing.M) {
	if early.IsChild(os.Args) {
		os.Exit(early.Main(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "read-to-end" { // a process to be killed
		f, err := os.Open(os.Args[2])
		if err == nil {
			_, err = io.Copy(io.Discard, f)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const tarStart = 512

// world is a keeper with an EROFS file system over its file, in which "file" is all but
// the first block of it.
type world struct {
	dir, content string // content is the path of "file"
	data         *os.File
	want         []byte
	client       *early.Client
	unmount      func()
}

func newWorld(t *testing.T, size int) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{dir: t.TempDir(), want: make([]byte, size)}
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(w.want)
	var err error
	w.data, err = os.OpenFile(filepath.Join(w.dir, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { w.data.Close() })
	program, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer program.Close()
	file, client, err := early.Start(w.dir, program, w.data, int64(size))
	require.NoError(t, err)
	w.client = client
	t.Cleanup(func() { client.Close() })
	w.mount(t, file)
	require.NoError(t, file.Close())
	return w
}

func (w *world) mount(t *testing.T, file *os.File) {
	t.Helper()
	image := filepath.Join(w.dir, "image")
	f, err := os.Create(image)
	require.NoError(t, err)
	defer f.Close()
	e := erofs.New(f, erofs.Options{Tar: true})
	_, err = e.CreateAt(erofs.Root, "file", int64(len(w.want)-tarStart), tarStart)
	require.NoError(t, err)
	_, err = e.Finish()
	require.NoError(t, err)
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fsfd)
	require.NoError(t, unix.FsconfigSetString(fsfd, "source", image))
	require.NoError(t, unix.FsconfigSetString(fsfd, "device", "/proc/self/fd/"+strconv.Itoa(int(file.Fd()))))
	require.NoError(t, unix.FsconfigSetFlag(fsfd, "ro"))
	require.NoError(t, unix.FsconfigCreate(fsfd))
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	require.NoError(t, err)
	defer unix.Close(mfd)
	target := filepath.Join(w.dir, "fs")
	require.NoError(t, os.Mkdir(target, 0o755))
	require.NoError(t, unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
	done := false
	w.unmount = func() {
		if !done {
			done = true
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
		}
	}
	t.Cleanup(w.unmount)
	w.content = filepath.Join(target, "file")
}

// arrive makes a range of the data be there.
func (w *world) arrive(t *testing.T, c *early.Client, s early.Span) {
	t.Helper()
	_, err := w.data.WriteAt(w.want[s.Start:s.End], s.Start)
	require.NoError(t, err)
	require.NoError(t, c.Have(s))
}

// give answers whatever is needed until the keeper is gone.
func (w *world) give(c *early.Client) {
	for {
		s, gaveUp, err := c.Next()
		if err != nil || gaveUp {
			return
		}
		if _, err := w.data.WriteAt(w.want[s.Start:s.End], s.Start); err != nil {
			return
		}
		if c.Have(s) != nil {
			return
		}
	}
}

func (w *world) all() early.Span { return early.Span{End: int64(len(w.want))} }

func TestReadsWhatIsAskedFor(t *testing.T) {
	w := newWorld(t, 4<<20+tarStart)
	go w.give(w.client)
	f, err := os.Open(w.content)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 10000)
	_, err = f.ReadAt(b, 3<<20)
	require.NoError(t, err)
	require.Equal(t, w.want[tarStart+3<<20:][:10000], b)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(w.data.Fd()), &st))
	require.Less(t, st.Blocks*512, int64(2<<20), "more was asked for than was read")
	got, err := os.ReadFile(w.content)
	require.NoError(t, err)
	require.True(t, bytes.Equal(w.want[tarStart:], got))
}

// TestWaitsForTheNextAgent kills nothing but closes an agent's connection, which is all
// that a keeper sees of its death.
func TestWaitsForTheNextAgent(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.arrive(t, w.client, early.Span{Start: 0, End: 512 << 10})
	f, err := os.Open(w.content)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(make([]byte, 100), 0) // so the keeper knows of what arrived
	require.NoError(t, err)
	read := make(chan error, 1)
	go func() {
		got, err := os.ReadFile(w.content)
		if err == nil && !bytes.Equal(got, w.want[tarStart:]) {
			err = errors.New("read something else")
		}
		read <- err
	}()
	_, _, err = w.client.Next() // it waits
	require.NoError(t, err)
	require.NoError(t, w.client.Close())
	next, have, err := early.Dial(w.dir)
	require.NoError(t, err)
	defer next.Close()
	require.Equal(t, early.Spans{{Start: 0, End: 512 << 10}}, have)
	require.Equal(t, int64(1<<20), next.Size())
	select {
	case err := <-read:
		t.Fatalf("the read ended without the bytes: %v", err)
	default:
	}
	go w.give(next)
	require.NoError(t, <-read)
}

func TestFails(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.arrive(t, w.client, early.Span{Start: 0, End: 512 << 10})
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(w.content)
		read <- err
	}()
	require.NoError(t, w.client.Fail())
	require.ErrorIs(t, <-read, unix.EIO)
	f, err := os.Open(w.content)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1000)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err, "what is there stays readable")
	require.Equal(t, w.want[tarStart:][:1000], b)
}

// TestKillsWhoWaits wants a process that waits for bytes to die of SIGKILL.
func TestKillsWhoWaits(t *testing.T) {
	w := newWorld(t, 1<<20)
	cmd := exec.Command("/proc/self/exe", "read-to-end", w.content)
	require.NoError(t, cmd.Start())
	_, _, err := w.client.Next()
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("it waits on, though it was killed")
	}
}

// TestEndsWithItsFile wants a keeper to end when the file system is unmounted.
func TestEndsWithItsFile(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.arrive(t, w.client, w.all())
	got, err := os.ReadFile(w.content)
	require.NoError(t, err)
	require.True(t, bytes.Equal(got, w.want[tarStart:]))
	w.unmount()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, func() { w.client.Close() })()
	for err == nil {
		_, _, err = w.client.Next()
	}
	require.ErrorIs(t, err, io.EOF)
	_, _, err = early.Dial(w.dir)
	require.Error(t, err)
}

// TestKeeperDies wants reads to fail, not to find zeros.
func TestKeeperDies(t *testing.T) {
	w := newWorld(t, 8<<20)
	w.arrive(t, w.client, early.Span{Start: 0, End: 64 << 10})
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(w.content)
		read <- err
	}()
	_, _, err := w.client.Next()
	require.NoError(t, err)
	kill(t, w.dir)
	require.ErrorIs(t, <-read, unix.EIO)
	_, err = os.ReadFile(w.content)
	require.ErrorIs(t, err, unix.EIO)
}

// kill ends the keeper of a directory with SIGKILL.
func kill(t *testing.T, dir string) {
	t.Helper()
	matches, err := filepath.Glob("/proc/[0-9]*/fd/4")
	require.NoError(t, err)
	for _, m := range matches {
		if to, err := os.Readlink(m); err == nil && to == filepath.Join(dir, "data") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(m))))
			require.NoError(t, err)
			if pid != os.Getpid() {
				require.NoError(t, unix.Kill(pid, unix.SIGKILL))
				return
			}
		}
	}
	t.Fatal("no keeper found")
}
