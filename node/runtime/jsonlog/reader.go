package jsonlog

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
)

// Options choose what is read of a log.
type Options struct {
	Since, Until time.Time // zero: no bound
	// Tail is how many of the newest entries are read of those that are there,
	// of both streams and before any other choice; negative means all.
	Tail           int
	Stdout, Stderr bool
	// Done, if not nil, keeps reading what is appended until it is closed, which
	// says that the process has ended and all it wrote is in the log.
	Done <-chan struct{}
}

// Read reads a log in order. It ends at the log's end or, with Options.Done,
// after that was closed, and in any case when ctx ends, with its error, or past
// Until. A log that does not exist is empty. Lines that are no entries are
// skipped. An entry's bytes belong to the caller.
func Read(ctx context.Context, path string, o Options) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r := &reader{path: path}
		defer r.close()
		err := r.run(ctx, o, func(e Entry) bool {
			if e.Time.Before(o.Since) || e.Stream == Stdout && !o.Stdout || e.Stream == Stderr && !o.Stderr {
				return true
			}
			if !o.Until.IsZero() && e.Time.After(o.Until) {
				return false
			}
			return yield(e, nil)
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(Entry{}, err)
		}
	}
}

// errStop ends a reader that was told to.
var errStop = errors.New("stop")

type reader struct {
	path  string
	files []*os.File // to be read, oldest first; the last is the newest there was
	lines lineReader
}

func (r *reader) close() {
	for _, f := range r.files {
		_ = f.Close() // opened for reading alone
	}
}

func (r *reader) run(ctx context.Context, o Options, emit func(Entry) bool) error {
	var news <-chan struct{}
	if o.Done != nil {
		// Watch first: what is written between the two is seen twice, never missed.
		w, err := newWatch(r.path)
		if err != nil {
			return err
		}
		defer w.close()
		news = w.news
	}
	if err := r.openAll(); err != nil {
		return err
	}
	if o.Tail >= 0 {
		if err := r.skipToTail(o.Tail); err != nil {
			return err
		}
	}
	var until <-chan time.Time
	if !o.Until.IsZero() {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		until = t.C
	}
	done := o.Done
	for {
		if err := r.drain(ctx, emit); err != nil {
			return err
		}
		if done == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-until:
			return nil
		case <-news:
		case <-done:
			done = nil // once more, then it is complete
		}
	}
}

// openAll opens every file there is as of one moment.
func (r *reader) openAll() error {
	for {
		var newestFirst []*os.File
		// A rotation in progress leaves one gap in the numbers, never two.
		for i, gap := 0, false; ; i++ {
			f, err := os.Open(name(r.path, i))
			if errors.Is(err, fs.ErrNotExist) {
				if gap {
					break
				}
				gap = true
				continue
			}
			gap = false
			if err != nil {
				r.close()
				return err
			}
			newestFirst = append(newestFirst, f)
		}
		for i := len(newestFirst) - 1; i >= 0; i-- {
			r.files = append(r.files, newestFirst[i])
		}
		if len(newestFirst) == 0 || current(newestFirst[0], r.path) {
			return nil
		}
		if _, err := os.Stat(name(r.path, 0)); errors.Is(err, fs.ErrNotExist) {
			return nil // between two files, or the writer gave up there
		}
		r.close() // rotated meanwhile
		r.files = nil
	}
}

// current says whether f is the file at path now.
func current(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// drain emits all whole lines there are, and leaves the newest file open.
func (r *reader) drain(ctx context.Context, emit func(Entry) bool) error {
	for {
		if len(r.files) == 0 {
			f, err := os.Open(r.path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			r.files = []*os.File{f}
		}
		// Before reading: a file that was replaced by then is complete.
		complete := len(r.files) > 1 || !current(r.files[0], r.path)
		if err := r.readFile(ctx, emit); err != nil {
			return err
		}
		if !complete {
			return nil
		}
		if len(r.files) == 1 {
			next, err := r.successor()
			if err != nil || next == nil {
				return err
			}
			r.files = append(r.files, next)
		}
		_ = r.files[0].Close() // opened for reading alone
		r.files = r.files[1:]
		r.lines = lineReader{}
	}
}

// successor opens the file that followed the one being read; nil if it is not
// there yet. A file that was deleted is followed by the oldest one left.
func (r *reader) successor() (*os.File, error) {
	oldest := 0
	for i := 1; ; i++ {
		info, err := os.Stat(name(r.path, i))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		oldest = i
		mine, err := r.files[0].Stat()
		if err != nil {
			return nil, err
		}
		if os.SameFile(info, mine) {
			oldest = i - 1
			break
		}
	}
	f, err := os.Open(name(r.path, oldest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if current(r.files[0], f.Name()) {
		return nil, f.Close() // moved under our hands: look again at the next news
	}
	return f, nil
}

func (r *reader) readFile(ctx context.Context, emit func(Entry) bool) error {
	for {
		line, err := r.lines.next(r.files[0])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if e, ok := decode(line); ok && !emit(e) {
			return errStop
		}
	}
}
