package early

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// socketName is where a keeper listens, in its directory.
const socketName = "keeper"

// argv is how an executable knows that it shall be a keeper.
var argv = []string{"shoal-supervisor", "early"}

// IsChild says whether this process was started to be a keeper. Its executable then
// calls Main with the arguments behind the first two.
func IsChild(args []string) bool {
	return len(args) > 1 && args[0] == argv[0] && args[1] == argv[1]
}

// Client is an agent's end of a keeper. Methods may be called concurrently.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	size int64

	mu sync.Mutex // held while a message is written
}

// Start starts a keeper for a file of size bytes, of which nothing is there yet, and
// returns what has to be opened to read the file: an open file on FUSE. Once all that
// was made of it is closed, the keeper ends. program is the executable to start.
func Start(dir string, program, data *os.File, size int64) (file *os.File, _ *Client, err error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer dev.Close()
	l, err := listen(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	if err := spawn(dir, program, []*os.File{dev, data, l}, size); err != nil {
		return nil, nil, fmt.Errorf("start keeper: %w", err)
	}
	if file, err = mount(dev); err != nil {
		return nil, nil, fmt.Errorf("mount keeper's file: %w", err)
	}
	c, _, err := Dial(dir)
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, c, nil
}

func spawn(dir string, program *os.File, files []*os.File, size int64) error {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/fd/" + strconv.Itoa(fuseFD+len(files))) // by its number in the child
	cmd.Args = append(append([]string{}, argv...), strconv.FormatInt(size, 10))
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append(files, program)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // reaped if it ends before us
	return nil
}

// mount makes a file system that consists of one file, and opens that. Nobody else can
// see it.
func mount(dev *os.File) (*os.File, error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	for _, o := range [][2]string{
		{"source", "shoal"}, {"fd", strconv.Itoa(int(dev.Fd()))}, {"rootmode", strconv.FormatUint(unix.S_IFREG|0o400, 8)},
		{"user_id", "0"}, {"group_id", "0"}, {"max_read", strconv.Itoa(maxRead)},
	} {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mfd)
	return os.Open("/proc/self/fd/" + strconv.Itoa(mfd))
}

// through is a socket's path in a directory, short enough for one, until done is called.
func through(dir string) (path string, done func(), err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd), socketName), func() { _ = unix.Close(fd) }, nil
}

func listen(dir string) (*os.File, error) {
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	path, closeDir, err := through(dir)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// Dial connects to the keeper of a directory, and says what is there.
func Dial(dir string) (*Client, Spans, error) {
	path, closeDir, err := through(dir)
	if err != nil {
		return nil, nil, err
	}
	defer closeDir()
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil, nil, err
	}
	c := &Client{conn: conn, r: bufio.NewReader(conn)}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	defer conn.SetReadDeadline(time.Time{})
	var have Spans
	for {
		m, err := readMessage(c.r)
		if err == nil && m.kind != kindHave {
			err = errMessage
		}
		if err != nil {
			return nil, nil, errors.Join(err, conn.Close())
		}
		if m.span.Start == m.span.End {
			c.size = m.span.Start
			return c, have, nil
		}
		have.Add(m.span)
	}
}

// Size is the file's.
func (c *Client) Size() int64 { return c.size }

// Have says that bytes are there and proven.
func (c *Client) Have(s Span) error { return c.write(message{kindHave, s}) }

// Fail says that what isn't there never will be: reads of it fail from now on.
func (c *Client) Fail() error { return c.write(message{kind: kindFail}) }

func (c *Client) write(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err := c.conn.Write(m.encode())
	return err
}

// Next waits for what the keeper says: which bytes somebody waits for or, with gaveUp,
// has waited for in vain. It fails when the keeper is gone.
func (c *Client) Next() (s Span, gaveUp bool, err error) {
	for {
		m, err := readMessage(c.r)
		if err != nil {
			return Span{}, false, err
		}
		if m.kind == kindNeed || m.kind == kindGaveUp {
			return m.span, m.kind == kindGaveUp, nil
		}
	}
}

// Close leaves the keeper alone.
func (c *Client) Close() error { return c.conn.Close() }
