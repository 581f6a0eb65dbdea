package supervisor

import (
	"errors"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/runtime"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// fromWire gives an error its class back; nil stays nil.
func fromWire(e *wire.Error) error {
	if e == nil {
		return nil
	}
	switch e.Class {
	case wire.NoExec:
		return &runtime.ExecError{Code: e.Code, Text: e.Text}
	case wire.NotFound:
		return api.NotFound("%w", e)
	case wire.Conflict:
		return api.Conflict("%w", e)
	case wire.Invalid:
		return api.InvalidArgument("%w", e)
	case wire.Unsupported:
		return api.NotImplemented("%w", e)
	}
	return api.Internal("%w", e)
}

// isWire says whether the supervisor itself answered with an error.
func isWire(err error) bool {
	var e *wire.Error
	var x *runtime.ExecError
	return errors.As(err, &e) || errors.As(err, &x)
}
