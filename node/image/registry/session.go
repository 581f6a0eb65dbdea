package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
)

const (
	maxHeader    = 256 << 10
	maxRedirects = 5
	maxTries     = 5 // in a row, without progress
	maxPause     = 10 * time.Second
	maxAfter     = 30 * time.Second // that a server may have us wait
	stallTime    = 30 * time.Second // without a byte
	probeWithin  = 15 * time.Second
	// settleTime is how long a registry may think about what it was sent: some hash a
	// whole blob before they answer.
	settleTime = 10 * time.Minute
)

// session is one caller's dealings with one host.
type session struct {
	c      *Client
	host   string
	mirror bool
	creds  credentials

	reached atomic.Bool // the host has answered

	mu     sync.Mutex // held while the host is probed or a token got
	scheme string     // empty: not known yet
	scopes []string
	grant  grant
}

func (c *Client) session(e endpoint, creds credentials, scopes ...string) *session {
	return &session{c: c, host: e.host, mirror: e.mirror, scheme: e.scheme, creds: creds, scopes: scopes}
}

// wanted is what a token shall be good for; with mu held.
func (s *session) wanted() []string { return slices.Clone(s.scopes) }

// want adds to what tokens shall be good for, and drops one that is good for less.
func (s *session) want(scopes ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scopes = scopes
	if strings.HasPrefix(s.grant.header, "Bearer ") {
		s.grant.expires = time.Unix(1, 0)
	}
}

// call is a request to a registry.
type call struct {
	method string
	path   string   // on the host
	url    *url.URL // instead: where the registry told us to go
	header http.Header
	// body makes the body, anew for each attempt; size is its length.
	body func() io.Reader
	size int64
	once bool // what failed half way is the caller's to sort out
}

// do sends a call until there is an answer worth having, of whatever status. The
// caller closes its body.
func (s *session) do(ctx context.Context, c call) (*http.Response, error) {
	return s.c.patiently(ctx, !c.once, func() (*http.Response, error) {
		res, err := s.authorized(ctx, c)
		switch {
		case err == nil:
			s.reached.Store(true)
		case !s.reached.Load() && nobodyThere(err):
			return nil, lasting{err}
		}
		return res, err
	})
}

// lasting marks an error that trying again won't help.
type lasting struct{ error }

func (l lasting) Unwrap() error { return l.error }

