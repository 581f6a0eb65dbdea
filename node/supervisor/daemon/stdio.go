package daemon

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// drainTime is how long after a process's end its output is waited for, if
// something else keeps it open: a child that it left behind.
const drainTime = 2 * time.Second

// ends are our ends of a process's streams; files that it does not have are nil.
type ends struct {
	console        *os.File
	stdin          *os.File
	stdout, stderr *os.File
}

func (e *ends) close() {
	for _, f := range []*os.File{e.console, e.stdin, e.stdout, e.stderr} {
		if f != nil {
			_ = f.Close() // nothing of ours is in it
		}
	}
}

// pipes makes the streams that a process wants. theirs are to be closed once the
// process has them.
func pipes(want wire.Streams, size wire.Size, terminal bool) (theirs libcontainer.Stdio, ours ends, err error) {
	theirs = libcontainer.Stdio{Terminal: terminal, Height: size.Height, Width: size.Width}
	if terminal {
		return theirs, ours, nil // the terminal is made inside
	}
	for _, p := range []struct {
		want        bool
		read, write **os.File
	}{
		{want.Stdin, &theirs.Stdin, &ours.stdin},
		{want.Stdout, &ours.stdout, &theirs.Stdout},
		{want.Stderr, &ours.stderr, &theirs.Stderr},
	} {
		if !p.want {
			continue
		}
		if *p.read, *p.write, err = os.Pipe(); err != nil {
			closeStdio(theirs)
			ours.close()
			return libcontainer.Stdio{}, ends{}, err
		}
	}
	return theirs, ours, nil
}

func closeStdio(s libcontainer.Stdio) {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			_ = f.Close() // the process has it now, or never will
		}
	}
}

// chunks are buffers for output, which only streams need that something comes
// from.
type chunks struct{ pool sync.Pool }

const chunkSize = 32 << 10

func (c *chunks) get() []byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, chunkSize)
}

func (c *chunks) put(b []byte) { c.pool.Put(&b) }

// pump hands all that comes from a file to emit, until its end. After a read
// deadline it takes what is there already.
func (c *chunks) pump(f *os.File, emit func([]byte)) {
	for {
		b, n, err := c.read(f)
		if n > 0 {
			emit(b[:n])
		}
		if b != nil {
			c.put(b)
		}
		if err != nil {
			return
		}
	}
}

// read is a read that holds a buffer only once there is something to read.
func (c *chunks) read(f *os.File) (b []byte, n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	try := func(fd uintptr) bool {
		b = c.get()
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			c.put(b)
			b, n = nil, 0
			return false
		}
		if n <= 0 && err == nil {
			err = io.EOF
		}
		n = max(n, 0)
		return true
	}
	waitErr := raw.Read(try)
	if errors.Is(waitErr, os.ErrDeadlineExceeded) {
		waitErr = raw.Control(func(fd uintptr) {
			if !try(fd) {
				err = os.ErrDeadlineExceeded
			}
		})
	}
	if waitErr != nil {
		return b, n, waitErr
	}
	return b, n, err
}

// setSize tells a terminal its size.
func setSize(console *os.File, s wire.Size) error {
	raw, err := console.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
	if err != nil {
		return libcontainer.ErrNotRunning // the terminal is closed
	}
	return set
}
