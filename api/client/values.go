package client

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-engine/shoal/api"
)

// values builds query parameters; whatever is zero is left out.
type values struct{ url.Values }

func query() values { return values{url.Values{}} }

func (v values) str(key, s string) values {
	if s != "" {
		v.Set(key, s)
	}
	return v
}

func (v values) flag(key string, on bool) values {
	if on {
		v.Set(key, "1")
	}
	return v
}

func (v values) int(key string, n int) values {
	if n != 0 {
		v.Set(key, strconv.Itoa(n))
	}
	return v
}

func (v values) time(key string, t time.Time) values {
	if !t.IsZero() {
		v.Set(key, fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()))
	}
	return v
}

func (v values) filters(f api.Filters) (values, error) {
	if len(f) == 0 {
		return v, nil
	}
	b, err := json.Marshal(f)
	if err != nil {
		return v, api.InvalidArgument("encode filters: %w", err)
	}
	v.Set("filters", string(b))
	return v, nil
}

// ociPlatform is the notation of most calls: a JSON object.
func (v values) ociPlatform(p api.Platform) values {
	if p == (api.Platform{}) {
		return v
	}
	b, err := json.Marshal(map[string]string{"os": p.OS, "architecture": p.Architecture, "variant": p.Variant})
	if err == nil { // strings can always be encoded
		v.Set("platform", string(b))
	}
	return v
}

// platform is the notation of create, pull and import: os/architecture/variant.
func (v values) platform(p api.Platform) values {
	if p == (api.Platform{}) {
		return v
	}
	os := p.OS
	if os == "" {
		os = "linux"
	}
	return v.str("platform", strings.TrimRight(strings.Join([]string{os, p.Architecture, p.Variant}, "/"), "/"))
}
