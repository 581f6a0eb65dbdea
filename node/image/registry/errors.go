package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
)

const (
	maxErrorBody = 64 << 10
	maxErrorText = 1 << 10
)

// Error is what a registry refused a request with.
type Error struct {
	Status  int
	Code    string // of the distribution specification; empty if the registry gave none
	Message string
}

// Error is Docker's wording: "manifest unknown: manifest unknown".
func (e *Error) Error() string {
	code := strings.ReplaceAll(strings.ToLower(e.Code), "_", " ")
	switch {
	case code != "" && e.Message != "":
		return code + ": " + e.Message
	case code != "":
		return code
	default:
		return fmt.Sprintf("unexpected status from the registry: %d %s", e.Status, http.StatusText(e.Status))
	}
}

// refusal is the error of an answer that is not the one hoped for.
func refusal(res *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	if err != nil {
		raw = nil // the status says enough
	}
	return judged(parseError(res.StatusCode, raw))
}

// parseError reads the body of a refusal as far as it is one.
func parseError(status int, raw []byte) *Error {
	e := &Error{Status: status}
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // as some token servers say it
	}
	if json.Unmarshal(raw, &body) == nil {
		if len(body.Errors) > 0 {
			e.Code, e.Message = printable(body.Errors[0].Code), printable(body.Errors[0].Message)
		} else {
			e.Message = printable(body.Details)
		}
	}
	if e.Code == "" {
		switch status {
		case http.StatusUnauthorized:
			e.Code = "UNAUTHORIZED"
		case http.StatusForbidden:
			e.Code = "DENIED"
		case http.StatusTooManyRequests:
			e.Code = "TOOMANYREQUESTS"
		}
	}
	return e
}

// printable is a stranger's text, fit for a terminal.
func printable(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, ""))
}

// judged gives a refusal its class.
func judged(e *Error) error {
	switch {
	case e.Status == http.StatusUnauthorized:
		return api.Errorf(errdefs.ErrUnauthenticated, "%w", e)
	case e.Status == http.StatusForbidden:
		return api.Errorf(errdefs.ErrPermissionDenied, "%w", e)
	case e.Status == http.StatusNotFound:
		return api.Errorf(errdefs.ErrNotFound, "%w", e)
	case e.Status == http.StatusTooManyRequests:
		return api.Errorf(errdefs.ErrResourceExhausted, "%w", e)
	case e.Status >= http.StatusInternalServerError:
		return api.Errorf(errdefs.ErrUnavailable, "%w", e)
	}
	return api.Errorf(errdefs.ErrInternal, "%w", e)
}
