package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"github.com/shoal-engine/shoal/api"
)

// credentials are what a caller shows. At most one kind is set.
type credentials struct {
	user, password string
	identity       string // exchanged for tokens at the token server
	token          string // shown to the registry as it is
}

func credentialsOf(a registry.AuthConfig) credentials {
	switch {
	case a.RegistryToken != "":
		return credentials{token: a.RegistryToken}
	case a.IdentityToken != "":
		return credentials{identity: a.IdentityToken, user: a.Username}
	case a.Username != "" || a.Password != "":
		return credentials{user: a.Username, password: a.Password}
	}
	if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
		if user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":"); ok {
			return credentials{user: user, password: password}
		}
	}
	return credentials{}
}

// hasPassword says whether there is something for basic authentication.
func (c credentials) hasPassword() bool { return c.identity == "" && c.token == "" && c.user != "" }

// challenge is one way in which a server wants to be convinced.
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

const (
	maxChallenges = 16
	maxParams     = 32
)

// parseChallenges reads WWW-Authenticate headers: schemes with parameters, separated
// by commas. What can't be read ends a header; nothing after it is believed.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		for h != "" && len(all) < maxChallenges {
			var c challenge
			var ok bool
			if c, h, ok = parseChallenge(h); !ok {
				break
			}
			all = append(all, c)
		}
	}
	return all
}

// parseChallenge reads the first challenge of a header.
func parseChallenge(h string) (c challenge, rest string, ok bool) {
	h = strings.TrimLeft(h, " \t,")
	scheme, rest := word(h)
	if scheme == "" {
		return c, "", false
	}
	c = challenge{strings.ToLower(scheme), map[string]string{}}
	for len(c.params) < maxParams {
		next := strings.TrimLeft(rest, " \t,")
		key, after := word(next)
		after = strings.TrimLeft(after, " \t")
		if key == "" || !strings.HasPrefix(after, "=") {
			return c, next, true // another scheme, or the end
		}
		value, left, ok := paramValue(strings.TrimLeft(after[1:], " \t"))
		if !ok {
			return c, "", true
		}
		c.params[strings.ToLower(key)] = value
		rest = left
	}
	return c, "", true
}

// word is the token, in the words of HTTP, that s begins with.
func word(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

func paramValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = word(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// grant is what a session shows a registry.
type grant struct {
	header  string    // Authorization; empty shows nothing
	expires time.Time // zero: unknown
	from    challenge // how to get another
}

// stale says whether a grant should be replaced before it is used.
func (g grant) stale(now time.Time) bool {
	return !g.expires.IsZero() && now.After(g.expires)
}

// answer finds a way to convince a server. Unauthenticated if there is none.
func (s *session) answer(ctx context.Context, challenges []challenge) (grant, error) {
	i := slices.IndexFunc(challenges, func(c challenge) bool { return c.scheme == "bearer" })
	if i >= 0 {
		return s.bearer(ctx, challenges[i])
	}
	i = slices.IndexFunc(challenges, func(c challenge) bool { return c.scheme == "basic" })
	switch {
	case i >= 0 && s.creds.hasPassword():
		return grant{header: basic(s.creds), from: challenges[i]}, nil
	case i >= 0:
		return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "no basic auth credentials")
	}
	return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: %s asks for no kind of authentication that is known", s.host)
}

func basic(c credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.password))
}

const (
	maxToken    = 1 << 20 // bytes of a token server's answer
	tokenWithin = 30 * time.Second
)

// bearer gets a token for what the session and the challenge want.
func (s *session) bearer(ctx context.Context, c challenge) (grant, error) {
	if s.creds.token != "" {
		return grant{header: "Bearer " + s.creds.token, from: c}, nil
	}
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil || realm.Scheme != "https" && realm.Scheme != "http" {
		return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: %s names no token server that could be asked", s.host)
	}
	if realm.Scheme == "http" && !s.c.lax(realm.Host) {
		return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: %s names a token server without TLS, %s, which is not listed as insecure", s.host, realm.Host)
	}
	scopes := s.wanted()
	for sc := range strings.FieldsSeq(c.params["scope"]) {
		if !slices.Contains(scopes, sc) {
			scopes = append(scopes, sc)
		}
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, tokenWithin)
	defer cancel()
	res, err := s.c.patiently(ctx, true, func() (*http.Response, error) {
		req, err := s.tokenRequest(ctx, realm, c.params["service"], scopes)
		if err != nil {
			return nil, err
		}
		return s.c.follow(req, realm.Host)
	})
	if err != nil {
		return grant{}, lasting{err}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return grant{}, lasting{refusal(res)}
	}
	return readToken(res.Body, begun, c)
}

// tokenRequest is a GET with a password or nothing, or a POST with an identity token.
func (s *session) tokenRequest(ctx context.Context, realm *url.URL, service string, scopes []string) (*http.Request, error) {
	u := *realm
	q := u.Query()
	if s.creds.identity == "" {
		if service != "" {
			q.Set("service", service)
		}
		for _, sc := range scopes {
			q.Add("scope", sc)
		}
		if s.creds.hasPassword() {
			q.Set("account", s.creds.user)
		}
		u.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err == nil && s.creds.hasPassword() {
			req.Header.Set("Authorization", basic(s.creds))
		}
		return req, err
	}
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {s.creds.identity}, "service": {service},
		"client_id": {"shoal"}, "scope": {strings.Join(scopes, " ")},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
	if err == nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, err
}

// A token server that doesn't say how long a token is good means a minute. Some of it
// is kept back for the way.
const (
	tokenTime = time.Minute
	tokenSlip = 10 * time.Second
)

func readToken(r io.Reader, begun time.Time, c challenge) (grant, error) {
	var t struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxToken)).Decode(&t); err != nil {
		return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: read the token server's answer: %w", err)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return grant{}, api.Errorf(errdefs.ErrUnauthenticated, "unauthorized: the token server gave no token")
	}
	good := tokenTime
	if t.ExpiresIn >= tokenTime.Seconds() && t.ExpiresIn < 1e9 {
		good = time.Duration(t.ExpiresIn) * time.Second
	}
	return grant{"Bearer " + t.Token, begun.Add(good - tokenSlip), c}, nil
}

// Login tries credentials at the registry that a.ServerAddress names, as docker login
// does. Unauthenticated if it refuses them.
func (c *Client) Login(ctx context.Context, a registry.AuthConfig) error {
	host := a.ServerAddress
	if _, after, ok := strings.Cut(host, "://"); ok {
		host = after
	}
	host, _, _ = strings.Cut(host, "/")
	if host == "" {
		host = "docker.io"
	}
	if err := CheckHost(host); err != nil {
		return api.InvalidArgument("registry: %w", err)
	}
	s := c.session(c.own(host), credentialsOf(a))
	res, err := s.do(ctx, call{method: http.MethodGet, path: "/v2/"})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("login attempt to %s failed: %w", host, refusal(res))
	}
	return nil
}
