// Package client is an engine that is reached over HTTP.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// apiVersion is the version every request is pinned to: the one the wire types
// speak.
const apiVersion = "1.56"

const (
	// maxError bounds what is read of an error's body.
	maxError = 64 << 10
	// maxAnswer bounds answers of one JSON value.
	maxAnswer = 256 << 20
	// maxIdle connections are kept for calls to come.
	maxIdle = 16
	// idleTimeout is shorter than the server's, so that no call is sent on a
	// connection that is being closed.
	idleTimeout = 90 * time.Second
)

// Config of a client.
type Config struct {
	// Dial connects with the engine: over a unix socket, TCP, a stream of another
	// protocol. Where the connection has CloseWrite, half-close works.
	Dial      func(ctx context.Context) (net.Conn, error)
	UserAgent string
}

// Client is an engine behind a connection.
type Client struct {
	dial  func(ctx context.Context) (net.Conn, error)
	agent string
	http  *http.Client
}

var _ api.Engine = (*Client)(nil)

// New makes a client; it connects with nothing yet.
func New(c Config) *Client {
	t := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx) },
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
	}
	if c.UserAgent == "" {
		c.UserAgent = "shoal"
	}
	return &Client{dial: c.Dial, agent: c.UserAgent, http: &http.Client{
		Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the API has none; following one would leave it
		},
	}}
}

// Close gives up idle connections; calls in flight go on.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// request is a call before it is sent.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	body         any // nil, an io.Reader of a tar, or a value to be sent as JSON
}

func (c *Client) newRequest(ctx context.Context, r request) (*http.Request, error) {
	var body io.Reader
	kind := ""
	switch b := r.body.(type) {
	case nil:
	case io.Reader:
		body, kind = b, "application/x-tar"
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return nil, api.InvalidArgument("encode request: %w", err)
		}
		body, kind = bytes.NewReader(j), "application/json"
	}
	u := url.URL{Scheme: "http", Host: "shoal", Path: "/v" + apiVersion + r.path, RawQuery: r.query.Encode()}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, api.InvalidArgument("make request: %w", err)
	}
	for k, vs := range r.header {
		req.Header[k] = vs
	}
	req.Header.Set("User-Agent", c.agent)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	return req, nil
}

// do sends a request; an answer of the error kind is an error. The caller closes
// the body.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	req, err := c.newRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, failed(ctx, err)
	}
	if err := check(res); err != nil {
		return nil, err
	}
	return res, nil
}

// failed is the error of a request that got no answer.
func failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var u *url.Error // says no more than that there was a request
	if errors.As(err, &u) {
		err = u.Err
	}
	return api.Unavailable("reach the engine: %w", err)
}

// check closes and reads answers of the error kind.
func check(res *http.Response) error {
	if res.StatusCode < http.StatusMultipleChoices {
		return nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxError))
	if err != nil && len(b) == 0 {
		b = []byte(http.StatusText(res.StatusCode))
	}
	var m struct{ Message string }
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = strings.TrimSpace(string(b))
	}
	if m.Message == "" {
		m.Message = strings.ToLower(http.StatusText(res.StatusCode))
	}
	return api.FromStatus(res.StatusCode, m.Message)
}

// call sends a request and reads a JSON answer into v; nil reads nothing.
func (c *Client) call(ctx context.Context, r request, v any) error {
	res, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if v == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxError)) // so that the connection can be used again
		return nil
	}
	d := json.NewDecoder(io.LimitReader(res.Body, maxAnswer))
	if err := d.Decode(v); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("read the answer of %s %s: %w", r.method, r.path, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxError))
	return nil
}
