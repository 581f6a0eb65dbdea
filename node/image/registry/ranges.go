package registry

import (
	"strconv"
	"strings"
)

// contentRange reads "bytes 5-9/10" or "bytes 5-9/*"; total is -1 if it isn't told.
// ok is false for whatever can't be a range.
func contentRange(h string) (first, last, total int64, ok bool) {
	h, found := strings.CutPrefix(strings.TrimSpace(h), "bytes ")
	if !found {
		return 0, 0, 0, false
	}
	span, size, found := strings.Cut(h, "/")
	if !found {
		return 0, 0, 0, false
	}
	if first, last, ok = span64(span); !ok {
		return 0, 0, 0, false
	}
	if size == "*" {
		return first, last, -1, true
	}
	total, ok = decimal(size)
	return first, last, total, ok && last < total
}

// received reads the Range header of an upload, "0-41" or "bytes=0-41", and says how
// many bytes of it the registry has. Some say "0-0" for nothing as for one byte: it
// is taken for nothing.
func received(h string) (n int64, ok bool) {
	first, last, ok := span64(strings.TrimPrefix(strings.TrimSpace(h), "bytes="))
	if !ok || first != 0 {
		return 0, false
	}
	if last == 0 {
		return 0, true
	}
	return last + 1, true
}

func span64(s string) (first, last int64, ok bool) {
	a, b, found := strings.Cut(s, "-")
	if !found {
		return 0, 0, false
	}
	first, okA := decimal(a)
	last, okB := decimal(b)
	return first, last, okA && okB && first <= last && last < 1<<62
}

// decimal is strict: digits only.
func decimal(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
