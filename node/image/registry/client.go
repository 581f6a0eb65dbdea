package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/shoal-engine/shoal/api"
)

// Config says how registries are reached. The zero value reaches public ones.
type Config struct {
	// Mirrors are asked before the registry they mirror, in their order, for pulls
	// only: by the registry's domain, as "https://host[:port]", "http://…" or
	// "host[:port]".
	Mirrors map[string][]string
	// Insecure hosts, "host" or "host:port", may be spoken to without TLS and with
	// certificates that nobody vouches for, as loopback always may.
	Insecure []string
	// Dial opens connections; nil is a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Limit, if set, keeps connections within a rate.
	Limit func(net.Conn) net.Conn
	// Roots vouch for certificates; nil is the host's own.
	Roots     *x509.CertPool
	UserAgent string
	Logger    *slog.Logger // nil discards
	// Pause before the first further attempt; it doubles each time. 0 is 250 ms.
	Pause time.Duration
}

// Client reaches registries. Its methods may be called concurrently.
type Client struct {
	cfg      Config
	log      *slog.Logger
	mirrors  map[string][]endpoint
	insecure []string
	checked  *http.Client // checks certificates
	trusting *http.Client // doesn't
}

// endpoint is a host that speaks the protocol.
type endpoint struct {
	scheme string // empty: to be found out, for hosts that may be insecure
	host   string // with a port if it isn't the scheme's
	mirror bool
}

// dockerHost is where the images of docker.io are.
const dockerHost = "registry-1.docker.io"

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 30 * time.Second
	idlePerHost      = 8
)

// New makes a client; it starts nothing.
func New(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if dial, limit := cfg.Dial, cfg.Limit; limit != nil {
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return limit(conn), nil
		}
	}
	if cfg.Pause == 0 {
		cfg.Pause = 250 * time.Millisecond
	}
	c := &Client{cfg: cfg, log: cfg.Logger.With("component", "registry"), mirrors: map[string][]endpoint{}}
	for _, h := range cfg.Insecure {
		if err := CheckHost(h); err != nil {
			return nil, api.InvalidArgument("insecure registry: %w", err)
		}
		c.insecure = append(c.insecure, strings.ToLower(h))
	}
	for domain, urls := range cfg.Mirrors {
		for _, u := range urls {
			e, err := parseMirror(u)
			if err != nil {
				return nil, api.InvalidArgument("mirror of %s: %w", domain, err)
			}
			c.mirrors[domain] = append(c.mirrors[domain], e)
		}
	}
	c.checked = c.client(&tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12})
	c.trusting = c.client(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // for hosts that the configuration calls insecure, and loopback
	return c, nil
}

func (c *Client) client(t *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: c.cfg.Dial, TLSClientConfig: t, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: handshakeTimeout, IdleConnTimeout: idleTimeout, MaxIdleConnsPerHost: idlePerHost,
			DisableCompression:     true, // digests are of what is sent
			MaxResponseHeaderBytes: maxHeader,
		},
		// Redirects are followed where it is known who may see which header.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close drops idle connections.
func (c *Client) Close() error {
	c.checked.CloseIdleConnections()
	c.trusting.CloseIdleConnections()
	return nil
}

// CheckHost says what is wrong with "host" or "host:port"; nil if nothing is.
func CheckHost(h string) error {
	u, err := url.Parse("https://" + h)
	if err != nil || h == "" || u.Host != h || u.User != nil || u.Hostname() == "" {
		return errors.New("\"" + h + "\" is not host or host:port")
	}
	return nil
}

// CheckMirror says what is wrong with a mirror's address; nil if nothing is.
func CheckMirror(s string) error {
	_, err := parseMirror(s)
	return err
}

func parseMirror(s string) (endpoint, error) {
	scheme, host, ok := strings.Cut(s, "://")
	if !ok {
		scheme, host = "", s
	}
	host = strings.TrimSuffix(host, "/")
	if scheme != "" && scheme != "https" && scheme != "http" {
		return endpoint{}, errors.New("\"" + s + "\" is not http:// or https://")
	}
	if err := CheckHost(host); err != nil {
		return endpoint{}, err
	}
	return endpoint{scheme, host, true}, nil
}

// lax says whether a host may be spoken to without TLS.
func (c *Client) lax(host string) bool {
	host = strings.ToLower(host)
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if ip := net.ParseIP(name); name == "localhost" || ip != nil && ip.IsLoopback() {
		return true
	}
	return slices.Contains(c.insecure, host) || slices.Contains(c.insecure, name)
}

// own is the endpoint of a registry itself.
func (c *Client) own(domain string) endpoint {
	if domain == "docker.io" || domain == "index.docker.io" {
		domain = dockerHost
	}
	e := endpoint{scheme: "https", host: domain}
	if c.lax(domain) {
		e.scheme = ""
	}
	return e
}

// Repository is one repository as one caller may see it. Its methods may be called
// concurrently. It is a transfer.Fetcher of the repository's manifests and blobs.
type Repository struct {
	c       *Client
	name    reference.Named // without tag and digest
	path    string
	own     *session
	mirrors []*session
}

// Repository begins to deal with a repository. It asks nothing yet.
func (c *Client) Repository(name reference.Named, auth registry.AuthConfig) *Repository {
	name = reference.TrimNamed(name)
	r := &Repository{c: c, name: name, path: reference.Path(name)}
	scope := "repository:" + r.path + ":pull"
	r.own = c.session(c.own(reference.Domain(name)), credentialsOf(auth), scope)
	for _, e := range c.mirrors[reference.Domain(name)] {
		if e.scheme == "" && !c.lax(e.host) {
			e.scheme = "https"
		}
		r.mirrors = append(r.mirrors, c.session(e, credentials{}, scope))
	}
	return r
}

// sources are whom to ask for content, in turn.
func (r *Repository) sources() []*session { return append(slices.Clone(r.mirrors), r.own) }
