package apiv1

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
)

// classified is an error whose text is exactly what a client shall read and whose
// class is one of errdefs'.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }

// Errorf makes an error of a class (one of errdefs' Err… values) whose text is the
// format alone; %w keeps causes reachable as fmt.Errorf does.
func Errorf(class error, format string, args ...any) error {
	return classified{fmt.Errorf(format, args...), class}
}

// NotFound is an error of class errdefs.ErrNotFound.
func NotFound(format string, args ...any) error {
	return Errorf(errdefs.ErrNotFound, format, args...)
}

// Conflict is an error of class errdefs.ErrConflict.
func Conflict(format string, args ...any) error {
	return Errorf(errdefs.ErrConflict, format, args...)
}

// InvalidArgument is an error of class errdefs.ErrInvalidArgument.
func InvalidArgument(format string, args ...any) error {
	return Errorf(errdefs.ErrInvalidArgument, format, args...)
}

// Unavailable is an error of class errdefs.ErrUnavailable.
func Unavailable(format string, args ...any) error {
	return Errorf(errdefs.ErrUnavailable, format, args...)
}

// NotModified is an error of class errdefs.ErrNotModified.
func NotModified(format string, args ...any) error {
	return Errorf(errdefs.ErrNotModified, format, args...)
}

// NotImplemented is an error of class errdefs.ErrNotImplemented.
func NotImplemented(format string, args ...any) error {
	return Errorf(errdefs.ErrNotImplemented, format, args...)
}

// Internal is an error of class errdefs.ErrInternal.
func Internal(format string, args ...any) error {
	return Errorf(errdefs.ErrInternal, format, args...)
}

// classes pairs every class with its HTTP status, most telling first: an error of
// several classes takes the status of the first listed.
var classes = []struct {
	class  error
	status int
}{
	{errdefs.ErrNotFound, http.StatusNotFound},
	{errdefs.ErrInvalidArgument, http.StatusBadRequest},
	{errdefs.ErrConflict, http.StatusConflict},
	{errdefs.ErrAlreadyExists, http.StatusConflict},
	{errdefs.ErrUnauthenticated, http.StatusUnauthorized},
	{errdefs.ErrPermissionDenied, http.StatusForbidden},
	{errdefs.ErrUnavailable, http.StatusServiceUnavailable},
	{errdefs.ErrNotModified, http.StatusNotModified},
	{errdefs.ErrNotImplemented, http.StatusNotImplemented},
	{errdefs.ErrInternal, http.StatusInternalServerError},
	{errdefs.ErrFailedPrecondition, http.StatusBadRequest},
	{errdefs.ErrOutOfRange, http.StatusBadRequest},
	{errdefs.ErrResourceExhausted, http.StatusTooManyRequests},
	{context.DeadlineExceeded, http.StatusGatewayTimeout},
}

// Status maps an error's class to an HTTP status; an error of no class is 500.
func Status(err error) int {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	for _, c := range classes {
		if errors.Is(err, c.class) {
			return c.status
		}
	}
	return http.StatusInternalServerError
}

// FromStatus is the error a status and a message stand for, the inverse of Status.
func FromStatus(status int, message string) error {
	for _, c := range classes {
		if c.status == status {
			return Errorf(c.class, "%s", message)
		}
	}
	if status >= 400 && status < 500 {
		return InvalidArgument("%s", message)
	}
	return Internal("%s", message)
}
