package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/shoal-engine/shoal/api"
)

// multiplexed is the content type of framed streams.
const multiplexed = "application/vnd.docker.multiplexed-stream"

// stream reads JSON values from an answer's body as they come.
type stream[T any] struct {
	ctx    context.Context // of the call that made the stream, whose end ends it
	body   io.ReadCloser
	values *json.Decoder
	fault  func(T) error // the error a value stands for; nil means none does
	close  func() error
}

func newStream[T any](ctx context.Context, body io.ReadCloser, fault func(T) error) *stream[T] {
	return &stream[T]{ctx: ctx, body: body, values: json.NewDecoder(body), fault: fault, close: sync.OnceValue(body.Close)}
}

// Recv implements api.Stream.
func (s *stream[T]) Recv() (T, error) {
	var v, zero T
	if err := s.values.Decode(&v); err != nil {
		if s.ctx.Err() != nil {
			return zero, context.Cause(s.ctx)
		}
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return zero, io.EOF
		}
		return zero, api.Unavailable("read from the engine: %w", err)
	}
	if s.fault != nil {
		if err := s.fault(v); err != nil {
			return zero, err
		}
	}
	return v, nil
}

// Close implements api.Stream.
func (s *stream[T]) Close() error { return s.close() }

// WaitContainer implements api.Observers. The engine sends headers as soon as the
// wait is registered.
func (c *Client) WaitContainer(
	ctx context.Context, id string, condition container.WaitCondition,
) (api.Stream[container.WaitResponse], error) {
	s, err := segment("container", strings.TrimPrefix(id, "/"))
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, request{
		method: http.MethodPost, path: "/containers/" + s + "/wait",
		query: query().str("condition", string(condition)).Values,
	})
	if err != nil {
		return nil, err
	}
	return newStream[container.WaitResponse](ctx, res.Body, nil), nil
}

// Events implements api.System.
func (c *Client) Events(ctx context.Context, o api.EventsOptions) (api.Stream[events.Message], error) {
	q, err := query().time("since", o.Since).time("until", o.Until).filters(o.Filters)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, request{method: http.MethodGet, path: "/events", query: q.Values})
	if err != nil {
		return nil, err
	}
	return newStream[events.Message](ctx, res.Body, nil), nil
}

// progress makes a request whose answer is a stream of progress.
func (c *Client) progress(ctx context.Context, r request) (api.Stream[api.Progress], error) {
	res, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	return newStream(ctx, res.Body, func(p api.Progress) error {
		if p.Error == nil {
			return nil
		}
		return api.FromStatus(p.Error.Code, p.Error.Message)
	}), nil
}

// ContainerLogs implements api.Observers.
func (c *Client) ContainerLogs(ctx context.Context, id string, o api.LogsOptions) (api.Output, error) {
	s, err := segment("container", strings.TrimPrefix(id, "/"))
	if err != nil {
		return api.Output{}, err
	}
	q := query().flag("stdout", o.Stdout).flag("stderr", o.Stderr).flag("follow", o.Follow).
		flag("timestamps", o.Timestamps).flag("details", o.Details).time("since", o.Since).time("until", o.Until)
	q.Set("tail", "all")
	if o.Tail >= 0 {
		q.Set("tail", fmt.Sprint(o.Tail))
	}
	res, err := c.do(ctx, request{method: http.MethodGet, path: "/containers/" + s + "/logs", query: q.Values})
	if err != nil {
		return api.Output{}, err
	}
	return api.Output{
		ReadCloser:  body{ctx, res.Body},
		Multiplexed: res.Header.Get("Content-Type") == multiplexed,
	}, nil
}

// body tells the end of a context from a broken connection.
type body struct {
	ctx context.Context // of the call that made it, whose end ends it
	io.ReadCloser
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.ctx.Err() != nil { //nolint:errorlint // io.Reader promises the bare value
		err = context.Cause(b.ctx)
	}
	return n, err
}
