package server

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
)

func FuzzCreateBody(f *testing.F) {
	f.Add(`{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}}}`)
	f.Add(`{"Image":"x","MacAddress":"02:00:00:00:00:01","NetworkingConfig":{"EndpointsConfig":{"n":null}}}`)
	f.Add(`{"HostConfig":null}`)
	f.Add(`{"ExposedPorts":{"1/x":{}},"Healthcheck":{"Test":["NONE"]}} x`)
	f.Fuzz(func(t *testing.T, body string) {
		var b createBody
		if decodeJSON(strings.NewReader(body), &b) != nil {
			return
		}
		for _, v := range []version{oldest, {1, 50}, newest} {
			o, err := b.options(v)
			if err != nil {
				continue
			}
			if o.Config == nil || o.HostConfig == nil || o.Networking == nil {
				t.Fatal("an engine is given nothing to read")
			}
			if _, err := json.Marshal(o); err != nil {
				t.Fatalf("what was read can't be written: %v", err)
			}
		}
	})
}

func FuzzRegistryAuth(f *testing.F) {
	f.Add("")
	f.Add("e30=")
	f.Add("eyJ1c2VybmFtZSI6Im1lIn0=")
	f.Add("nonsense")
	f.Fuzz(func(t *testing.T, header string) {
		a := registryAuth(header)
		if a == (registry.AuthConfig{}) {
			return
		}
		again, err := authconfig.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		if b := registryAuth(again); b != a {
			t.Fatalf("%+v became %+v", a, b)
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v1.41/images/a/b:c/json", "/v1./x", "/v9999999999.1/x", "/_ping", "//", "/images//get", "/v1.56"} {
		f.Add("GET", s)
	}
	m := newMux(table())
	f.Fuzz(func(t *testing.T, method, path string) {
		v, rest, err := splitVersion(path)
		if err != nil {
			return
		}
		if v.before(oldest) || newest.before(v) {
			t.Fatalf("version %v of %q is served", v, path)
		}
		r, arg, ok := m.find(method, rest)
		if !ok {
			return
		}
		if r.method != method || strings.Contains(r.path, "{") == (arg == "") {
			t.Fatalf("%s %q found %s %s with %q", method, path, r.method, r.path, arg)
		}
		if strings.Contains(r.path, "{id}") && strings.Contains(arg, "/") {
			t.Fatalf("%q is no ID", arg)
		}
	})
}

func FuzzPlatform(f *testing.F) {
	for _, s := range []string{"", "linux/amd64", "arm64", "linux/arm/v7", `{"os":"linux","architecture":"arm64"}`, "a//b", "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlatform(s)
		if err != nil && !reflect.ValueOf(p).IsZero() {
			t.Fatal("an error and a platform")
		}
	})
}
