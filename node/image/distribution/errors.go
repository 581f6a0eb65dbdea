package distribution

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// The codes of the specification.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooMany             = "TOOMANYREQUESTS"
	codeUnknown             = "UNKNOWN" // not the specification's: this side failed
)

// problem is an error as clients are told it.
type problem struct {
	status        int
	code, message string
}

func (p *problem) Error() string { return p.message }

func fault(status int, code, format string, a ...any) error {
	return &problem{status, code, fmt.Sprintf(format, a...)}
}

// asProblem gives any error a status and a code.
func asProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	for _, c := range []struct {
		is     func(error) bool
		status int
		code   string
	}{
		{errdefs.IsNotFound, http.StatusNotFound, codeNameUnknown},
		{errdefs.IsInvalidArgument, http.StatusBadRequest, codeManifestInvalid},
		{errdefs.IsDataLoss, http.StatusBadRequest, codeManifestInvalid},
		{errdefs.IsPermissionDenied, http.StatusForbidden, codeDenied},
		{errdefs.IsConflict, http.StatusConflict, codeDenied},
		{errdefs.IsUnavailable, http.StatusServiceUnavailable, codeUnknown},
	} {
		if c.is(err) {
			return &problem{c.status, c.code, err.Error()}
		}
	}
	return &problem{http.StatusInternalServerError, codeUnknown, err.Error()}
}

// fail is the one place where errors are written and logged.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := asProblem(err)
	if p.status >= 500 && r.Context().Err() == nil {
		s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(struct {
		Errors []item `json:"errors"`
	}{[]item{{p.code, p.message}}})
	if err != nil {
		s.log.Error("an error could not be encoded", "err", err) // two strings always can
		return
	}
	for _, h := range []string{"Content-Length", "Etag", "Docker-Content-Digest"} {
		w.Header().Del(h)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone needs no answer
}

// unsupported is the answer to a method that a path doesn't know.
func (s *Server) unsupported(w http.ResponseWriter, r *http.Request, k kind) error {
	w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(handlers[k])), ", "))
	return fault(http.StatusMethodNotAllowed, codeUnsupported, "%s is not supported here", r.Method)
}

// json answers with a document.
func (c *call) json(mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", mediaType)
	_, _ = c.w.Write(append(b, '\n')) // a client that is gone needs no answer
	return nil
}
