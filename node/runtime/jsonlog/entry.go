package jsonlog

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// The streams a line can come from.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Entry is one line of a log. Line has its newline, unless the process wrote none
// or the line was longer than maxLine and goes on in the next entry of its stream.
type Entry struct {
	Stream string
	Line   []byte
	Time   time.Time
}

// maxLine is the most bytes of output in one entry, as in Docker.
const maxLine = 16 << 10

// decode reads one line of a log file; ok is false if it is none.
func decode(line []byte) (e Entry, ok bool) {
	var v struct {
		Log    *string   `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(line, &v); err != nil || v.Log == nil || v.Time.IsZero() {
		return Entry{}, false
	}
	if v.Stream != Stdout && v.Stream != Stderr {
		return Entry{}, false
	}
	return Entry{Stream: v.Stream, Line: []byte(*v.Log), Time: v.Time}, true
}

// appendEntry adds an entry's line to b. Bytes that are not UTF-8 become U+FFFD.
func appendEntry(b []byte, stream string, line []byte, at time.Time) []byte {
	b = append(b, `{"log":"`...)
	b = appendEscaped(b, line)
	b = append(b, `","stream":"`...)
	b = append(b, stream...)
	b = append(b, `","time":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

func appendEscaped(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(s[i:])
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		b = append(b, s[start:i]...)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, "\ufffd"...)
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}
