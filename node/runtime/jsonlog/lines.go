package jsonlog

import (
	"bytes"
	"io"
	"os"
)

// longestLine is the most bytes of a file's line that can be an entry: every byte
// of output escaped, and the rest of the object.
const longestLine = maxLine*6 + 1024

// lineReader cuts a growing file into lines. The zero value starts where the file
// is.
type lineReader struct {
	buf        []byte
	start, end int  // of what was read and not given out
	skipping   bool // in a line that is too long to be one
}

// next gives the next whole line, valid until the next call, or io.EOF while none
// is there yet.
func (l *lineReader) next(f io.Reader) ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.start:l.end], '\n'); i >= 0 {
			line := l.buf[l.start : l.start+i]
			l.start += i + 1
			if l.skipping {
				l.skipping = false
				continue
			}
			return line, nil
		}
		if l.skipping {
			l.start = l.end
		}
		if err := l.fill(f); err != nil {
			return nil, err
		}
	}
}

func (l *lineReader) fill(f io.Reader) error {
	if l.buf == nil {
		l.buf = make([]byte, longestLine)
	}
	if l.start > 0 {
		l.end = copy(l.buf, l.buf[l.start:l.end])
		l.start = 0
	}
	if l.end == len(l.buf) {
		l.skipping, l.end = true, 0
	}
	n, err := f.Read(l.buf[l.end:])
	l.end += n
	if n > 0 {
		return nil
	}
	return err
}

// skipToTail drops files and moves in the oldest one left, so that n entries
// remain.
func (r *reader) skipToTail(n int) error {
	for i := len(r.files) - 1; i >= 0; i-- {
		found, at, err := tailOffset(r.files[i], n)
		if err != nil {
			return err
		}
		n -= found
		if n > 0 {
			continue
		}
		for _, f := range r.files[:i] {
			_ = f.Close() // opened for reading alone
		}
		r.files = r.files[i:]
		_, err = r.files[0].Seek(at, io.SeekStart)
		return err
	}
	return nil
}

// tailOffset finds where the last n lines of a file begin, or how many there are
// if fewer.
func tailOffset(f *os.File, n int) (found int, at int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 64<<10)
	for pos := end; pos > 0; {
		size := min(int64(len(buf)), pos)
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			// A newline ends a line and is where the next one begins.
			if found == n {
				return n, pos + i + 1, nil
			}
			found++
		}
	}
	return found, 0, nil
}
