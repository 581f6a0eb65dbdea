package jsonlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

// Writer appends a process's output to a log. Its methods may be called
// concurrently.
type Writer struct {
	path     string
	maxSize  int64
	maxFiles int

	mu      sync.Mutex
	file    *os.File // nil after a rotation that could not make the next one
	size    int64
	pending map[string][]byte // per stream, a line whose end has not come yet
	batch   []byte            // entries on their way to the file
}

// NewWriter opens the log at path to append to. maxSize is in bytes, 0 for no
// limit; maxFiles counts the newest file, too.
func NewWriter(path string, maxSize int64, maxFiles int) (*Writer, error) {
	w := &Writer{path: path, maxSize: maxSize, maxFiles: max(maxFiles, 1), pending: map[string][]byte{}}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	w.file, w.size = f, info.Size()
	return nil
}

// Append adds output of a stream that came at a time. A line is written once its
// end has come. After an error the output is lost, but later calls try again.
func (w *Writer) Append(stream string, output []byte, at time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	at = at.UTC()
	var errs []error
	for len(output) > 0 {
		line := output
		if i := bytes.IndexByte(output, '\n'); i >= 0 {
			line = output[:i+1]
		}
		line = line[:min(len(line), maxLine-len(w.pending[stream]))]
		output = output[len(line):]
		whole := line[len(line)-1] == '\n' || len(w.pending[stream])+len(line) == maxLine
		if held := w.pending[stream]; len(held) > 0 || !whole {
			held = append(held, line...)
			w.pending[stream], line = held, held
		}
		if whole {
			errs = append(errs, w.add(stream, line, at))
			w.pending[stream] = w.pending[stream][:0]
		}
	}
	return errors.Join(append(errs, w.flush())...)
}

// End writes what a stream left without a newline.
func (w *Writer) End(stream string, at time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending[stream]) == 0 {
		return nil
	}
	err := w.add(stream, w.pending[stream], at.UTC())
	delete(w.pending, stream)
	return errors.Join(err, w.flush())
}

// Close closes the file.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// batchSize is when entries are written at the latest, in bytes.
const batchSize = 256 << 10

func (w *Writer) add(stream string, line []byte, at time.Time) error {
	before := len(w.batch)
	w.batch = appendEntry(w.batch, stream, line, at)
	full := w.maxSize > 0 && w.size+int64(len(w.batch)) > w.maxSize
	if !full {
		if len(w.batch) < batchSize {
			return nil
		}
		return w.flush()
	}
	// The entry that does not fit is the first one of the next file.
	last := bytes.Clone(w.batch[before:])
	w.batch = w.batch[:before]
	err := w.flush()
	if w.size > 0 {
		err = errors.Join(err, w.rotate())
	}
	w.batch = append(w.batch, last...)
	return err
}

func (w *Writer) flush() error {
	if len(w.batch) == 0 {
		return nil
	}
	defer func() { w.batch = w.batch[:0] }()
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	n, err := w.file.Write(w.batch)
	w.size += int64(n)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// rotate makes place for a new file at the path.
func (w *Writer) rotate() error {
	if w.file != nil {
		if err := w.file.Close(); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
		w.file = nil
	}
	if w.maxFiles == 1 {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
		return w.open()
	}
	for i := w.maxFiles - 1; i > 0; i-- {
		err := os.Rename(name(w.path, i-1), name(w.path, i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	return w.open()
}

// name is where the i-th newest file of a log is.
func name(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

// Remove deletes all files of a log.
func Remove(path string) error {
	for i := 0; ; i++ {
		err := os.Remove(name(path, i))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove log: %w", err)
		}
	}
}
