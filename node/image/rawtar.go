package image

import (
	"archive/tar"
	"errors"
	"io"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// A layer that comes as a tar without compression is not written a second time: its
// image file has only the tree, and says where in the tar, which is a blob, the
// contents of files are. Kernels take the tar as another device of the image.

// tarBlock is what everything in a tar begins at a multiple of.
const tarBlock = 512

// rawTar reads a tar, passes over what files contain, and knows where it is.
type rawTar struct {
	r    io.Reader
	skip func(n int64) // of r; nil if it has to be read
	buf  []byte        // was read of r, and not of this
	mem  [8 * tarBlock]byte
	at   int64 // of the next byte
	left int64 // how many there may be
	// pad is what follows the contents of the last file up to the next block: it shows
	// to those who map the file into memory, and must be zeros.
	pad   span
	dirty bool // one wasn't
}

// skipper is a reader that can pass over what is to come.
type skipper interface {
	io.Reader
	// pass goes n bytes further, also beyond the end: the next Read finds out.
	pass(n int64)
}

func newRawTar(r io.Reader, limit int64) *rawTar {
	t := &rawTar{r: r, left: limit}
	if s, ok := r.(skipper); ok {
		t.skip = s.pass
	}
	return t
}

// peek returns up to n of the first bytes and leaves them to be read.
func (t *rawTar) peek(n int) ([]byte, error) {
	m, err := readFull(t.r, t.mem[:n])
	t.buf = t.mem[:m]
	if err == io.EOF {
		err = nil
	}
	return t.buf, err
}

func (t *rawTar) Read(b []byte) (n int, err error) {
	switch {
	case len(t.buf) == 0 && len(b) >= len(t.mem):
		n, err = t.r.Read(b)
	case len(t.buf) == 0:
		n, err = t.r.Read(t.mem[:])
		t.buf = t.mem[:n]
		fallthrough
	default:
		n = copy(b, t.buf)
		t.buf = t.buf[n:]
		if n > 0 {
			err = nil // if there is one, it comes again
		}
	}
	t.look(b[:n])
	t.at += int64(n)
	if t.left -= int64(n); t.left < 0 {
		return n, errTooLong
	}
	return n, err
}

var errTooLong = api.InvalidArgument("archive is larger than allowed")

// look sees whether b, which comes next, has anything in the padding.
func (t *rawTar) look(b []byte) {
	from, to := max(t.pad.start-t.at, 0), min(t.pad.end-t.at, int64(len(b)))
	for i := from; i < to; i++ {
		t.dirty = t.dirty || b[i] != 0
	}
}

// Seek goes forward from here, which is all that archive/tar wants.
func (t *rawTar) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 || t.skip == nil {
		return 0, errors.ErrUnsupported
	}
	if n > t.left {
		return 0, errTooLong
	}
	t.at += n
	t.left -= n
	if m := min(n, int64(len(t.buf))); m > 0 {
		t.buf = t.buf[m:]
		n -= m
	}
	if n == 0 {
		return t.at, nil
	}
	t.skip(n)
	return t.at, nil
}

// errPadding means that contents can't be used as they lie in a tar.
var errPadding = errors.New("what follows a file's contents in the archive is not zeros")

// inTar are contents that lie in a tar as they are, from at on.
type inTar struct {
	io.Reader
	at int64
}

// contents are those of the entry that h is of.
func (t *rawTar) contents(h *tar.Header, r io.Reader) io.Reader {
	if sparse(h) {
		return r
	}
	end := t.at + h.Size
	t.pad = span{end, (end + tarBlock - 1) / tarBlock * tarBlock}
	return inTar{r, t.at}
}

// sparse says whether a file has holes that are not in the tar.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// end is called when all was read.
func (t *rawTar) end() error {
	if t.dirty || t.at < t.pad.end {
		return errPadding
	}
	return nil
}
