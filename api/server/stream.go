package server

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/shoal-engine/shoal/api"
)

// flushed writes every piece through to the client at once.
type flushed struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func flushing(w http.ResponseWriter) flushed { return flushed{w, http.NewResponseController(w)} }

func (f flushed) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

// begin sends the headers of a stream before its first byte.
func (f flushed) begin(kind string) {
	f.w.Header().Set("Content-Type", kind)
	f.w.WriteHeader(http.StatusOK)
	_ = f.c.Flush() // what fails here fails again with the first byte
}

// progressLine carries an error in the new field and in the one that docker-py reads.
type progressLine struct {
	jsonstream.Message
	ErrorMessage string `json:"error,omitempty"`
}

// progress answers with the lines of a long job. As long as there was none, an
// error is an error of the request; afterwards it is the last line.
func (c *call) progress(s api.Stream[api.Progress], err error) error {
	if err != nil {
		return err
	}
	defer s.Close()
	w := flushing(c.w)
	for first := true; ; first = false {
		m, err := s.Recv()
		if err != nil && !errors.Is(err, io.EOF) && first {
			return err
		}
		if first {
			w.begin("application/json")
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			c.log.Warn("job failed", "error", err)
			m = api.Progress{Error: &jsonstream.Error{Code: api.Status(err), Message: err.Error()}}
		}
		line := progressLine{Message: m}
		if m.Error != nil {
			line.ErrorMessage = m.Error.Message
		}
		if werr := writeLine(w, "", line); werr != nil || err != nil {
			return werr
		}
	}
}

// writeLine writes one value of a stream of JSON, after a prefix.
func writeLine(w io.Writer, prefix string, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append([]byte(prefix), b...))
	return err
}

// fullDuplex lets an answer begin while the request's body is still being read.
func (c *call) fullDuplex() {
	// Only HTTP/1 needs it and only servers other than net/http's lack it.
	_ = http.NewResponseController(c.w).EnableFullDuplex()
}

// copyTar answers with an archive.
func (c *call) copyTar(r io.ReadCloser) error {
	defer r.Close()
	stop := context.AfterFunc(c.r.Context(), func() { _ = r.Close() })
	defer stop()
	c.w.Header().Set("Content-Type", string(tarType))
	_, err := io.Copy(c.w, r)
	return err
}
