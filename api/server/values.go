package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// maxBody bounds JSON bodies. Archives are streamed and have no bound.
const maxBody = 8 << 20

// decode reads a JSON body into v. No body at all leaves v as it is.
func (c *call) decode(v any) error {
	kind := c.r.Header.Get("Content-Type")
	empty := c.r.Body == nil || c.r.ContentLength == 0
	if kind == "" && empty {
		return nil
	}
	media, _, err := mime.ParseMediaType(kind)
	switch {
	case err != nil:
		return api.InvalidArgument("malformed Content-Type header (%s): %w", kind, err)
	case media != "application/json":
		return api.InvalidArgument("unsupported Content-Type header (%s): must be 'application/json'", kind)
	case empty:
		return nil
	}
	return decodeJSON(http.MaxBytesReader(c.w, c.r.Body, maxBody), v)
}

func decodeJSON(body io.Reader, v any) error {
	d := json.NewDecoder(body)
	err := d.Decode(v)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fmt.Errorf("request body is larger than %d bytes: %w", tooLarge.Limit, err)
	case errors.Is(err, io.EOF):
		return api.InvalidArgument("invalid JSON: got EOF while reading request body")
	case err != nil:
		return api.InvalidArgument("invalid JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		if errors.As(err, &tooLarge) {
			return fmt.Errorf("request body is larger than %d bytes: %w", tooLarge.Limit, err)
		}
		return api.InvalidArgument("unexpected content after JSON")
	}
	return nil
}

// encode is JSON as Docker writes it: no HTML escapes, a newline at the end.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return b.Bytes(), nil
}

// writeJSON answers with one value. It fails before anything is sent or not at
// all: a client that went away meanwhile is no error.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
	return nil
}

func (c *call) json(status int, v any) error { return writeJSON(c.w, status, v) }

func (c *call) noContent() error {
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func writeBytes(w http.ResponseWriter, kind string, b []byte) error {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(b) // a client that went away is no error
	return nil
}

// flag reads a truth value as Docker does: anything but a handful of words is true.
func (c *call) flag(name string) bool {
	s := strings.ToLower(strings.TrimSpace(c.query.Get(name)))
	return !slices.Contains([]string{"", "0", "no", "false", "none"}, s)
}

func (c *call) int(name string) (int, error) {
	s := c.query.Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, api.InvalidArgument("invalid %s: %q is no number", name, s)
	}
	return n, nil
}

func (c *call) filters() (api.Filters, error) { return api.ParseFilters(c.query.Get("filters")) }

func (c *call) time(name string) (time.Time, error) {
	t, err := listing.Time(c.query.Get(name), time.Now())
	if err != nil {
		return time.Time{}, api.InvalidArgument("invalid value for %q: %w", name, err)
	}
	return t, nil
}

// platform reads both notations of the platform parameter: OCI's JSON and
// linux/arm64/v8.
func (c *call) platform() (api.Platform, error) {
	return parsePlatform(c.query.Get("platform"))
}

func parsePlatform(s string) (api.Platform, error) {
	if s == "" {
		return api.Platform{}, nil
	}
	if strings.HasPrefix(s, "{") {
		var p struct{ OS, Architecture, Variant string }
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return api.Platform{}, api.InvalidArgument("invalid platform: %w", err)
		}
		return api.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}, nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	switch {
	case len(parts) > 3 || slices.Contains(parts, ""):
		return api.Platform{}, api.InvalidArgument("invalid platform: %q: must be os/architecture/variant", s)
	case len(parts) == 1 && (s == "linux" || s == "windows"):
		return api.Platform{OS: parts[0]}, nil
	case len(parts) == 1:
		return normal(api.Platform{OS: "linux", Architecture: parts[0]}), nil
	}
	p := api.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normal(p), nil
}

// normal replaces the names that kernels and distributions have for architectures.
func normal(p api.Platform) api.Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386":
		p.Architecture = "386"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	return p
}