// patiently tries again what may go better next time.
func (c *Client) patiently(ctx context.Context, again bool, try func() (*http.Response, error)) (*http.Response, error) {
	for n := 1; ; n++ {
		res, err := try()
		if !again || n == maxTries || ctx.Err() != nil || !mayPass(res, err) {
			return res, unreachable(err)
		}
		wait := c.pause(n)
		if err == nil {
			wait = max(wait, retryAfter(res.Header))
			discard(res)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// pause before attempt n+1.
func (c *Client) pause(n int) time.Duration {
	d := min(c.cfg.Pause<<(n-1), maxPause)
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mayPass says whether an outcome may be another next time.
func mayPass(res *http.Response, err error) bool {
	if err != nil {
		var l lasting
		var unknown *net.DNSError
		return !errors.As(err, &l) && !classified(err) && !(errors.As(err, &unknown) && unknown.IsNotFound) &&
			!certificate(err)
	}
	switch res.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// classified says whether an error has been judged: it is no network's.
func classified(err error) bool {
	return errdefs.IsUnauthorized(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) ||
		errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) || errdefs.IsResourceExhausted(err)
}

// retryAfter is how long a server wants us to wait, within bounds.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(min(n, 3600))*time.Second, maxAfter)
}

// authorized sends a call with what the session has to show, and shows something
// better if the registry asks for it.
func (s *session) authorized(ctx context.Context, c call) (*http.Response, error) {
	if err := s.probe(ctx); err != nil {
		return nil, err
	}
	shown, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	res, home, err := s.send(ctx, c, shown)
	if err != nil || res.StatusCode != http.StatusUnauthorized || !home {
		return res, err
	}
	challenges := parseChallenges(res.Header.Values("Www-Authenticate"))
	if len(challenges) == 0 {
		return res, nil
	}
	discard(res)
	better, err := s.improve(ctx, shown, challenges)
	if err != nil {
		return nil, err
	}
	res, _, err = s.send(ctx, c, better)
	return res, err
}

// current is what to show at first.
func (s *session) current(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grant.stale(time.Now()) {
		g, err := s.answer(ctx, []challenge{s.grant.from})
		if err != nil {
			return "", err
		}
		s.grant = g
	}
	return s.grant.header, nil
}

// improve gets something better to show than what was refused.
func (s *session) improve(ctx context.Context, refused string, cs []challenge) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grant.header != refused {
		return s.grant.header, nil // somebody else did
	}
	g, err := s.answer(ctx, cs)
	if err != nil {
		return "", err
	}
	s.grant = g
	return g.header, nil
}

// probe finds out whether a host that need not speak TLS does.
func (s *session) probe(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.scheme != "" {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(within, http.MethodGet, "https://"+s.host+"/v2/", nil)
	if err != nil {
		return api.InvalidArgument("registry %s: %w", s.host, err)
	}
	res, err := s.c.trusting.Do(req)
	var op *net.OpError
	switch {
	case err == nil:
		discard(res)
		s.scheme = "https"
	case ctx.Err() != nil || errors.As(err, &op) && op.Op == "dial":
		return err
	default:
		s.scheme = "http"
	}
	return nil
}

// send sends a call once and follows where it leads. home says that the session's own
// host answered.
func (s *session) send(ctx context.Context, c call, authorization string) (res *http.Response, home bool, err error) {
	u := c.url
	if u == nil {
		s.mu.Lock()
		u = &url.URL{Scheme: s.scheme, Host: s.host}
		s.mu.Unlock()
		if u, err = u.Parse(c.path); err != nil {
			return nil, false, api.InvalidArgument("registry %s: %w", s.host, err)
		}
	}
	ctx, w := watch(ctx)
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), nil)
	if err != nil {
		w.end()
		return nil, false, api.InvalidArgument("registry %s: %w", s.host, err)
	}
	if c.header != nil {
		req.Header = c.header.Clone()
	}
	if c.body != nil {
		req.ContentLength = c.size
		req.Body = http.NoBody
		if c.size > 0 {
			req.Body = &watched{io.NopCloser(c.body()), w, settleTime}
		}
	}
	if authorization != "" && u.Host == s.host {
		req.Header.Set("Authorization", authorization)
	}
	if res, err = s.c.follow(req, s.host); err != nil {
		w.end()
		return nil, false, w.cause(err)
	}
	res.Body = &watched{&ending{res.Body, w}, w, stallTime}
	return res, res.Request.URL.Host == s.host, nil
}

// follow sends a request and, if it only asks, goes where the answer says. Only the
// home host sees the Authorization header, and only if it is reached as safely.
func (c *Client) follow(req *http.Request, home string) (*http.Response, error) {
	if c.cfg.UserAgent != "" {
		req.Header.Set("User-Agent", c.cfg.UserAgent)
	}
	for n := 0; ; n++ {
		client := c.checked
		if c.lax(req.URL.Host) {
			client = c.trusting
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, withoutQuery(err)
		}
		if !redirects(res) || req.Method != http.MethodGet && req.Method != http.MethodHead {
			return res, nil
		}
		next, err := res.Location()
		discard(res)
		if err != nil || n == maxRedirects {
			return nil, lasting{api.Unavailable("%s redirects too often, or to nowhere", home)}
		}
		if next.User != nil || next.Scheme != "https" && (next.Scheme != "http" || req.URL.Scheme == "https" || !c.lax(next.Host)) {
			return nil, lasting{api.Unavailable("%s redirects to %s, which is not safe", req.URL.Host, next.Host)}
		}
		header := req.Header.Clone()
		if next.Host != home || next.Scheme != req.URL.Scheme {
			header.Del("Authorization")
		}
		again, err := http.NewRequestWithContext(req.Context(), req.Method, next.String(), nil)
		if err != nil {
			return nil, lasting{err}
		}
		again.Header = header
		req = again
	}
}

func redirects(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// withoutQuery takes signatures and the like out of an error's address.
func withoutQuery(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		if i := strings.IndexByte(u.URL, '?'); i >= 0 {
			u.URL = u.URL[:i]
		}
	}
	return err
}

// discard reads what little is left, so that the connection can be used again.
func discard(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // what fails costs a connection
	_ = res.Body.Close()
}

// nobodyThere says that a host is not known or listens to nobody.
func nobodyThere(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// certificate says that a host could not prove who it is.
func certificate(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v) || errors.Is(err, http.ErrSchemeMismatch)
}

// unreachable gives an error of the network its class.
func unreachable(err error) error {
	switch {
	case err == nil, classified(err), errors.Is(err, context.Canceled), errdefs.IsUnavailable(err):
		return err
	}
	return api.Unavailable("%w", err)
}

// watch ends a request whose bytes stop moving.
func watch(ctx context.Context) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{ctx: ctx, cancel: cancel}
	w.t = time.AfterFunc(stallTime, func() { cancel(errStalled) })
	return ctx, w
}

var errStalled = errors.New("no byte has moved for " + stallTime.String()) //nolint:gochecknoglobals // compared

type watchdog struct {
	ctx    context.Context // of the one request
	cancel context.CancelCauseFunc
	t      *time.Timer
}

func (w *watchdog) end() {
	w.t.Stop()
	w.cancel(nil)
}

// cause is why the request failed, if it was the watchdog.
func (w *watchdog) cause(err error) error {
	if errors.Is(context.Cause(w.ctx), errStalled) {
		return errStalled
	}
	return err
}

// watched tells a watchdog of every byte read; after the last it waits for as long as
// last.
type watched struct {
	io.ReadCloser
	w    *watchdog
	last time.Duration
}

func (r *watched) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	switch {
	case errors.Is(err, io.EOF):
		r.w.t.Reset(r.last)
	case err != nil:
		err = r.w.cause(err)
	case n > 0:
		r.w.t.Reset(stallTime)
	}
	return n, err
}

// ending ends the watch with the body.
type ending struct {
	io.ReadCloser
	w *watchdog
}

func (e *ending) Close() error {
	err := e.ReadCloser.Close()
	e.w.end()
	return err
}
