// Package api is the newest version of the contract of an engine; see apiv1.
package api

import (
	"context"
	"iter"

	"github.com/shoal-engine/shoal/api/apiv1"
)

// The newest version of every name of the contract.
type (
	Engine     = apiv1.Engine
	Containers = apiv1.Containers
	Observers  = apiv1.Observers
	Terminals  = apiv1.Terminals
	Execs      = apiv1.Execs
	Images     = apiv1.Images
	Archives   = apiv1.Archives
	Registries = apiv1.Registries
	Networks   = apiv1.Networks
	Volumes    = apiv1.Volumes
	System     = apiv1.System

	Filters               = apiv1.Filters
	Platform              = apiv1.Platform
	TerminalSize          = apiv1.TerminalSize
	Progress              = apiv1.Progress
	CreateOptions         = apiv1.CreateOptions
	StartOptions          = apiv1.StartOptions
	StopOptions           = apiv1.StopOptions
	RemoveOptions         = apiv1.RemoveOptions
	ListOptions           = apiv1.ListOptions
	InspectOptions        = apiv1.InspectOptions
	LogsOptions           = apiv1.LogsOptions
	AttachOptions         = apiv1.AttachOptions
	ExecStartOptions      = apiv1.ExecStartOptions
	ImageListOptions      = apiv1.ImageListOptions
	ImageInspectOptions   = apiv1.ImageInspectOptions
	ImageRemoveOptions    = apiv1.ImageRemoveOptions
	PruneImagesReport     = apiv1.PruneImagesReport
	ImageDeletion         = apiv1.ImageDeletion
	PullOptions           = apiv1.PullOptions
	PushOptions           = apiv1.PushOptions
	PushResult            = apiv1.PushResult
	LoadOptions           = apiv1.LoadOptions
	ImportOptions         = apiv1.ImportOptions
	NetworkInspectOptions = apiv1.NetworkInspectOptions
	DiskUsageOptions      = apiv1.DiskUsageOptions
	EventsOptions         = apiv1.EventsOptions
	Ping                  = apiv1.Ping

	Stream[T any] = apiv1.Stream[T]
	Output        = apiv1.Output
	Duplex        = apiv1.Duplex
	Session       = apiv1.Session
)

// Errorf makes an error of a class; see apiv1.Errorf.
func Errorf(class error, format string, a ...any) error { return apiv1.Errorf(class, format, a...) }

// NotFound is an error of that class.
func NotFound(format string, a ...any) error { return apiv1.NotFound(format, a...) }

// Conflict is an error of that class.
func Conflict(format string, a ...any) error { return apiv1.Conflict(format, a...) }

// InvalidArgument is an error of that class.
func InvalidArgument(format string, a ...any) error { return apiv1.InvalidArgument(format, a...) }

// Unavailable is an error of that class.
func Unavailable(format string, a ...any) error { return apiv1.Unavailable(format, a...) }

// NotModified is an error of that class.
func NotModified(format string, a ...any) error { return apiv1.NotModified(format, a...) }

// NotImplemented is an error of that class.
func NotImplemented(format string, a ...any) error { return apiv1.NotImplemented(format, a...) }

// Internal is an error of that class.
func Internal(format string, a ...any) error { return apiv1.Internal(format, a...) }

// Status maps an error's class to an HTTP status; see apiv1.Status.
func Status(err error) int { return apiv1.Status(err) }

// FromStatus is the inverse of Status; see apiv1.FromStatus.
func FromStatus(status int, message string) error { return apiv1.FromStatus(status, message) }

// ParseFilters reads a filters= parameter; see apiv1.ParseFilters.
func ParseFilters(s string) (Filters, error) { return apiv1.ParseFilters(s) }

// All ranges over a stream; see apiv1.All.
func All[T any](s Stream[T]) iter.Seq2[T, error] { return apiv1.All(s) }

// Pipe makes a stream and its feeding end; see apiv1.Pipe.
func Pipe[T any](ctx context.Context) (Stream[T], func(T) error, func(error)) {
	return apiv1.Pipe[T](ctx)
}

// One is a stream of a single computed value; see apiv1.One.
func One[T any](ctx context.Context, f func(context.Context) (T, error)) Stream[T] {
	return apiv1.One(ctx, f)
}
